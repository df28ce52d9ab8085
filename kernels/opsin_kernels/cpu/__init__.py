"""Products with quantized weights on a CPU, in C: what torch has no operation for that is exact, and as fast as the
memory is."""
