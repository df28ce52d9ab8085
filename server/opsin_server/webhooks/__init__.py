"""Webhooks: how an event is signed, and how it is sent without reaching inside the network."""
