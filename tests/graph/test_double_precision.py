"""An ONNX file in double precision: its outputs are those of torch in double precision."""

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from pipeline.core.onnx_outputs import all_outputs
from pipeline.graph.double_precision import double_outputs

GENERATOR = torch.Generator().manual_seed(0)
X, W = torch.rand(1, 2, 8, 8, generator=GENERATOR), torch.rand(3, 2, 3, 3, generator=GENERATOR)


def file(text: str) -> bytes:
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 18]> net (float[1,2,8,8] x) => ({text}')
    model.graph.initializer.append(numpy_helper.from_array(W.numpy(), "w"))
    return model.SerializeToString()


def test_cancelling_constants_lose_no_digits_between_operators_of_single_precision() -> None:
    """Conv and Resize exist in single precision only, Erf is found by trying; the constants are written in four ways"""
    net = file("""float[1,3,12,12] y) {
        c = Conv (x, w)  e = Erf (c)
        large = Constant <value_float = 100000.0> ()  a = Add (e, large)  b = Sub (a, large)
        size = Constant <value_ints = [1, 3, 6, 6]> ()  zeros = ConstantOfShape (size)  d = Add (b, zeros)
        two = Constant <value = int64 {2}> ()  factor = Cast <to = 1> (two)  f = Mul (d, factor)
        none = Constant <value_floats = [0.0]> ()  g = Add (f, none)
        scales = Constant <value = float[4] {1.0, 1.0, 2.0, 2.0}> ()  y = Resize <mode = "nearest"> (g, , scales)
    }""")
    small = 2 * torch.erf(torch.conv2d(X.double(), W.double()))
    expected = torch.nn.functional.interpolate(small, scale_factor=2).numpy()
    found = double_outputs(net, [[X.numpy()], [X.numpy()]])

    assert found
    assert found[0].shape == (2, 1, 3, 12, 12)
    assert found[0].dtype == np.float32
    assert np.abs(found[0] - expected).max() < 1e-6
    assert np.abs(all_outputs(net, X.numpy())[0] - expected).max() > 1e-4


def test_outputs_of_integers_stay_integers() -> None:
    found = double_outputs(file("int64[1,8,8] y) { y = ArgMax <axis = 1, keepdims = 0> (x) }"), [[X.numpy()]])

    assert found
    assert found[0][0].tolist() == X.argmax(1).tolist()


def test_a_file_that_does_not_run_has_no_outputs() -> None:
    assert double_outputs(file('float[1,2,8,8] y) { y = Resize <mode = "none"> (x, , w) }'), [[X.numpy()]]) is None
