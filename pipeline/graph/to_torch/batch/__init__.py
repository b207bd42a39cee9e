"""Batches: run a graph that was exported for one batch size with another one.

A value of the graph holds one block per image. Its state says where the blocks lie, and one rule per op says where they lie
afterwards. An op without a rule for its case is run image by image.
"""

from pipeline.graph.to_torch.batch.call import Call, NotSeparable, State
from pipeline.graph.to_torch.batch.rules import RULES
from pipeline.graph.to_torch.batch.run import run_step

__all__ = ["RULES", "Call", "NotSeparable", "State", "run_step"]
