"""Dual encoders: a text tower and a vision tower whose outputs lie in one space."""
