"""The evidence for people: one HTML page that stands alone."""
