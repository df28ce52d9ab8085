"""Vision encoders, one file each, registered by name: their torch-free halves."""
