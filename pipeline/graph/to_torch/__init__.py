"""Rebuild a torch module from an ONNX graph, train it, and write its weights back into the graph."""

from pipeline.graph.to_torch.build import network_of, write_back
from pipeline.graph.to_torch.network import GraphNetwork
from pipeline.graph.to_torch.places import TorchTensor

__all__ = ["GraphNetwork", "TorchTensor", "network_of", "write_back"]
