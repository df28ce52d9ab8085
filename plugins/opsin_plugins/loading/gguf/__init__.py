"""GGUF files: what llama.cpp and its kin read. Configuration, tokenizer and tensors of a model in one file."""
