"""Messages to ids and pixels, ids to text: chat template, tokenizer, detokenizer, stop strings. No torch."""
