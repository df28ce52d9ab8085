"""The conformance kit: what a plugin promises, checked on a tiny random model. No server imports it."""
