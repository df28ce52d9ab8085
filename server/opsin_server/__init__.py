"""The Opsin server: an API process without torch, an engine process without HTTP, and the door between them."""

__version__ = "0.1.0"
