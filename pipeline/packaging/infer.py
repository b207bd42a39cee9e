"""Runs the model that serves: Model("~/compress/current").run(x). Needs numpy and onnxruntime; shipped with each release."""

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

__all__ = ["Model", "load"]


def load(folder: Path) -> ort.InferenceSession:
    """A session for the release in `folder`, with the settings that it was measured with."""
    settings = json.loads((folder / "serving.json").read_text(encoding="utf-8"))["session"]
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = settings["threads"], 1
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, settings["graph_optimization"])
    options.enable_cpu_mem_arena, options.enable_mem_pattern = settings["arena"], settings["memory_pattern"]
    for key, value in settings["config"].items():
        options.add_session_config_entry(key, value)
    provider, chosen = settings["provider"], settings.get("provider_options", {})
    plugin = "plugin" in settings and (provider not in ort.get_available_providers() or provider in registered())
    if plugin:
        options.add_provider_for_devices([processor(provider, settings["plugin"])], chosen)
    # without enable_fallback=0, a provider that fails is silently replaced by another one
    others = {"disabled_optimizers": settings["disabled_optimizers"], "enable_fallback": 0}
    session = ort.InferenceSession(str(folder / "model.onnx"), options, None if plugin else [(provider, chosen)], **others)
    if provider not in session.get_providers():
        raise RuntimeError(f"onnxruntime {ort.__version__} does not use {provider}")
    return session


def registered() -> Any:
    """The providers that are libraries beside onnxruntime, of which the process has loaded some before."""
    return [each.ep_name for each in ort.get_ep_devices()] if hasattr(ort, "get_ep_devices") else []


def processor(provider: str, module: str) -> Any:
    """The processor for the provider that `module` brings, whose library is registered once."""
    if provider not in registered():
        ort.register_execution_provider_library(provider, importlib.import_module(module).get_library_path())
    kind = ort.OrtHardwareDeviceType.CPU
    return next(each for each in ort.get_ep_devices() if each.ep_name == provider and each.device.type == kind)


class Model:
    """The release that the link `current` points to. After a switch, the next run uses the new release, without a pause."""

    def __init__(self, current: str) -> None:
        self.current, self.release = Path(current).expanduser(), Path()
        self.follow()

    def follow(self) -> None:
        """Load the release that `current` points to now, if it has changed. The old one is dropped when the new one is loaded."""
        release = self.current.resolve()
        if release != self.release:
            self.session, self.release = load(release), release

    def run(self, *inputs: np.ndarray, **named: np.ndarray) -> Any:
        """Run the network on one sample, such as float32 (1, C, H, W). Inputs are given in the file's order or by name.

        Returns the output as an array. A network with several outputs returns a dict: name -> array.
        """
        self.follow()
        found = self.session.run(None, {**dict(zip((each.name for each in self.session.get_inputs()), inputs)), **named})
        return found[0] if len(found) == 1 else dict(zip((each.name for each in self.session.get_outputs()), found))
