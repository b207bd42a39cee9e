"""Pooling, resizing and sampling: each equals ONNX Runtime, or the reference evaluator where the runtime is wrong or lacks the op."""

from typing import Any

import numpy as np
import pytest
from helpers.rebuilt import op_difference, random, runtime_difference

X = random(2, 3, 7, 8)


POOLS: list[dict[str, Any]] = [
    {"kernel_shape": [2, 3]},
    {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
    {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 1, 1, 0]},
    {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1},
    {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1},
    {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"},
    {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_LOWER"},
]


@pytest.mark.parametrize(
    "attributes",
    [*POOLS, {"kernel_shape": [3, 2], "dilations": [2, 2]}, {"kernel_shape": [2, 2], "pads": [1, 1, 1, 1], "strides": [3, 3]}],
)
def test_max_pool(attributes: dict[str, Any]) -> None:
    assert runtime_difference("MaxPool", X, opset=12, **attributes) == 0


@pytest.mark.parametrize("attributes", POOLS[:3])
def test_positions_of_a_max_pool(attributes: dict[str, Any]) -> None:
    assert runtime_difference("MaxPool", X, opset=12, outputs=2, **attributes) == 0


@pytest.mark.parametrize("attributes", POOLS)
@pytest.mark.parametrize("count", [0, 1])
def test_average_pool(attributes: dict[str, Any], count: int) -> None:
    assert runtime_difference("AveragePool", X, opset=19, count_include_pad=count, **attributes) < 1e-6


@pytest.mark.parametrize("count", [0, 1])
def test_average_pool_with_dilations(count: int) -> None:
    options = {"kernel_shape": [3, 2], "dilations": [2, 2], "pads": [1, 1, 1, 1], "count_include_pad": count}

    assert op_difference("AveragePool", X, opset=19, **options) < 1e-6


@pytest.mark.parametrize("p", [1, 2])
def test_lp_pool(p: int) -> None:
    assert op_difference("LpPool", X, opset=18, kernel_shape=[2, 2], strides=[2, 1], p=p) < 1e-6


@pytest.mark.parametrize("op", ["GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"])
@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 3, 4, 5), (2, 3, 2, 3, 4)])
def test_global_pool(op: str, shape: tuple[int, ...]) -> None:
    assert runtime_difference(op, random(*shape)) < 1e-6


@pytest.mark.parametrize("size", [1, 3])
def test_local_response_normalisation(size: int) -> None:
    assert runtime_difference("LRN", random(2, 6, 3, 3), size=size, alpha=0.1, beta=0.6, bias=1.5) < 1e-6


WHERE = ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"]


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("sizes", [(2, 3, 14, 16), (2, 3, 5, 3), (2, 3, 10, 8), (2, 3, 1, 1)])
def test_resize_to_sizes(mode: str, where: str, sizes: tuple[int, ...]) -> None:
    assert runtime_difference("Resize", X, None, None, np.array(sizes), mode=mode, coordinate_transformation_mode=where) < 2e-5


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("rounding", ["floor", "ceil", "round_prefer_floor", "round_prefer_ceil"])
@pytest.mark.parametrize("scale", [2.0, 0.5, 1.5])
def test_resize_to_the_nearest(rounding: str, where: str, scale: float) -> None:
    scales = np.array([1, 1, scale, scale], np.float32)

    assert (
        runtime_difference("Resize", X, None, scales, mode="nearest", coordinate_transformation_mode=where, nearest_mode=rounding)
        == 0
    )


@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("scale", [1.7, 0.6])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"antialias": 1},
        {"coordinate_transformation_mode": "half_pixel_symmetric"},
        {"exclude_outside": 1},
        {"cubic_coeff_a": -0.5},
    ],
)
def test_resize_by_scales(mode: str, scale: float, options: dict[str, Any]) -> None:
    scales = np.array([scale, 1.3], np.float32)
    options = {"axes": [2, 3], **options} if mode == "cubic" or "exclude_outside" not in options else {"axes": [2, 3]}

    assert runtime_difference("Resize", X, None, scales, opset=19, mode=mode, **options) < 1e-5


@pytest.mark.parametrize("policy", ["not_larger", "not_smaller"])
def test_resize_that_keeps_the_aspect_ratio(policy: str) -> None:
    assert (
        op_difference(
            "Resize", X, None, None, np.array([10, 9]), opset=18, mode="linear", axes=[2, 3], keep_aspect_ratio_policy=policy
        )
        < 1e-6
    )


@pytest.mark.parametrize(("op", "opset"), [("Upsample", 9), ("Resize", 10)])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("scale", [2.0, 1.5])
def test_the_older_forms_of_resize(op: str, opset: int, mode: str, scale: float) -> None:
    scales = np.array([1, 1, scale, scale], np.float32)

    assert runtime_difference(op, X, scales, opset=opset, mode=mode) < 1e-5


@pytest.mark.parametrize("mode", ["linear", "nearest", "cubic"])
@pytest.mark.parametrize("border", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("corners", [0, 1])
def test_grid_sample(mode: str, border: str, corners: int) -> None:
    grid = np.clip(random(2, 4, 5, 2, seed=1), -1.45, 1.45)  # no ties between neighbours

    assert runtime_difference("GridSample", X, grid, opset=20, mode=mode, padding_mode=border, align_corners=corners) < 1e-5


@pytest.mark.parametrize("kind", ["half_pixel", "output_half_pixel"])
@pytest.mark.parametrize("samples", [0, 2])
def test_regions_of_images(kind: str, samples: int) -> None:
    boxes = np.array([[0.5, 1.0, 6.0, 5.0], [1.2, 0.3, 4.0, 7.0], [0.0, 0.0, 9.0, 9.0]], np.float32)
    images = np.array([1, 0, 1], np.int64)
    size = {"output_height": 3, "output_width": 2, "spatial_scale": 0.8, "sampling_ratio": samples}

    assert runtime_difference("RoiAlign", X, boxes, images, opset=16, coordinate_transformation_mode=kind, **size) < 1e-5


@pytest.mark.parametrize(
    ("size", "options"),
    [((5, 6), {}), ((7, 6), {"strides": [2, 2]}), ((6, 6), {"pads": [1, 0, 1, 0]}), ((7, 7), {"dilations": [2, 2]})],
)
def test_columns_to_an_image(size: tuple[int, int], options: dict[str, list[int]]) -> None:
    """Col2Im is the sum of the places that im2col copies a value to; torch calls it fold"""
    spread, steps, pads = options.get("dilations", [1, 1]), options.get("strides", [1, 1]), options.get("pads", [0] * 4)
    positions = [(size[i] + pads[i] + pads[i + 2] - spread[i] - 1) // steps[i] + 1 for i in range(2)]
    columns = random(2, 3 * 4, positions[0] * positions[1])

    assert runtime_difference("Col2Im", columns, np.array(size), np.array([2, 2]), opset=18, **options) < 1e-5
