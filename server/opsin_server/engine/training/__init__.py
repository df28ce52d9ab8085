"""A training step in pieces, and what decides when a piece may run."""
