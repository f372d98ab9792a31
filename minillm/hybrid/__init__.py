"""Data, tasks, models and methods combined, to get more out of the same computation."""
