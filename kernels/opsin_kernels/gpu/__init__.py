"""The Triton kernels behind the operations; imported only where one runs, since triton is not installed everywhere."""
