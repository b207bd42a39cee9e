"""compress measure: files as they are, here and at the other end of a real OpenSSH connection."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers.graphs import HEAD, answers_nan, conv_net, fails_when_run, graph, not_onnx, unknown_op
from helpers.places import one_line
from helpers.profiles import command, here, there
from helpers.sshd import Board, needs_sshd
from helpers.workers import until

from pipeline.core.measurement import Measurement
from pipeline.core.network_input import NetworkInput
from pipeline.core.profile import load_profile
from pipeline.core.statistics import Estimate
from pipeline.errors import ModelError
from pipeline.graph.intake import look
from pipeline.measuring.measure_files import Comparison, measure_files

Files = Callable[..., Path]


@pytest.fixture
def file(tmp_path: Path) -> Files:
    """Writes an ONNX file: file("a", conv_net(8))"""

    def write(name: str, data: bytes) -> Path:
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(data)
        return path

    return write


@pytest.fixture
def narrow(file: Files) -> Path:
    return file("narrow", conv_net(8))


@pytest.fixture
def wide(file: Files) -> Path:
    """hundreds of times the arithmetic"""
    return file("wide", conv_net(128))


def text(inputs: str, body: str = "y = Relu (x)") -> bytes:
    return onnx.parser.parse_model(f"{HEAD} net ({inputs}) => (float[N] y) {{ {body} }}").SerializeToString()


def external() -> bytes:
    """weights in a file beside it"""
    model = onnx.load_model_from_string(conv_net(8))
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")
    return model.SerializeToString()


# ---------------------------------------------------------------- one file


def test_one_file_gets_a_column_of_figures(tmp_path: Path, narrow: Path) -> None:
    result = command("measure", "--target", here(tmp_path), narrow)
    titles = [re.split(r"\s{2,}", line)[0] for line in result.output.splitlines() if line and not line.startswith(" ")]

    assert result.exit_code == 0
    assert titles[:10] == [
        "file size",
        "input",
        "latency p50",
        "latency p90",
        "session creation",
        "first run",
        "CPU time per run",
        "peak memory",
        "peak above the runtime's",
        "runs",
    ]
    assert "16 in 2 processes" in result.output
    assert "1x3x16x16" in result.output
    assert "\nfigures: device (" in result.output


def test_from_python_the_raw_runs_are_there(tmp_path: Path, narrow: Path) -> None:
    found = measure_files(load_profile(here(tmp_path)), [narrow])
    (only,) = found.files

    assert isinstance(only.measured, Measurement)
    assert (only.path, only.size_bytes, only.inputs) == (
        narrow,
        narrow.stat().st_size,
        (NetworkInput("x", "float32", (1, 3, 16, 16)),),
    )
    assert only.measured.structure == graph(narrow.read_bytes()).structure
    assert [np.shape(process.latency_ms) for process in only.measured.processes] == [(2, 4), (2, 4)]
    assert [process.reference_latency_ms for process in only.measured.processes] == [(), ()]
    assert found.comparisons == ()


def test_a_free_batch_size_is_one_image(tmp_path: Path, file: Files) -> None:
    found = measure_files(load_profile(here(tmp_path)), [file("free", text("float[batch,3,4,4] x"))])

    assert found.files[0].shapes == "1x3x4x4"
    assert isinstance(found.files[0].measured, Measurement)


def test_a_weight_that_is_listed_among_the_inputs_is_none(tmp_path: Path, file: Files) -> None:
    """as files before IR version 4 had them"""
    model = onnx.load_model_from_string(conv_net(8))
    model.graph.input.append(onnx.helper.make_tensor_value_info("w1", onnx.TensorProto.FLOAT, [8, 3, 3, 3]))
    found = measure_files(load_profile(here(tmp_path)), [file("old", model.SerializeToString())])

    assert isinstance(found.files[0].measured, Measurement)


def schema(found: Any) -> Any:
    """Keys and types; of a list, its first entry's."""
    if isinstance(found, dict):
        return {key: schema(value) for key, value in found.items()}
    if isinstance(found, list):
        return [schema(found[0])] if found else []
    return type(found).__name__


ESTIMATE = {"value": "float", "low": "float", "high": "float"}


def test_json_is_the_only_thing_on_stdout_and_holds_all(tmp_path: Path, narrow: Path, wide: Path) -> None:
    result = command("measure", "--target", here(tmp_path), "--json", narrow, wide)
    found = json.loads(result.stdout)
    shape = schema(found)
    first = shape["files"][0]

    assert result.exit_code == 0
    assert list(shape) == ["fingerprint", "period_ms", "sustain_s", "files", "comparisons"]
    assert {"mode", "device", "machine", "architecture", "onnxruntime", "threads", "settings", "identity", "system"} <= set(
        shape["fingerprint"]
    )
    assert found["fingerprint"]["settings"]["runs"] == "8"
    assert [each["file"] for each in found["files"]] == [str(narrow), str(wide)]
    assert (first["size_bytes"], first["input_shape"], first["latency_p50_ms"]) == ("int", ["int"], ESTIMATE)
    assert first["latency_p90_ms"] == "NoneType"  # 16 runs are too few for one
    assert set(first["memory"].values()) == {"int"}
    assert {"before", "after", "remarks", "session_creation_ms", "first_run_ms", "cpu_ms_per_run"} <= set(first)
    assert np.shape([process["latency_ms"] for process in found["files"][0]["processes"]]) == (2, 2, 4)
    (comparison,) = shape["comparisons"]
    assert comparison.pop("doubts") in ([], ["str"])  # other programs may run beside this test
    assert comparison == {"file": "str", "against": "str", "answer": "str", "ratio_p50": ESTIMATE}


# ---------------------------------------------------------------- two files


def test_more_work_is_slower(tmp_path: Path, narrow: Path, wide: Path) -> None:
    (comparison,) = measure_files(load_profile(here(tmp_path, final_processes=3)), [narrow, wide]).comparisons

    assert comparison.answer == "slower"


def test_who_is_faster_is_said_in_a_sentence(tmp_path: Path, narrow: Path, wide: Path) -> None:
    result = command("measure", "--target", here(tmp_path, final_processes=3), wide, narrow)

    assert result.exit_code == 0
    assert re.search(
        r"\nnarrow.onnx is faster: [\d.]+ % \[[\d.]+, [\d.]+\] of the p50 of wide.onnx, run in turns\n", result.output
    )


def test_a_file_against_itself_gets_the_answer_that_its_interval_gives(tmp_path: Path, narrow: Path, file: Files) -> None:
    (comparison,) = measure_files(
        load_profile(here(tmp_path, final_processes=3)), [narrow, file("same", conv_net(8))]
    ).comparisons
    ratio = comparison.ratio_p50

    assert ratio.low <= ratio.value <= ratio.high
    assert (comparison.answer == "undecided") == (ratio.low <= 1 <= ratio.high or comparison.doubts != ())


@pytest.mark.parametrize(
    ("low", "high", "answer"),
    [(0.90, 0.99, "faster"), (0.90, 1.0, "undecided"), (0.9, 1.1, "undecided"), (1.0, 1.1, "undecided"), (1.01, 1.1, "slower")],
)
def test_only_a_whole_interval_decides(low: float, high: float, answer: str) -> None:
    assert Comparison(Path("b.onnx"), Estimate((low + high) / 2, low, high)).answer == answer


def test_each_is_compared_with_the_first(tmp_path: Path, narrow: Path, wide: Path, file: Files) -> None:
    found = measure_files(load_profile(here(tmp_path, final_processes=3)), [wide, narrow, file("other", conv_net(8, seed=1))])

    assert [(comparison.path.stem, comparison.answer) for comparison in found.comparisons] == [
        ("narrow", "faster"),
        ("other", "faster"),
    ]


def test_files_with_inputs_of_two_shapes_are_not_compared_and_it_says_so(tmp_path: Path, narrow: Path, file: Files) -> None:
    result = command("measure", "--target", here(tmp_path), narrow, file("small", text("float[1,3,4,4] x")))
    said = " ".join(result.output.split())

    assert result.exit_code == 0
    assert re.search(r"note: \S*small.onnx cannot be compared with \S*narrow.onnx: run-error: .*[Ii]nvalid dimensions", said)
    assert "run in turns" not in said


# ---------------------------------------------------------------- idle between, and hot


def test_at_a_duty_the_machine_idles_between_runs(tmp_path: Path, narrow: Path) -> None:
    result = command("measure", "--target", here(tmp_path), "--duty", "100Hz", narrow)
    found = json.loads(command("measure", "--target", here(tmp_path), "--duty", "100 hz", "--json", narrow).stdout)

    assert ", one run every 10 ms" in result.output.replace("\n", " ")
    assert found["period_ms"] == 10.0
    assert found["fingerprint"]["settings"]["period_ms"] == "10.0"  # figures of another load are other figures
    assert np.shape(found["files"][0]["processes"][0]["latency_ms"]) == (2, 4)


def test_a_sustained_load_has_a_course(tmp_path: Path, narrow: Path) -> None:
    result = command("measure", "--target", here(tmp_path), "--sustained", "1s", "--json", narrow)
    found = json.loads(result.stdout)
    (process,) = found["files"][0]["processes"]
    seconds = [second for second, _ in process["course"]]

    assert found["sustain_s"] == 1.0
    assert len(seconds) == len(process["latency_ms"]) > 2
    assert seconds == sorted(seconds)
    assert found["comparisons"] == []


def test_the_course_is_shown_in_tenths(tmp_path: Path, narrow: Path) -> None:
    lines = command("measure", "--target", here(tmp_path), "--sustained", "1 s", narrow).output.splitlines()
    start = next(number for number, line in enumerate(lines) if line.split() == ["time", "p50", "temperature"])
    rows = [line for line in lines[start + 1 :] if re.search(r"\d ms  (\d+ °C|not known)$", line)]

    assert 5 <= len(rows) <= 20


def wrong_command_line(*arguments: object) -> str:
    """What is said of a command line that ends with 2, before anything is measured."""
    result = command("measure", *arguments)

    assert (result.exit_code, result.stdout) == (2, "")
    return result.stderr.splitlines()[-1]


def test_a_sustained_load_takes_one_file(tmp_path: Path, narrow: Path, wide: Path) -> None:
    said = wrong_command_line("--target", here(tmp_path), "--sustained", "1s", narrow, wide)

    assert said == "Error: --sustained takes one file, because the heat of one would slow the next"


@pytest.mark.parametrize("rate", ["fast", "", "0Hz", "-3Hz", "nanHz", "infHz", "10 ms", "1e9"])
def test_a_rate_that_is_none_is_a_wrong_command_line(rate: str) -> None:
    said = wrong_command_line("--target", "local", f"--duty={rate}", "x.onnx")

    assert re.match("Error: Invalid value for '--duty': .*(write for example 10Hz|is out of range)", said)


@pytest.mark.parametrize("duration", ["long", "", "10", "0s", "-1s", "min", "nan s", "infmin", "3 weeks"])
def test_a_duration_that_is_none_is_a_wrong_command_line(duration: str) -> None:
    said = wrong_command_line("--target", "local", f"--sustained={duration}", "x.onnx")

    assert re.match("Error: Invalid value for '--sustained': .*(write for example 10min|is out of range)", said)


# ---------------------------------------------------------------- files that cannot be measured


BAD = {
    "no ONNX": (not_onnx(), "not an ONNX file that can be measured (Error parsing message"),
    "cut off": (conv_net(8)[:-100], "not an ONNX file that can be measured (Error parsing message"),
    "empty": (b"", "not an ONNX file that can be measured (it has no outputs)"),
    "external data": (external(), "not an ONNX file that can be measured (the ONNX file keeps weights in other files;"),
    "no fixed shape": (
        text("float[1,3,h,w] x"),
        "its input 'x' is 1x3x?x?; give its free sizes: --shape x=1x3x224x224",
    ),
    "no shape": (text("float[] x"), "its input 'x' has no shape; give one: --shape x=1x3x224x224"),
    "text": (
        text("string[1,3] x", "y = StringConcat (x, x)"),
        "its input 'x' is STRING; only float16, float32, float64, bool, int8,",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_file_to_be_measured_is_refused_with_the_reason(case: str) -> None:
    data, complaint = BAD[case]

    assert str(look(data)["refused"]).startswith(complaint)


@pytest.mark.parametrize(
    "case", [case if case in ("cut off", "no fixed shape") else pytest.param(case, marks=pytest.mark.slow) for case in BAD]
)
def test_what_is_no_file_to_be_measured_ends_with_20_and_one_line(tmp_path: Path, file: Files, case: str) -> None:
    data, complaint = BAD[case]
    path = file("bad", data)
    result = command("measure", "--target", here(tmp_path), path)

    assert result.exit_code == ModelError.exit_code
    assert result.stdout == ""
    assert one_line(result.stderr).startswith(f"{path}: {complaint}")


@pytest.mark.parametrize(("name", "reason"), [("none.onnx", "No such file or directory"), ("", "not a regular file")])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, reason: str) -> None:
    result = command("measure", "--target", here(tmp_path), "--json", tmp_path / name)
    message = f"{tmp_path / name}: cannot be read ({reason})"

    assert one_line(result.stderr) == message
    assert json.loads(result.stdout) == {"error": "ModelError", "message": message, "exit_code": 20}


@pytest.mark.parametrize("arguments", [("measure", "x.onnx"), ("measure", "--target", "local"), ("doctor",)])
def test_a_wrong_command_line_ends_with_2(arguments: tuple[str, ...]) -> None:
    assert command(*arguments).exit_code == 2


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        pytest.param(unknown_op(), "load-error", marks=pytest.mark.slow),
        pytest.param(fails_when_run(), "run-error", marks=pytest.mark.slow),
        (answers_nan(), "wrong-output"),
    ],
    ids=["unknown op", "fails when run", "NaN"],
)
def test_a_file_that_does_not_run_ends_with_40_and_its_verdict_and_the_other_is_measured(
    tmp_path: Path, narrow: Path, file: Files, data: bytes, kind: str
) -> None:
    bad = file("bad", data)
    result = command("measure", "--target", here(tmp_path), "--json", narrow, bad)
    sound, failed = json.loads(result.stdout)["files"]

    assert result.exit_code == 40
    assert failed["failure"]["kind"] == kind
    assert sound["latency_p50_ms"]["value"] > 0
    assert json.loads(result.stdout)["comparisons"] == []


def test_the_page_names_the_verdict_in_one_line(tmp_path: Path, file: Files) -> None:
    result = command("measure", "--target", here(tmp_path), file("bad", answers_nan()))

    assert result.exit_code == 40
    assert "bad.onnx: wrong-output: the output is not finite" in " ".join(result.output.split())
    assert "Traceback" not in result.output


# ---------------------------------------------------------------- over ssh


@needs_sshd
def test_over_ssh_it_is_the_device_that_measures_and_nothing_but_the_worker_stays_there(
    tmp_path: Path, board: Board, narrow: Path, wide: Path
) -> None:
    result = command("measure", "--target", there(tmp_path, board), "--json", narrow, wide)
    found = json.loads(result.stdout)

    assert result.exit_code == 0
    assert (found["fingerprint"]["mode"], found["fingerprint"]["device"]) == ("device", "board")
    assert found["comparisons"][0]["answer"] in ("slower", "undecided")  # undecided on a machine that others use
    assert (board.folder / "sshd.log").read_text().count("Accepted publickey") == 1
    assert until(lambda: not board.workers())
    assert not list(board.tmp.iterdir())
    assert {path.name.partition("-")[0] for path in board.cache.rglob("*") if path.is_file()} == {"lock", "worker"}


@needs_sshd
@pytest.mark.parametrize(
    ("happens", "code", "complaint"),
    [
        (lambda board: board.stop(), 41, "board: cannot be reached ("),
        (lambda board: board.known_hosts.write_text(""), 42, "board: its host key is unknown; connect once by hand"),
        (lambda board: board.python.unlink(), 43, "board: no interpreter '"),
    ],
    ids=["off", "unknown host key", "no interpreter"],
)
def test_a_device_that_cannot_be_had_ends_with_its_code_and_one_line(
    tmp_path: Path, board: Board, narrow: Path, happens: Callable[[Board], object], code: int, complaint: str
) -> None:
    happens(board)
    result = command("measure", "--target", there(tmp_path, board), narrow)

    assert result.exit_code == code
    assert result.stdout == ""
    assert one_line(result.stderr).startswith(complaint)


@needs_sshd
def test_a_device_that_another_job_measures_on_ends_with_44(tmp_path: Path, board: Board, narrow: Path) -> None:
    from pipeline.probe.ssh import SshProbe

    first = SshProbe(board.profile())
    result = command("measure", "--target", there(tmp_path, board), narrow)
    first.close()

    assert result.exit_code == 44
    assert one_line(result.stderr).startswith("board: another job is measuring on this device (process ")
