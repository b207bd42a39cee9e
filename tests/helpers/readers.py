"""Everything that reads foreign files: each reader with a valid file and the errors that it may raise."""

import datetime
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from helpers.graphs import conv_net, graph, profile, reference
from helpers.recorded import finished, planned, write_run
from pipeline.core.artifact import Artifact, dump_artifact, read_artifact
from pipeline.core.candidate import Candidate
from pipeline.core.latency_predictor import LatencyPredictor, Point, read_predictor
from pipeline.core.measurement import Measurement
from pipeline.core.plan import ChannelPlan
from pipeline.core.profile import load_profile
from pipeline.core.run import Trial, open_run, read_trials
from pipeline.data.preprocessing import Preprocessing
from pipeline.deploy.inventory import read_inventory
from pipeline.deploy.keys import TRUST_FILE, SigningKey, TrustedKey, new_key, read_trusted
from pipeline.deploy.manifest import CONTEXT, MANIFEST, SIGNATURE, DeviceKind, Terms, check_artifact, sign_artifact
from pipeline.errors import CompressError, DataError, KeysError, ManifestError, ModelError, ProbeError, ProfileError, RunError
from pipeline.graph.bounded_child import bytes_of
from pipeline.graph.given.door import Refused
from pipeline.graph.given.prepare import prepare
from pipeline.graph.given.read import REFUSED
from pipeline.graph.intake import look
from pipeline.packaging.pack import load_compressed
from pipeline.packaging.report.recorded_run import read_recorded_run
from pipeline.packaging.report.report import page_of_runs
from pipeline.probe.connection import Connection
from pipeline.probe.interface import MeasurementOptions
from pipeline.probe.simulated import SimulatedProbe
from pipeline.probe.worker_probe import WorkerProbe
from pipeline.remote.link import Link
from pipeline.system.files import sha256_bytes
from pipeline.system.npz_file import read_npz
from pipeline.system.strict_yaml import load_yaml
from pipeline.training.checkpoints import read_checkpoint

NOON = datetime.datetime(2026, 5, 1, 12, tzinfo=datetime.UTC)
LATER = NOON + datetime.timedelta(days=1)
JOB = {"model": "digits"}
PRIVATE = Ed25519PrivateKey.generate()
PUBLIC = PRIVATE.public_key().public_bytes_raw()
KEY = SigningKey(sha256_bytes(PUBLIC)[:16], "ours", PRIVATE)
TRUSTED = TrustedKey(key_id=KEY.key_id, name="ours", public_key=PUBLIC.hex(), not_before="2026-05-01T00:00:00Z")


@dataclass(frozen=True)
class Reader:
    """Reads the file `name` in a folder of its own. `write` writes a valid file there."""

    name: str
    write: Callable[[Path], object]
    read: Callable[[Path], object]
    error: type[CompressError]
    """This error or a subclass may be raised."""
    form: str = "bytes"

    def valid(self, folder: Path) -> bytes:
        """The content of a valid file. It also writes the files that belong to it."""
        self.write(folder / self.name)
        return (folder / self.name).read_bytes()


def measurement() -> Measurement:
    found = SimulatedProbe(profile(), reference()).measure(graph(conv_net()), MeasurementOptions(1))
    assert isinstance(found, Measurement)
    return found


def candidate() -> Candidate:
    facts = {"params": 10, "macs": 20, "file_size_bytes": 30, "structure": "s"}
    return Candidate(ChannelPlan.of({"conv1": 8}), **facts, measurement=measurement(), score=97.5)  # type: ignore[arg-type]


def write_journal(path: Path) -> None:
    path.unlink(missing_ok=True)
    with open_run(path.parent, JOB) as run:
        run.bind("device", measurement().fingerprint.facts)
        with run.phase("search"):
            run.record(Trial("search", 1, candidate(), 0.25))


def read_journal(path: Path) -> None:
    read_trials(path.parent)
    with open_run(path.parent, JOB):
        pass


def write_artifact(path: Path) -> None:
    path.write_bytes(dump_artifact(artifact()))


def artifact() -> Artifact:
    return Artifact(
        format=1,
        created="2026-05-01T12:00:00+00:00",
        command=("compress", "--target", "raspberrypi"),
        job=JOB,
        profile=profile().model_dump(mode="json"),
        data="digits",
        versions={"torch": "2.15.0"},
        files={},
        verdict="within",
        rows=(),
        dense=candidate(),
        shipped=candidate(),
        validation={"dense": 97.0},
        proofs=("same answers",),
        notices=(),
        widths={"conv1": (8, 16, 1)},
        frozen=(),
        phase_seconds={"search": 1.0},
    )


def write_calibration(path: Path) -> None:
    found = LatencyPredictor(measurement().fingerprint.facts, {}, "s", 20.0, None, (Point(0.5, 0.5), Point(1.0, 1.0)))
    path.write_text(json.dumps(asdict(found)))


def network() -> torch.nn.Sequential:
    return torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4, 2))


def write_plan(path: Path) -> None:
    safetensors.torch.save_file(network().state_dict(), path.parent / "weights.safetensors")
    path.write_text(json.dumps({"format": 1, "model": "net", "groups": {"0": {"width": 4, "channels": [0, 1, 2, 3]}}}))


def write_checkpoint(path: Path) -> None:
    torch.save(network().state_dict(), path)


def new_trust_file(path: Path) -> None:
    path.unlink(missing_ok=True)
    new_key(path.parent, "ours", NOON)


def write_manifest(path: Path) -> None:
    (path.parent / "model.onnx").write_bytes(b"the network")
    facts: dict[str, Any] = {"name": "digits", "version": 1, "architecture": "aarch64", "devices": ["*"]}
    sign_artifact(path.parent, KEY, Terms(created=NOON, expires=LATER, provenance={"verdict": "within"}, **facts))


def read_signed_manifest(path: Path) -> None:
    """Read a manifest that is correctly signed, whatever its content."""
    signature = KEY.sign(CONTEXT + path.read_bytes()).hex()
    seal = {"algorithm": "ed25519", "key_id": KEY.key_id, "signature": signature}
    (path.parent / SIGNATURE).write_text(json.dumps(seal, separators=(",", ":")))
    read_manifest(path)


def read_manifest(path: Path) -> None:
    check_artifact(path.parent, [TRUSTED], DeviceKind("a board", "aarch64"), None, NOON)


def read_onnx(path: Path) -> None:
    """Read the file like the process that inspects files. `look` returns a refusal as data, so that it can be sent."""
    looked = json.loads(json.dumps(look(path.read_bytes())))
    if "refused" in looked:
        raise ModelError(looked["refused"])
    assert all(min(each["shape"], default=1) >= 1 for each in looked["inputs"])


def read_given_network(path: Path) -> None:
    """Read the file like the process that prepares a network for pruning. Its opset is not converted, because onnx's converter may
    crash; the process is then asked again."""
    try:
        prepare(bytes_of(path, REFUSED), {}, 18, 23, convert=False)
    except Refused as reason:
        raise ModelError(f"{path}: {reason}") from None


def write_killed_run(path: Path) -> None:
    path.unlink(missing_ok=True)
    write_run(path.parent)


def write_finished_run(path: Path) -> None:
    path.write_bytes(dump_artifact(finished(planned(2.0, 97.0, kept=1.0), planned(0.8, 96.0))))


def read_recorded(path: Path) -> None:
    """Read a run directory and make its page, alone and beside itself."""
    run = read_recorded_run(path.parent)
    for runs in ([run], [run, run]):
        page = page_of_runs(runs)
        assert b"<script" not in page


HELLO = {
    "board": None,
    "cpu": "a processor",
    "architecture": "x86_64",
    "cores": [0],
    "memory_bytes": 2**30,
    "free_memory_bytes": 2**29,
    "free_disk_bytes": 2**30,
    "folder": "/tmp/compress-probe-x",
    "machine": "0123456789ab",
    "system": "Linux 6.1",
    "python": "3.11.2",
    "interpreter": "/usr/bin/python3",
    "numpy": "2.0.0",
    "onnxruntime": "1.22.0",
    "providers": ["CPUExecutionProvider"],
    "wheel": None,
}
STATE = {
    "temperature_c": 40.0,
    "clock_mhz": 1500.0,
    "clock_measured": True,
    "governor": "performance",
    "throttle_flags": 0,
    "throttle_count": 0,
    "load": 0.1,
    "free_memory_bytes": 2**29,
}
TIMED = {
    "session_creation_ms": 1.0,
    "first_run_ms": 1.0,
    "answer": None,
    "latency_ms": [[1.0, 1.5], [1.25, 1.0]],
    "reference_latency_ms": [[2.0, 2.5], [2.25, 2.0]],
    "course": [],
    "cpu_ms_per_run": 1.0,
    "preemptions": 0,
    "timed_ms": 10.0,
}
WEIGHED = {"baseline_bytes": 2**25, "session_bytes": 2**26, "peak_bytes": 2**26, "rss_bytes": None}
ANSWERS: list[dict[str, Any]] = [
    HELLO,
    {},
    {},
    {"processes": [TIMED], "memory": WEIGHED, "before": STATE, "after": STATE},
]
"""The answers to hello, the reference, the input, and the measurement."""


def read_answers(path: Path) -> dict[str, object]:
    """Read a worker's answers, one per line. See `read_raw_answers`."""
    lines = path.read_bytes().split(b"\n")
    raw = path.with_name("raw")
    raw.write_bytes(b"".join(len(line).to_bytes(4, "big") + bytes(8) + line for line in lines))
    return read_raw_answers(raw)


def read_raw_answers(path: Path) -> dict[str, object]:
    """Use a real link to a process that sends the file's content as its answers. Returns some of the resulting facts."""
    start = lambda: Link(["sh", "-c", 'cat "$1"; exec timeout 0.5 cat > /dev/null', "sh", str(path)])  # noqa: E731
    connection = Connection("board", start, lambda loss: ProbeError(f"lost: {loss}"), 0.0, lambda _: None)
    probe = WorkerProbe(profile(), reference(), connection, lambda _: None)
    try:
        found = probe.measure(graph(conv_net()), MeasurementOptions(1))
        if isinstance(found, Measurement):
            assert found.latency_p50_ms.value >= 0
            assert found.reference_p50_ms
            return {"machine": found.fingerprint.machine}
        return {"machine": probe.fingerprint.machine, "ends": found.detail[-13:], "length": len(found.detail)}
    finally:
        probe.close()


def json_lines(values: list[dict[str, Any]]) -> bytes:
    return b"\n".join(json.dumps(value).encode() for value in values)


BOARD = Path(__file__).parents[2] / "hw_profiles" / "raspberrypi.yaml"
IMAGES = "size: 224\nresize: 256\nmean: [0.485, 0.456, 0.406]\nstd: [0.229, 0.224, 0.225]\naugment: [crop, flip]\n"
FLEET = """\
devices:
  - {name: kitchen, profile: raspberrypi, host: pi@kitchen.local}
  - {name: cellar, profile: raspberrypi5}
groups:
  ground-floor: [kitchen]
"""
READERS = {
    "profile": Reader(
        "board.yaml", lambda path: path.write_text(BOARD.read_text()), lambda path: load_profile(str(path)), ProfileError, "yaml"
    ),
    "preprocessing": Reader(
        "preprocessing.yaml",
        lambda path: path.write_text(IMAGES),
        lambda path: load_yaml(path, Preprocessing, DataError),
        DataError,
        "yaml",
    ),
    "inventory": Reader(
        "fleet.yaml", lambda path: path.write_text(FLEET), lambda path: read_inventory(path, "ground-floor"), ProfileError, "yaml"
    ),
    "trust file": Reader(TRUST_FILE, new_trust_file, lambda path: read_trusted(path.parent), KeysError, "yaml"),
    "manifest": Reader(MANIFEST, write_manifest, read_manifest, ManifestError, "json"),
    "signed manifest": Reader(MANIFEST, write_manifest, read_signed_manifest, ManifestError, "json"),
    "signature": Reader(SIGNATURE, lambda path: write_manifest(path.with_name(MANIFEST)), read_manifest, ManifestError, "json"),
    "journal": Reader("journal.jsonl", write_journal, read_journal, RunError, "json lines"),
    "artifact": Reader("artifact.json", write_artifact, lambda path: read_artifact(path.parent), RunError, "json"),
    "plan": Reader("plan.json", write_plan, lambda path: load_compressed(network(), path.parent), CompressError, "json"),
    "calibration": Reader("board.calibration.json", write_calibration, read_predictor, ProbeError, "json"),
    "safetensors": Reader(
        "net.safetensors", lambda path: safetensors.torch.save_file(network().state_dict(), path), read_checkpoint, ModelError
    ),
    "checkpoint": Reader("net.pt", write_checkpoint, read_checkpoint, ModelError),
    "arrays": Reader(
        "inputs.npz", lambda path: np.savez_compressed(path, x=np.eye(3, dtype=np.float32), n=np.int64(1)), read_npz, DataError
    ),
    "run": Reader("journal.jsonl", write_killed_run, read_recorded, RunError, "json lines"),
    "finished run": Reader("artifact.json", write_finished_run, read_recorded, RunError, "json"),
    "given network": Reader("net.onnx", lambda path: path.write_bytes(conv_net()), read_given_network, ModelError),
    "network": Reader("model.onnx", lambda path: path.write_bytes(conv_net()), read_onnx, ModelError),
    "answers": Reader("answers", lambda path: path.write_bytes(json_lines(ANSWERS)), read_answers, ProbeError, "json lines"),
}
