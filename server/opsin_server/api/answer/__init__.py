"""From a chat request to its answer: submission, generation, text, events."""
