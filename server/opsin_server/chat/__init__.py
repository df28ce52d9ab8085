"""A chat's messages as clients send them, in requests and in training files, to the prompt code's words."""
