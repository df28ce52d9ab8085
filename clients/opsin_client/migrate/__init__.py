"""`opsin migrate`: fine-tuning jobs of another OpenAI-compatible account, saved, made again here, and compared."""
