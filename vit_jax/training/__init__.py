"""Steps, state, checkpoints and the loop."""
