"""Runs the model that serves: Model("~/compress/current").run(x). Needs numpy and onnxruntime; shipped with each release."""

import json
from pathlib import Path

import numpy as np
import onnxruntime as ort

__all__ = ["Model", "load"]


def load(folder: Path) -> ort.InferenceSession:
    """A session for the release in `folder`, set up as it was when it was measured."""
    told = json.loads((folder / "serving.json").read_text(encoding="utf-8"))["session"]
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = told["threads"], 1
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, told["graph_optimization"])
    options.enable_cpu_mem_arena, options.enable_mem_pattern = told["arena"], told["memory_pattern"]
    for key, value in told["config"].items():
        options.add_session_config_entry(key, value)
    off = told["disabled_optimizers"]
    return ort.InferenceSession(str(folder / "model.onnx"), options, [told["provider"]], disabled_optimizers=off)


class Model:
    """The release that the link `current` leads to; a switch is followed at the next run, without a pause in between."""

    def __init__(self, current: str) -> None:
        self.current, self.release = Path(current).expanduser(), Path()
        self.follow()

    def follow(self) -> None:
        """Load the release that `current` leads to now, if it is another one; the old one is let go when the new one runs."""
        release = self.current.resolve()
        if release != self.release:
            self.session, self.release = load(release), release

    def run(self, x: np.ndarray) -> np.ndarray:
        """`x` float32, (1, C, H, W) -> the network's output."""
        self.follow()
        return np.asarray(self.session.run(None, {self.session.get_inputs()[0].name: x})[0])
