"""C for processors: products with weights in any format, what stands between them, and whole layers of decode steps."""
