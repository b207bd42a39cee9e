"""compress measure on files from anywhere: any inputs, real values, layers, and providers that leave nodes to others."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers.graphs import HEAD, TWO_INPUTS, two_by_two
from helpers.places import one_line
from helpers.profiles import command, here, there
from helpers.providers import IDLE, needs_idle, needs_openvino, openvino_problem
from helpers.sshd import Board, needs_sshd

from pipeline.core.measurement import Failure, Measurement
from pipeline.core.profile import Profile, load_profile
from pipeline.core.providers import CPU, OPENVINO
from pipeline.measuring.measure_files import HowToMeasure, measure_files


@pytest.fixture
def two_inputs(tmp_path: Path) -> Path:
    """picture: float32, count: int64"""
    path = tmp_path / "two.onnx"
    path.write_bytes(two_by_two())
    return path


def test_a_file_with_two_inputs_is_measured_with_real_values_and_its_layers_are_timed(tmp_path: Path, two_inputs: Path) -> None:
    np.savez(tmp_path / "real.npz", picture=TWO_INPUTS[0], count=TWO_INPUTS[1])
    profile = here(tmp_path, final_processes=1)
    result = command("measure", "--target", profile, "--inputs", tmp_path / "real.npz", "--profile-layers", "--json", two_inputs)
    (found,) = json.loads(result.stdout)["files"]

    assert result.exit_code == 0
    assert found["inputs"] == [
        {"name": "picture", "type": "float32", "shape": [1, 3, 16, 16]},
        {"name": "count", "type": "int64", "shape": [1]},
    ]
    assert found["latency_p50_ms"]["value"] > 0
    assert "Conv" in {node["operator"] for node in found["layers"]["nodes"]}
    assert [group["name"] for group in found["layers"]["by_provider"]] == [CPU]
    assert sum(group["nodes"] for group in found["layers"]["by_operator"]) == len(found["layers"]["nodes"])


def test_the_page_lists_inputs_and_layers(tmp_path: Path, two_inputs: Path) -> None:
    lines = command("measure", "--target", here(tmp_path, final_processes=1), "--profile-layers", two_inputs).output.splitlines()
    rows = [line.split() for line in lines if line.strip()]

    assert ["input", "picture:", "float32", "1x3x16x16"] in rows
    assert ["count:", "int64", "1"] in rows
    assert ["node", "operator", "provider", "time", "share"] in rows
    assert ["operator", "nodes", "time", "share"] in rows
    assert ["provider", "nodes", "time", "share"] in rows
    assert any(row[:2] == ["Conv", "2"] and row[-1] == "%" for row in rows)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--shape", "image=1x3x8x8"), "has no input 'image' (--shape); its inputs are picture, count"),
        (("--shape", "picture=1x3x8x8"), "its input 'picture' is 1x3x16x16, which --shape 1x3x8x8 does not fit"),
    ],
)
def test_sizes_that_do_not_fit_end_with_20(tmp_path: Path, two_inputs: Path, options: tuple[str, ...], reason: str) -> None:
    result = command("measure", "--target", here(tmp_path), *options, two_inputs)

    assert (result.exit_code, one_line(result.stderr)) == (20, f"{two_inputs}: {reason}")


def test_values_of_another_shape_end_with_20_and_name_their_file(tmp_path: Path, two_inputs: Path) -> None:
    path = tmp_path / "real.npz"
    np.savez(path, picture=np.zeros((1, 3, 8, 8), np.float32), count=TWO_INPUTS[1])
    result = command("measure", "--target", here(tmp_path), "--inputs", path, two_inputs)

    assert result.exit_code == 20
    assert one_line(result.stderr) == f"{two_inputs}: its input 'picture' is 1x3x16x16, which {path} 1x3x8x8 does not fit"


def test_a_file_of_values_that_is_none_ends_with_30(tmp_path: Path, two_inputs: Path) -> None:
    path = tmp_path / "real.npz"
    path.write_text("picture: 3")
    result = command("measure", "--target", here(tmp_path), "--inputs", path, two_inputs)

    assert result.exit_code == 30
    assert one_line(result.stderr).startswith(f"{path}: not a file of named arrays; write it with numpy.savez(")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--everywhere", "a.onnx", "b.onnx"), "--everywhere takes one file"),
        (("--everywhere", "--sustained", "1s", "a.onnx"), "--everywhere and --sustained exclude each other; give one of them"),
        (
            ("--everywhere", "--profile-layers", "a.onnx"),
            "--everywhere and --profile-layers exclude each other; give one of them",
        ),
        (
            ("--inputs", "a.npz", "--shape", "1x3x8x8", "a.onnx"),
            "--inputs and --shape exclude each other: the arrays of --inputs have the shapes",
        ),
    ],
)
def test_options_that_exclude_each_other_are_a_wrong_command_line(options: tuple[str, ...], reason: str) -> None:
    result = command("measure", "--target", "local", *options)

    assert (result.exit_code, result.stderr.splitlines()[-1]) == (2, f"Error: {reason}")


def test_outputs_of_any_kind_are_no_obstacle(tmp_path: Path) -> None:
    """x, z -> a sequence of two arrays of different lengths"""
    path = tmp_path / "sequence.onnx"
    text = f"{HEAD} net (float[2] x, float16[3] z) => (seq(float[N]) y) {{ a = Cast <to=1> (z) y = SequenceConstruct (x, a) }}"
    path.write_bytes(onnx.parser.parse_model(text).SerializeToString())
    (found,) = measure_files(load_profile(here(tmp_path, final_processes=1)), [path]).files

    assert isinstance(found.measured, Measurement)


def idle(profile: Profile) -> Profile:
    """with a provider that runs no node"""
    return profile.model_copy(update={"runtime": profile.runtime.model_copy(update={"execution_provider": IDLE})})


@needs_idle
def test_a_figure_of_a_provider_that_left_nodes_to_another_one_is_refused_unless_that_is_allowed(
    tmp_path: Path, two_inputs: Path
) -> None:
    profile = idle(load_profile(here(tmp_path, final_processes=1)))
    (refused,) = measure_files(profile, [two_inputs]).files
    (allowed,) = measure_files(profile, [two_inputs], HowToMeasure(allow_fallback=True)).files

    assert isinstance(refused.measured, Failure)
    assert refused.measured.kind == "fallback"
    assert refused.measured.detail == refused.fallback
    assert str(refused.fallback).startswith(f"{CPU} ran ")
    assert isinstance(allowed.measured, Measurement)
    assert dict(allowed.measured.fingerprint.settings)["allow_fallback"] == "True"
    assert str(allowed.fallback).startswith(f"{CPU} ran ")


@needs_openvino
def test_openvino_in_a_profile_is_measured(tmp_path: Path, two_inputs: Path) -> None:
    profile = here(tmp_path, {"execution_provider": OPENVINO}, final_processes=1)
    result = command("measure", "--target", profile, "--json", two_inputs)
    (found,) = json.loads(result.stdout)["files"]

    assert result.exit_code == 0
    assert {node["provider"] for node in found["layers"]["nodes"]} == {OPENVINO}
    assert "fallback" not in found


@pytest.mark.skipif(not openvino_problem(), reason="OpenVINO can be used here")
def test_openvino_that_cannot_be_used_ends_with_40_and_what_to_do(tmp_path: Path, two_inputs: Path) -> None:
    result = command("measure", "--target", here(tmp_path, {"execution_provider": OPENVINO}), two_inputs)

    assert result.exit_code == 40
    assert OPENVINO in one_line(result.stderr)
    assert one_line(result.stderr).endswith("change runtime.execution_provider")


@needs_sshd
@pytest.mark.slow
def test_over_ssh_the_layers_are_timed_on_the_device(tmp_path: Path, board: Board, two_inputs: Path) -> None:
    profile = there(tmp_path, board, final_processes=1)
    result = command("measure", "--target", profile, "--profile-layers", "--json", two_inputs)
    found = json.loads(result.stdout)

    assert result.exit_code == 0
    assert found["fingerprint"]["mode"] == "device"
    assert len(found["files"][0]["layers"]["nodes"]) >= 6
