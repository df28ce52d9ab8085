"""Fine-tuning jobs: what was asked for, what becomes of it, and how it is told."""
