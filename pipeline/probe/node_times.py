"""Node times: how long each node of a file runs on this machine, from ONNX Runtime's own profiler."""

import json
from collections import defaultdict
from pathlib import Path

import onnxruntime

from pipeline.core.feeds import Feeds
from pipeline.core.onnx_outputs import feeds_of
from pipeline.core.profile import Profile

__all__ = ["node_times"]

ENDING = "_kernel_time"
_LEVELS = {"disabled": "ORT_DISABLE_ALL", "basic": "ORT_ENABLE_BASIC", "extended": "ORT_ENABLE_EXTENDED", "all": "ORT_ENABLE_ALL"}


def node_times(data: bytes, inputs: Feeds, profile: Profile, folder: Path, runs: int = 20) -> list[tuple[str, str, float]]:
    """Return (name, operator, milliseconds of the fastest run) of each node of the file `data`, as the runtime optimised it.

    It runs with the settings of `profile`. `inputs` are those of one sample. The profiler writes its file into `folder`. The
    fastest run is the one that other programs disturbed least. The sum is not the latency, which a probe measures.
    """
    runtime, options = profile.runtime, onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = profile.threads, 1
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, _LEVELS[runtime.graph_optimization])
    options.enable_cpu_mem_arena, options.enable_mem_pattern = runtime.arena, runtime.memory_pattern
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(runtime.spinning)))
    options.add_session_config_entry("session.disable_prepacking", str(int(not runtime.prepacking)))
    options.add_session_config_entry("session.set_denormal_as_zero", str(int(runtime.denormal_as_zero)))
    options.enable_profiling, options.profile_file_prefix = True, str(folder / "profile")
    off = [] if runtime.blocked_layout else ["NchwcTransformer"]
    session = onnxruntime.InferenceSession(data, options, [runtime.execution_provider], disabled_optimizers=off)
    feeds = feeds_of(session, inputs)
    for _ in range(runs):
        session.run(None, feeds)
    events = json.loads(Path(session.end_profiling()).read_text())
    durations: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith(ENDING):
            durations[name.removesuffix(ENDING), str(event["args"]["op_name"])].append(event["dur"] / 1e3)
    return [(name, operator, min(found)) for (name, operator), found in durations.items()]
