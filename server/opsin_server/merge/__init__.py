"""`opsin merge`: a model directory whose weights hold an adapter."""
