"""A trained model made low-precision."""
