"""The command line: one module per group of commands, and the screens that they print to."""
