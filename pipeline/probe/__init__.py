"""ONNX file in, measurement out: on this machine, or simulated."""
