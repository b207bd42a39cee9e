"""Everything that runs a torch network on images: loading, scoring, fine-tuning."""
