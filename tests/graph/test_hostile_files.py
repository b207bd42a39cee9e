"""Files made to do harm: none opens another file, fills the memory, or ends otherwise than in a refusal that says so."""

import json
import os
import resource
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from helpers.bounded import bounded
from helpers.graphs import HEAD, conv_net
from helpers.places import without_heartbeat
from helpers.profiles import command, here
from helpers.workers import Worker

from pipeline.core.profile import load_profile
from pipeline.errors import ModelError, ProfileError, UnsafeWeights, WeightsError
from pipeline.graph.intake import look, read_network
from pipeline.training.checkpoints import read_checkpoint

MIB = 2**20


def cases(all_cases: Iterable[str], *default: str) -> list[object]:
    """All of them, of which those that are not named here are slow."""
    return [case if case in default else pytest.param(case, marks=pytest.mark.slow) for case in all_cases]


SECRET = b"\x2a" * 4096


# ONNX files that reach for other files


def reaching(location: str, **entries: str) -> bytes:
    """x + w, with w kept in the file `location`"""
    model = onnx.parser.parse_model(f"{HEAD} net (float[1,1024] x) => (float[1,1024] y) {{ y = Add (x, w) }}")
    tensor = model.graph.initializer.add(name="w", dims=[1, 1024], data_type=onnx.TensorProto.FLOAT)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=value)
    return model.SerializeToString()


def without_saying_so(location: str) -> bytes:
    """external_data filled in, and data_location left at its default"""
    model = onnx.load_model_from_string(reaching(location))
    model.graph.initializer[0].ClearField("data_location")
    return model.SerializeToString()


def in_training_info(location: str) -> bytes:
    model = onnx.load_model_from_string(conv_net())
    model.training_info.add().initialization.initializer.append(
        onnx.load_model_from_string(reaching(location)).graph.initializer[0]
    )
    return model.SerializeToString()


def in_a_default_of_a_function(location: str) -> bytes:
    model = onnx.load_model_from_string(conv_net())
    function = model.functions.add(name="f", domain="own")
    function.attribute_proto.add(name="a", type=onnx.AttributeProto.TENSOR).t.CopyFrom(
        onnx.load_model_from_string(reaching(location)).graph.initializer[0]
    )
    return model.SerializeToString()


def in_a_branch_of_nothing_but_a_sparse_weight(location: str) -> bytes:
    model = onnx.load_model_from_string(conv_net())
    branch = model.graph.node[0].attribute.add(name="branch", type=onnx.AttributeProto.GRAPH).g
    branch.sparse_initializer.add().values.CopyFrom(onnx.load_model_from_string(reaching(location)).graph.initializer[0])
    return model.SerializeToString()


REACHING: dict[str, Callable[[Path], bytes]] = {
    "beside it": lambda folder: reaching("secret.bin"),
    "upwards": lambda folder: reaching("../secret.bin"),
    "upwards in disguise": lambda folder: reaching("a/../../secret.bin"),
    "absolute": lambda folder: reaching(str(folder / "secret.bin")),
    "a symbolic link": lambda folder: reaching("symbolic.bin"),
    "a hard link": lambda folder: reaching("hard.bin"),
    "a device": lambda folder: reaching("/dev/zero"),
    "a pipe": lambda folder: reaching("pipe"),
    "nothing": lambda folder: reaching(""),
    "attribute injection": lambda folder: reaching("secret.bin", __class__="x", __dict__="y", save_path="z"),
    "numbers that are none": lambda folder: reaching("secret.bin", offset="-1", length="1e9"),
    "past the end": lambda folder: reaching("secret.bin", offset=str(2**62), length=str(2**62)),
    "without saying so": lambda folder: without_saying_so("secret.bin"),
    "in training info": lambda folder: in_training_info("secret.bin"),
    "in a default of a function": lambda folder: in_a_default_of_a_function("secret.bin"),
    "in a branch": lambda folder: in_a_branch_of_nothing_but_a_sparse_weight("secret.bin"),
}


@pytest.fixture
def tempting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the files that the networks reach for."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.bin").write_bytes(SECRET)
    (tmp_path / "symbolic.bin").symlink_to("secret.bin")
    os.link(tmp_path / "secret.bin", tmp_path / "hard.bin")
    os.mkfifo(tmp_path / "pipe")
    return tmp_path


@pytest.mark.parametrize("case", REACHING)
def test_a_network_that_reaches_for_another_file_is_refused_before_anything_is_opened(tempting: Path, case: str) -> None:
    before = sorted(tempting.iterdir())
    found = look(REACHING[case](tempting))

    assert str(found["refused"]).endswith("the ONNX file keeps weights in other files; only single files are accepted)")
    assert sorted(tempting.iterdir()) == before


@pytest.mark.parametrize("case", cases(REACHING, "upwards", "a pipe"))
def test_the_command_refuses_a_network_that_reaches_for_another_file(tempting: Path, case: str) -> None:
    (tempting / "net.onnx").write_bytes(REACHING[case](tempting))
    before = sorted(tempting.iterdir())
    result = command("measure", "--target", here(tempting), tempting / "net.onnx")

    assert result.exit_code == ModelError.exit_code
    assert result.stderr.endswith("the ONNX file keeps weights in other files; only single files are accepted)\n")
    assert sorted(tempting.iterdir()) == sorted([*before, tempting / "here.yaml"])


# ONNX files that ask for more than there is


def varint(number: int) -> bytes:
    data = bytearray()
    while number > 127:
        data.append(number & 127 | 128)
        number >>= 7
    return bytes([*data, number])


def message(field: int, body: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(body)) + body


def shaped(*dims: int | str) -> bytes:
    text = f"{HEAD} net (float[{','.join(map(str, dims))}] x) => (float[N] y) {{ y = Relu (x) }}"
    return onnx.parser.parse_model(text).SerializeToString()


def of_rank(rank: int) -> bytes:
    return shaped(*[1] * rank)


def of_no_known_type() -> bytes:
    model = onnx.load_model_from_string(conv_net())
    model.graph.input[0].type.tensor_type.elem_type = 99
    return model.SerializeToString()


def weight_of(dims: list[int]) -> bytes:
    """an integer weight that says it has these dimensions, and holds eight bytes"""
    model = onnx.load_model_from_string(conv_net())
    model.graph.initializer.add(name="w", dims=dims, data_type=onnx.TensorProto.INT64, raw_data=bytes(8))
    return model.SerializeToString()


HEAVY: dict[str, tuple[Callable[[], bytes], str]] = {
    "an input of a terabyte": (
        lambda: shaped(1, 512, 512, 1_000_000),
        "more than 134217728 values together; the largest is 'x' with 1x512x512x1000000",
    ),
    "an input beyond every number": (lambda: shaped(2**62, 2**62, 2**62), "more than 134217728 values together"),
    "an input of 40 dimensions": (lambda: of_rank(40), "its input 'x' has 40 dimensions; at most 32 can be measured"),
    "an input below nothing": (lambda: shaped(1, -5, 4), "its input 'x' is 1x?x4; give its free sizes: --shape x=1x224x4"),
    "an input of no known type": (of_no_known_type, "its input 'x' is of type 99; only float16,"),
    "a weight of minus five": (lambda: weight_of([-5]), "not an ONNX file that can be measured"),
    "a hundred graphs in each other": (
        lambda: nested(100),
        "not an ONNX file that can be measured",
    ),
    "a length beyond the end": (lambda: b"\x3a" + varint(2**40) + b"x", "not an ONNX file that can be measured"),
    "forty million empty nodes": (lambda: message(7, b"\x0a\x00" * 40_000_000), "not an ONNX file that can be measured"),
}


def nested(depth: int) -> bytes:
    """graph in attribute in node in graph, and so on"""
    body = b""
    for _ in range(depth):
        body = message(1, message(5, message(6, body)))
    return message(7, body)


@pytest.mark.parametrize("case", [case for case in HEAVY if case != "forty million empty nodes"])
def test_a_network_that_asks_for_more_than_there_is_is_refused(case: str) -> None:
    data, said = HEAVY[case]

    assert said in str(look(data())["refused"])


@pytest.mark.parametrize("case", cases(HEAVY, "a length beyond the end", "forty million empty nodes"))
def test_it_is_read_in_a_process_of_its_own_that_has_little_memory_and_time(tmp_path: Path, case: str) -> None:
    data, said = HEAVY[case]
    (tmp_path / "net.onnx").write_bytes(data())

    # the nodes are read until the time is up; whatever else is refused is refused at once
    with pytest.raises(ModelError) as refused:
        read_network(tmp_path / "net.onnx", time_limit_s=2 if case == "forty million empty nodes" else 60)
    assert said in str(refused.value)


@pytest.mark.parametrize("kind", ["sparse terabyte", "pipe", "folder", "endless device"])
def test_what_is_no_file_of_sound_size_is_refused_unread(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "net.onnx"
    if kind == "sparse terabyte":
        path.touch()
        os.truncate(path, 2**40)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")

    with pytest.raises(ModelError, match=r"larger than 2 GiB|not a regular file|Is a directory"):
        read_network(path)


# weights


def safetensors_file(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


SAFETENSORS: dict[str, bytes] = {
    "nothing": b"",
    "seven bytes": b"\0" * 7,
    "a header of 2**63 bytes": safetensors_file(b"{}", length=2**63),
    "a header of 100 MB": safetensors_file(b"{}", length=10**8 + 1),
    "a header past the end": safetensors_file(b"{}", length=1000),
    "a header that is no JSON": safetensors_file(b"hello"),
    "a header that is no text": safetensors_file(b"\xff\xfe\xfd"),
    "a header that is a list": safetensors_file([1, 2]),
    "a deep header": safetensors_file(b'{"a":' * 50_000),
    "offsets past the end": safetensors_file({"w": tensor([4], 0, 16)}, bytes(8)),
    "offsets the wrong way round": safetensors_file({"w": tensor([1], 4, 0)}, bytes(4)),
    "offsets that overlap": safetensors_file({"v": tensor([1], 0, 4), "w": tensor([1], 2, 6)}, bytes(6)),
    "a hole": safetensors_file({"v": tensor([1], 0, 4), "w": tensor([1], 8, 12)}, bytes(12)),
    "more behind": safetensors_file({"w": tensor([1], 0, 4)}, bytes(400)),
    "a shape that overflows": safetensors_file({"w": tensor([2**62, 2**62], 0, 4)}, bytes(4)),
    "a shape of less than nothing": safetensors_file({"w": tensor([-1], 0, 4)}, bytes(4)),
    "a shape that does not fit": safetensors_file({"w": tensor([3], 0, 4)}, bytes(4)),
    "a type that is none": safetensors_file({"w": tensor([1], 0, 4, "F33")}, bytes(4)),
}


@pytest.mark.parametrize("case", SAFETENSORS)
def test_a_malformed_safetensors_file_is_refused(tmp_path: Path, case: str) -> None:
    (tmp_path / "net.safetensors").write_bytes(SAFETENSORS[case])

    with pytest.raises(WeightsError, match="not a readable safetensors file"):
        read_checkpoint(tmp_path / "net.safetensors")


READ_WEIGHTS = """
import sys
from pathlib import Path
from pipeline.training.checkpoints import read_checkpoint
try:
    read_checkpoint(Path(sys.argv[1]))
except Exception as problem:
    print(type(problem).__name__, problem)
"""


def test_a_safetensors_file_of_a_terabyte_is_refused_where_there_is_no_room_for_it(tmp_path: Path) -> None:
    """the disk holds nothing of it but its header"""
    path = tmp_path / "net.safetensors"
    path.write_bytes(safetensors_file({"w": tensor([2**38], 0, 2**40)}))
    os.truncate(path, path.stat().st_size + 2**40)

    assert bounded(READ_WEIGHTS, path, megabytes=8192).startswith(f"WeightsError {path}: not a readable safetensors file (")


def test_a_checkpoint_that_was_packed_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    """64 MiB of zeros in less than one"""
    torch.save({"w": torch.zeros(2**24)}, tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "net.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for entry in plain.infolist():
            packed.writestr(entry.filename, plain.read(entry))

    assert (tmp_path / "net.pt").stat().st_size < MIB
    assert read_checkpoint(tmp_path / "plain.pt")[""]["w"].shape == (2**24,)
    with pytest.raises(UnsafeWeights, match="a compressed archive"):
        read_checkpoint(tmp_path / "net.pt")


# YAML bombs


def laughs() -> str:
    """ten of ten of ten ..., nine times: 300 bytes that would be a billion words"""
    lines = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    return "\n".join(lines)


BOMBS = {
    "a billion laughs": laughs(),
    "merged keys": "a: &a {b: 1}\nc: {<<: [*a, *a]}\n",
    "an anchor that holds itself": "a: &a [*a]\n",
    "a merge without an anchor": "device: {<<: {<<: {<<: {name: x}}}}\n",
    "sixty thousand brackets": "[" * 60_000,
    "sixty thousand braces": "{a: " * 15_000,
    "keys that are lists": "? [a, b]\n: c\n",
    "keys that are maps": "? {a: b}\n: c\n",
    "a number of sixty thousand digits": "device: " + "9" * 60_000,
    "a number to the base of sixty": "device: " + ":".join(["59"] * 20_000),
    "a binary that is none": "device: !!binary '?'",
    "a set": "device: !!set {a, b}",
    "an ordered map": "device: !!omap [a: 1]",
    "a python object": "device: !!python/object/apply:os.system ['touch /tmp/x']",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_yaml_bomb_does_not_go_off(tmp_path: Path, bomb: str) -> None:
    (tmp_path / "board.yaml").write_text(BOMBS[bomb])

    with pytest.raises(ProfileError):
        load_profile(str(tmp_path / "board.yaml"))


# all of these together, in little memory


BOUNDED = """
import resource, sys
from pathlib import Path
from pipeline.errors import CompressError
from pipeline.core.profile import load_profile
def used():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
folder = Path(sys.argv[1])
refused, before = 0, used()
for path in sorted(folder.glob("*.yaml")):
    try:
        load_profile(str(path))
    except CompressError:
        refused += 1
print(refused, used() - before)
"""


def test_yaml_bombs_take_no_memory_worth_speaking_of(tmp_path: Path) -> None:
    """in a process of its own, with an end to its address space; the largest file has 64 KiB"""
    for number, bomb in enumerate(BOMBS.values()):
        (tmp_path / f"{number}.yaml").write_text(bomb)

    refused, grown_bytes = map(int, bounded(BOUNDED, tmp_path, megabytes=1024).split())

    assert refused == len(BOMBS)
    assert grown_bytes < 128 * MIB


# names that a shell or a terminal would take for something else


NAMES = ["a;touch x", "$(touch x)", "`touch x`", "a\nb", "-rf", "--version", "a b", "'", '"', "*", "&", "|x", "\x1b[2J", "ä"]


@pytest.mark.parametrize("name", cases(NAMES, "$(touch x)", "a\nb", "-rf", "ä"), ids=ascii)
def test_a_file_of_any_name_is_measured_or_refused_and_nothing_else_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """relative, as it was typed, behind the -- that names with a dash need"""
    target = here(tmp_path)
    work = tmp_path / "work"
    work.mkdir()
    (work / name).write_bytes(b"no network")
    monkeypatch.chdir(work)
    result = command("measure", "--target", target, "--", name)

    assert result.exit_code == ModelError.exit_code
    said = without_heartbeat(result.stderr)
    assert said.count("\n") == 1
    assert said.strip().isprintable()
    assert [path.name for path in work.iterdir()] == [name]


# requests to the worker


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    worker = Worker(tmp_path)
    yield worker
    worker.link.close()


def framed(text: bytes, size: int | None = None, blob_bytes: int = 0) -> bytes:
    return struct.pack(">IQ", len(text) if size is None else size, blob_bytes) + text


REQUESTS: dict[str, bytes] = {
    "not framed": b"GET / HTTP/1.1\r\nHost: board\r\n\r\n",
    "a text of 4 GiB": framed(b"{}", size=2**32 - 1),
    "bytes without end": framed(b'{"do": "make", "name": "x", "slices": {}}', blob_bytes=2**64 - 1),
    "no JSON": framed(b"hello"),
    "no UTF-8": framed(b"\xff\xfe"),
    "deep": framed(b"[" * 100_000),
    "a list": framed(b"[]"),
    "nothing to do": framed(b"{}"),
    "something unknown": framed(b'{"do": "reboot"}'),
    "a list to do": framed(b'{"do": ["hello"]}'),
    "a name with a path": framed(b'{"do": "put", "name": "../../x"}', blob_bytes=4) + b"data",
    "a name of another kind": framed(b'{"do": "put", "name": 7}', blob_bytes=4) + b"data",
    "a measurement of nothing": framed(b'{"do": "measure"}'),
    "slices of nothing": framed(b'{"do": "make", "name": "' + b"0" * 64 + b'", "slices": {}}'),
}


@pytest.mark.parametrize("case", REQUESTS)
def test_a_malformed_request_ends_in_a_failure_or_with_the_worker_and_leaves_nothing(tmp_path: Path, case: str) -> None:
    """The whole text goes to a real worker, and then the pipe is closed."""
    script = Path(sys.modules["pipeline.probe.worker_probe"].__file__ or "").with_name("worker.py")
    folder = tmp_path / "folder"
    folder.mkdir()

    def bound() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (1024 * MIB, 1024 * MIB))

    done = subprocess.run(
        [sys.executable, str(script), "serve"],
        input=REQUESTS[case],
        capture_output=True,
        env={**os.environ, "TMPDIR": str(folder)},
        preexec_fn=bound,
        timeout=60,
        check=False,
    )

    assert done.returncode == 0
    assert b"Traceback" not in done.stderr
    assert list(folder.iterdir()) == []
    assert sorted(tmp_path.iterdir()) == [folder]
    if done.stdout:
        assert "failure" in json.loads(done.stdout[12:])


def test_a_worker_goes_on_after_a_name_that_leads_elsewhere(worker: Worker) -> None:
    outside = worker.folder.parent / "outside"
    refused = worker.ask({"do": "put", "name": f"../../../{outside.name}"}, b"data")

    assert refused["failure"][0] == "run-error"
    assert not outside.exists()
    assert worker.put(np.zeros(4, np.float32).tobytes())
