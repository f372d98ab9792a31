"""Models, each small, each on the same parts."""
