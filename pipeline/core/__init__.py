"""Frozen data types that every other package may import."""
