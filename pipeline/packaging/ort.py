"""Ort: the file in onnxruntime's own format, and the operators that a reduced build of onnxruntime needs for it."""

import sys

from pipeline.core.batch import Inputs, arrays_in, outputs_of
from pipeline.core.onnx_outputs import largest_difference
from pipeline.core.profile import Precision, Profile
from pipeline.errors import ShipError, one_line
from pipeline.system.child_process import run_child
from pipeline.system.scratch import scratch_folder
from pipeline.training.scoring import OnnxModule

__all__ = ["CONFIG", "MODEL", "ort_files"]

MODEL = "model.ort"
CONFIG = "model.required_operators_and_types.config"
TIME_LIMIT_S = 300.0
LEVELS = {"disabled": "disable", "basic": "basic", "extended": "extended", "all": "all"}
TOLERANCES: dict[Precision, float] = {"fp32": 1e-4, "int8": 5e-2}
"""Largest allowed difference, as a share of the largest answer. int8 operators are fixed when the file is made, and may round
differently from those that this machine would choose."""


def ort_files(
    data: bytes, precision: Precision, profile: Profile, inputs: Inputs, time_limit_s: float = TIME_LIMIT_S
) -> tuple[dict[str, bytes], str]:
    """MODEL and CONFIG for the ONNX file `data`, and the result of comparing them.

    The profile's optimisations are applied in advance, but not the blocked layout, because its width depends on the machine that
    converts. The conversion runs in a child process. The result is compared on real `inputs`, (N, C, H, W). Raises ShipError.
    """
    arm = profile.architecture in ("aarch64", "armv7l")
    with scratch_folder("ort") as folder:
        source = folder / "model.onnx"
        source.write_bytes(data)
        failure = run_child(
            (
                *(sys.executable, "-m", "onnxruntime.tools.convert_onnx_models_to_ort"),
                *("--optimization_style", "Fixed", "--enable_type_reduction"),
                *(("--target_platform", "arm") if arm else ()),
                str(source),
            ),
            time_limit_s,
            {"ORT_CONVERT_ONNX_MODELS_TO_ORT_OPTIMIZATION_LEVEL": LEVELS[profile.runtime.graph_optimization]},
        )
        made, configs = list(folder.glob("*.ort")), list(folder.glob("*.config"))
        if failure is None and (len(made), len(configs)) != (1, 1):
            failure = "it wrote no file"
        if failure is not None:
            raise ShipError(f"the file cannot be converted to onnxruntime's own format: {failure}; set runtime.ort_format: false")
        ort, config = made[0].read_bytes(), _without_comments(configs[0].read_bytes())
    return {MODEL: ort, CONFIG: config}, _shown(data, ort, inputs, TOLERANCES[precision])


def _shown(data: bytes, ort: bytes, inputs: Inputs, tolerance: float) -> str:
    expected = arrays_in(outputs_of(OnnxModule(data)(inputs)))
    try:
        found = arrays_in(outputs_of(OnnxModule(ort)(inputs)))
    except Exception as problem:
        raise ShipError(f"{MODEL} cannot be loaded on this machine: {one_line(problem)}; set runtime.ort_format: false") from None
    difference = largest_difference(expected, found)
    if not difference <= tolerance:
        raise ShipError(
            f"the outputs of {MODEL} differ from those of model.onnx by {100 * difference:.2g} % of the largest output; set "
            "runtime.ort_format: false"
        )
    return f"{MODEL} against model.onnx on {len(inputs)} real inputs: largest difference {difference:.1e} of the largest output"


def _without_comments(config: bytes) -> bytes:
    """The configuration without comments. They contain the path of the folder that it was made in."""
    return b"".join(line for line in config.splitlines(keepends=True) if not line.startswith(b"#"))
