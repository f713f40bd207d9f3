"""Images from a source to host batches. Knows no jax."""
