"""The door between the API process and the engine process: msgspec messages over ZeroMQ, raw frames for arrays."""
