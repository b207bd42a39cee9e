"""The evidence for people: one self-contained HTML page."""
