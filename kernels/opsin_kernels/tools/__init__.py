"""What only tests and benchmarks use: launches of every kernel, a driver for chips that are not here, compile facts."""
