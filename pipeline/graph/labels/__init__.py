"""Labels: which channels of an exported graph hang together, read from the graph itself."""
