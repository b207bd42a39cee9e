"""Prints the installed onnxruntime's version, and the highest opset and IR version that it loads. Run it with any release:

pip install --target old 'onnxruntime==1.17.*' 'numpy<2' && PYTHONPATH=old python benchmarks/opsets.py
"""

import onnxruntime


def varint(number: int) -> bytes:
    """A number as a protobuf varint: seven bits per byte."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def field(number: int, data: bytes) -> bytes:
    """A protobuf field of bytes."""
    return varint(number << 3 | 2) + varint(len(data)) + data


def whole(number: int, value: int) -> bytes:
    """A protobuf field with an integer."""
    return varint(number << 3) + varint(value)


def relu(opset: int, ir_version: int) -> bytes:
    """y = relu(x), written without the onnx package, because its older releases refuse newer versions."""
    kind = field(1, whole(1, 1) + field(2, field(1, whole(1, 1))))
    node = field(1, b"x") + field(2, b"y") + field(4, b"Relu")
    graph = (
        field(1, node) + field(2, b"g") + field(11, field(1, b"x") + field(2, kind)) + field(12, field(1, b"y") + field(2, kind))
    )
    return whole(1, ir_version) + field(7, graph) + field(8, field(1, b"") + whole(2, opset))


def loads(opset: int, ir_version: int) -> bool:
    """Whether onnxruntime can make a session from such a file."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(relu(opset, ir_version), options, providers=["CPUExecutionProvider"])
    except Exception:
        return False
    return True


def highest() -> tuple[int, int]:
    """(opset, IR version)"""
    opset = max(opset for opset in range(7, 60) if loads(opset, 8))
    return opset, max(ir_version for ir_version in range(3, 30) if loads(15, ir_version))


if __name__ == "__main__":
    print(onnxruntime.__version__, *highest())
