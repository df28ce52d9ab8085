"""C for processors: products with quantized weights, and the turns and attention of decode steps."""
