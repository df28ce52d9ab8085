"""`opsin quantize`: a model directory in fewer bits, which this server and transformers read."""
