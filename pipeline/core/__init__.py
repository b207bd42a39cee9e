"""The nouns: frozen data that every other package may know."""
