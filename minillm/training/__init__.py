"""The training step, the loop around it, what is measured, and what is kept."""
