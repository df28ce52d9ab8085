"""One file a family: a declaration without torch."""
