"""From the fine-tuned network to the artifact folder, with the evidence beside it."""
