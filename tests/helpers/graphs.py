"""Small ONNX files, sound and broken, and what is needed to measure them."""

from collections.abc import Callable

import numpy as np
import onnx

from pipeline.core.feeds import Feeds
from pipeline.core.profile import Device, ProbeSettings, Profile, Runtime
from pipeline.graph.structure import structure
from pipeline.probe.interface import Graph, Reference

HEAD = '<ir_version: 9, opset_import: ["" : 18]>'
INPUT = np.random.default_rng(0).standard_normal((1, 3, 16, 16)).astype(np.float32)


def conv_net(width: int = 8, out: int = 5, seed: int = 0) -> bytes:
    """x -> conv 3x3 (width) -> relu -> conv 3x3 (width) -> mean -> linear (out)"""
    weights = {"w1": (width, 3, 3, 3), "w2": (width, width, 3, 3), "w3": (width, out)}
    text = f"""{HEAD} net (float[1,3,16,16] x) => (float[1,{out}] y) {{
        a = Conv <pads=[1,1,1,1]> (x, w1)
        b = Relu (a)
        c = Conv <pads=[1,1,1,1]> (b, w2)
        d = GlobalAveragePool (c)
        e = Flatten (d)
        y = Gemm (e, w3)
    }}"""
    return with_weights(text, weights, seed)


TWO_INPUTS = (INPUT, np.array([2], dtype=np.int64))


def two_by_two(width: int = 8) -> bytes:
    """picture -> conv 3x3 (width) -> relu -> conv 3x3 (4) -> map; mean of the map x count (int64) -> scaled"""
    text = f"""{HEAD} net (float[1,3,16,16] picture, int64[1] count) => (float[1,4,16,16] map, float[1,4] scaled) {{
        a = Conv <pads=[1,1,1,1]> (picture, w1)
        b = Relu (a)
        map = Conv <pads=[1,1,1,1]> (b, w2)
        c = GlobalAveragePool (map)
        d = Flatten (c)
        e = Cast <to=1> (count)
        scaled = Mul (d, e)
    }}"""
    return with_weights(text, {"w1": (width, 3, 3, 3), "w2": (4, width, 3, 3)}, seed=0)


def heavy_net(megabytes: int) -> bytes:
    """x -> mean -> linear with `megabytes` of weights -> linear(5). It needs little computation and much memory."""
    hidden = megabytes * 2**20 // (4 * 3)
    text = f"""{HEAD} net (float[1,3,16,16] x) => (float[1,5] y) {{
        a = GlobalAveragePool (x)
        b = Flatten (a)
        c = Gemm (b, w1)
        d = ReduceMean <keepdims=1> (c)
        y = Gemm (d, w2)
    }}"""
    return with_weights(text, {"w1": (3, hidden), "w2": (1, 5)}, seed=0)


def with_weights(text: str, shapes: dict[str, tuple[int, ...]], seed: int) -> bytes:
    model = onnx.parser.parse_model(text)
    generator = np.random.default_rng(seed)
    for name, shape in shapes.items():
        values = generator.standard_normal(shape, dtype=np.float32) / np.sqrt(np.prod(shape[1:]))
        model.graph.initializer.append(onnx.numpy_helper.from_array(values.astype(np.float32), name))
    return model.SerializeToString()


def not_onnx() -> bytes:
    """The content of a failed download."""
    return b"<html>404 not found</html>" * 10


def unknown_op() -> bytes:
    """x -> frobnicate -> y"""
    text = f"{HEAD} net (float[1,3,16,16] x) => (float[1,3,16,16] y) {{ y = Frobnicate (x) }}"
    return onnx.parser.parse_model(text).SerializeToString()


def fails_when_run() -> bytes:
    """x reshaped to as many values as its largest value says: 768 values do not fit into 3."""
    text = f"""{HEAD} net (float[1,3,16,16] x) => (float[N] y) {{
        a = ReduceMax <keepdims=0> (x)
        b = Cast <to=7> (a)
        one = Constant <value_ints=[1]> ()
        c = Reshape (b, one)
        y = Reshape (x, c)
    }}"""
    return onnx.parser.parse_model(text).SerializeToString()


def answers_nan() -> bytes:
    """(x - x) / (x - x)"""
    text = f"{HEAD} net (float[1,3,16,16] x) => (float[1,3,16,16] y) {{ a = Sub (x, x)  y = Div (a, a) }}"
    return onnx.parser.parse_model(text).SerializeToString()


def graph(data: bytes, expected: Callable[[], Feeds] | None = None) -> Graph:
    """`data` with the hash of its structure, or of its bytes if it has no structure."""
    try:
        return Graph(data, structure(onnx.load_model_from_string(data)), expected)
    except Exception:
        return Graph(data, f"none {hash(data)}", expected)


def reference(data: bytes | None = None) -> Reference:
    return Reference(graph(data or conv_net()), INPUT)


def profile(*, this_machine: bool = True, cores: int | None = None, runtime: Runtime | None = None, **probe: float) -> Profile:
    """A machine that is quick to probe: one process, eight runs, and no doubt about noise unless requested."""
    quick = {"warmup_runs": 1, "runs": 8, "block_runs": 4, "processes": 1, "noise_limit": 1.0, "retries": 0}
    device = Device(name="bench", this_machine=this_machine, architecture="x86_64", cores=cores or 1, memory="1 GiB")  # type: ignore[arg-type]
    return Profile(device=device, runtime=runtime or Runtime(threads=1), probe=ProbeSettings(**{**quick, **probe}))  # type: ignore[arg-type]
