"""The stages of a run. Each file is one step of `pipeline/compress.py`."""
