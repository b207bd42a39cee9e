"""Turns the fine-tuned network into the artifact folder, with its evidence."""
