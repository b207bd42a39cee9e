"""What the operating system is asked for: files, processes, memory, versions, units."""
