"""The stages of a run: each file is one step of the walk in `pipeline/compress.py`."""
