"""Text, tokens and batches: where the ids of a training step come from."""
