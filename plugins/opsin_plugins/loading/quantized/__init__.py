"""Checkpoints whose weights are packed, as their quantization_config says: several stored tensors are one weight."""
