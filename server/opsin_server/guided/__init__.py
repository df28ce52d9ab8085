"""Grammars that answers are held to: made of what a request says, and checked before an engine sees them."""
