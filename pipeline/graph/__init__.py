"""Graph: find the channels that must be removed together, prune the torch network, and slice and export the ONNX graph."""
