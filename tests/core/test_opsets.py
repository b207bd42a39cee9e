"""Which files a runtime reads, and which one is made for it."""

import onnx
import onnx.parser
import onnxruntime
import pytest

from pipeline.core.opsets import TRIED, FileFormat, choose_format, reads


def loads(opset: int, ir_version: int) -> bool:
    text = f'<ir_version: {ir_version}, opset_import: ["" : {opset}]> net (float[1] x) => (float[1] y) {{ y = Relu(x) }}'
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(
            onnx.parser.parse_model(text).SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception:
        return False
    return True


def test_the_table_is_right_about_the_runtime_that_is_installed() -> None:
    known = reads(onnxruntime.__version__)

    assert loads(known.opset, known.ir_version)
    if tuple(int(part) for part in onnxruntime.__version__.split(".")[:2]) <= TRIED:  # a newer one may well read more
        assert not loads(known.opset + 1, known.ir_version)
        assert not loads(known.opset, known.ir_version + 1)


@pytest.mark.parametrize(
    ("version", "opset", "ir_version"),
    [("1.15.1", 19, 9), ("1.17", 20, 9), ("1.22.1", 22, 10), ("1.24.4", 25, 13), ("1.31.1", 26, 13), ("2.0", 28, 14)],
)
def test_newer_runtimes_read_newer_files(version: str, opset: int, ir_version: int) -> None:
    assert (reads(version).opset, reads(version).ir_version) == (opset, ir_version)


@pytest.mark.parametrize("version", ["1.14.1", "0.9", "unknown"])
def test_a_runtime_that_is_too_old_is_refused_with_what_to_install(version: str) -> None:
    with pytest.raises(ValueError, match=rf"onnxruntime {version} is not supported; install 1\.15 or later"):
        reads(version)


def test_without_a_wish_the_file_is_the_plainest_and_may_grow_as_far_as_all_runtimes_read() -> None:
    assert choose_format(["1.31.1", "1.22.1"], None, None) == FileFormat(opset=18, ir_version=9, highest_opset=22)


def test_a_wish_is_granted_as_it_is() -> None:
    assert choose_format(["1.31.1", "1.22.1"], 20, 10) == FileFormat(opset=20, ir_version=10, highest_opset=20)


@pytest.mark.parametrize(
    ("opset", "ir_version", "said"),
    [
        (
            23,
            None,
            r"onnxruntime 1\.22\.1 reads files up to opset 22 \(got 23\); remove opset from the profile, set it to 22 or less, or install",
        ),
        (None, 11, r"onnxruntime 1\.22\.1 reads files up to ir_version 10 \(got 11\)"),
    ],
)
def test_a_wish_that_the_device_cannot_read_is_refused(opset: int | None, ir_version: int | None, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        choose_format(["1.31.1", "1.22.1"], opset, ir_version)
