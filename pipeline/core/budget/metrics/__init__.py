"""One file per metric, each with a METRIC. A new file here adds a budget key."""
