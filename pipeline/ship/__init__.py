"""From a trained small network to a folder that can be put on a device, proven step by step."""
