"""Interface to the operating system: files, processes, memory, versions and units."""
