"""Training with each of the norms, from the same seeds and with the same budget."""
