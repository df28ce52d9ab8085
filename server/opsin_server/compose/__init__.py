"""`opsin compose`: a new LLaVA-style model from a vision encoder's directory and a language model's."""
