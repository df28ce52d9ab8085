"""Finds plugins, and reads a checkpoint directory. No torch."""
