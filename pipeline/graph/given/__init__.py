"""A network that the user gives as an ONNX file: it becomes a trainable graph and a torch module that is rebuilt from it."""
