"""What runs a step: batches, the runner, captured graphs, the sampler."""
