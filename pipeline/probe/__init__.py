"""Probe: measure ONNX files on this machine, on a device, or in simulation."""
