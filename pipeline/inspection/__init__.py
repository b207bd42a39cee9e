"""What is known of a network before a run: its layers, its groups, and what they cost."""
