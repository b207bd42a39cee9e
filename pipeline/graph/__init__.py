"""Torch network in, ONNX graphs out: which channels hang together, and how to do without some of them."""
