"""State, step, layout, checkpoints and the loop around them."""
