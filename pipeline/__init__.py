"""Compress a trained vision network until it meets a measured budget on a device, and prove it."""
