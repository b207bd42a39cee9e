"""Measuring: ONNX files from anywhere, with inputs that are given or made up."""
