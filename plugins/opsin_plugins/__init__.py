"""Model families as plugins: the contract, the registry, the blocks, and the built-in families."""
