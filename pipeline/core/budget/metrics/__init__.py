"""One file per metric, each with a METRIC; adding a file here adds a budget."""
