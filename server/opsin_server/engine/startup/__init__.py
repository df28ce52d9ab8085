"""From a checkpoint directory to an engine that can step."""
