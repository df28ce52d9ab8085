"""What the built-in fusions build."""
