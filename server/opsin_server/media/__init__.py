"""Images of a request: fetched without reaching inside the network, decoded without trusting a byte."""
