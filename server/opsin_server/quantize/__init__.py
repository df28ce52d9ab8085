"""`opsin quantize`: a model directory in fewer bits, which this server, transformers and vLLM read."""
