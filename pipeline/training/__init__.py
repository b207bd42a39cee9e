"""Training: load, score and fine-tune torch networks."""
