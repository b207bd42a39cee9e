"""Simplifying may fail in any way it likes; what ships is never worse than what went in."""

import re
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from helpers.workers import gone

from pipeline.core.onnx_outputs import run_onnx
from pipeline.graph.simplify import simplify
from pipeline.graph.structure import load_graph

INPUTS = np.linspace(-1, 1, 4, dtype=np.float32).reshape(1, 4)


def foldable() -> bytes:
    """z = relu(x * (2 + 3)): the sum is a constant"""
    model = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 18]>
        agraph (float[1,4] x) => (float[1,4] z) {
            two = Constant <value = float {2.0}> ()
            three = Constant <value = float {3.0}> ()
            five = Add(two, three)
            y = Mul(x, five)
            z = Relu(y)
        }"""
    )
    return model.SerializeToString()


def program(text: str) -> tuple[str, ...]:
    """A simplifier of one's own: a little Python program that gets the input's and the output's path."""
    return (sys.executable, "-c", f"import sys, os, time, signal, shutil\nsource, target = sys.argv[1:]\n{text}")


def test_the_real_one_folds_constants_and_answers_the_same() -> None:
    simplified = simplify(foldable(), INPUTS)

    assert re.fullmatch(r"simplified: 5 -> [23] nodes", simplified.note)
    assert "Add" not in {node.op_type for node in load_graph(simplified.data).graph.node}
    assert load_graph(simplified.data).ir_version == 9
    np.testing.assert_array_equal(run_onnx(simplified.data, INPUTS), run_onnx(foldable(), INPUTS))


OTHER_ANSWER = """
import onnx
model = onnx.load(source)
model.graph.node[-1].op_type = "Sigmoid"
onnx.save(model, target)"""

MORE_NODES = """
import onnx
model = onnx.load(source)
model.graph.node[-1].output[0] = "almost"
model.graph.node.add(op_type="Identity", input=["almost"], output=["z"])
onnx.save(model, target)"""

OTHER_NAME = """
import onnx
model = onnx.load(source)
model.graph.node[-1].output[0] = model.graph.output[0].name = "out"
onnx.save(model, target)"""

OTHER_OPSET = """
import onnx
model = onnx.load(source)
model.opset_import[0].version = 19
onnx.save(model, target)"""

WEIGHTS_BESIDE = """
import onnx
model = onnx.load(source)
del model.graph.node[2]
model.graph.initializer.add(name="five", data_type=1, raw_data=b"\\0\\0\\xa0\\x40")
onnx.save(model, target, save_as_external_data=True, size_threshold=0)"""


@pytest.mark.parametrize(
    ("text", "note"),
    [
        pytest.param("os.kill(os.getpid(), signal.SIGSEGV)", "not simplified: it was killed by SIGSEGV", id="segfault"),
        pytest.param("sys.exit(1)", "not simplified: it exited with 1", id="exit 1"),
        pytest.param("pass", "not simplified: it wrote no file", id="no file"),
        pytest.param("open(target, 'wb').write(b'garbage')", "not simplified: its result is not a usable graph", id="garbage"),
        pytest.param("open(target, 'wb')", "not simplified: its result is not a usable graph", id="empty file"),
        pytest.param(OTHER_ANSWER, "not simplified: its result answers differently", id="other answer"),
        pytest.param(MORE_NODES, "not simplified: its result has more nodes", id="more nodes"),
        pytest.param(OTHER_NAME, "not simplified: its result has other inputs, other outputs or another opset", id="other name"),
        pytest.param(
            OTHER_OPSET, "not simplified: its result has other inputs, other outputs or another opset", id="other opset"
        ),
        pytest.param(
            WEIGHTS_BESIDE,
            "not simplified: its result is not a usable graph (the ONNX file keeps weights in other files",
            id="weights beside",
        ),
        pytest.param("open(source, 'wb')", "not simplified: it wrote no file", id="input spoilt"),
        pytest.param("os.mkdir(target)", "not simplified: it wrote no file", id="a folder"),
    ],
)
def test_whatever_goes_wrong_the_input_comes_back_with_a_note(text: str, note: str) -> None:
    simplified = simplify(foldable(), INPUTS, command=program(text))

    assert simplified.data == foldable()
    assert simplified.note.startswith(note)


def test_a_hang_is_ended_with_all_its_children(tmp_path: Path) -> None:
    """the simplifier starts a child of its own, and both sleep"""
    pids = tmp_path / "pids"
    text = f"import subprocess\nc = subprocess.Popen(['sleep', '600'])\nopen({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{c.pid}}')\ntime.sleep(600)"
    simplified = simplify(foldable(), INPUTS, command=program(text), time_limit_s=3)

    assert simplified.note == "not simplified: no answer after 3 s"
    assert simplified.data == foldable()
    assert gone([int(pid) for pid in pids.read_text().split()])


def test_a_program_that_does_not_exist_is_told() -> None:
    assert simplify(foldable(), INPUTS, command=("/nowhere/onnxsim",)).note.startswith("not simplified: it does not start")
