"""Helpers around the OpenAI SDK. This package knows only the wire."""
