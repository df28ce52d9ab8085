"""`opsin jobs`: the fine-tuning jobs of a server, from the terminal, through OpenAI's SDK."""
