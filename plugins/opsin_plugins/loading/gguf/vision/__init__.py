"""The vision towers and projectors of llama.cpp's mmproj files; one module for each family."""
