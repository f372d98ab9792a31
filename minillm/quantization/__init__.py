"""Numbers as integers with a scale: grids, schemes, ranges, errors, and what training does with them. No models."""
