"""Training files: read, checked and prepared before anything is trained. No torch, no HTTP."""
