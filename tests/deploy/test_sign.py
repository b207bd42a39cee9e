"""`compress sign`: an artifact of a run, its manifest filled in from its evidence."""

import datetime
import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from helpers.small_net import SMALL_NET

from pipeline.cli.main import compress as command
from pipeline.compress import compress
from pipeline.core.profile import load_profile
from pipeline.deploy.keys import read_trusted
from pipeline.deploy.manifest import DeviceKind, Manifest, check_artifact
from pipeline.deploy.sign import ensure_signed
from pipeline.errors import OlderVersion
from pipeline.stages.job import Job
from pipeline.training.settings import FinetuneSettings

PI4 = DeviceKind(load_profile("raspberrypi").device.name, "aarch64")


@pytest.fixture(scope="module")
def artifact_of_a_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network, not measured and hardly trained."""
    job = Job(
        target="raspberrypi",
        model=SMALL_NET,
        out=tmp_path_factory.mktemp("run") / "out",
        dry_run=True,
        searcher="random",
        trials=2,
        supernet_steps=4,
        finetuning=FinetuneSettings(epochs=1, learning_rate=0.05),
    )
    return compress(job).folder


@pytest.fixture
def artifact(artifact_of_a_run: Path, tmp_path: Path) -> Path:
    shutil.copytree(artifact_of_a_run, tmp_path / "artifact")
    return tmp_path / "artifact"


def run(*arguments: object, keys: Path) -> Result:
    return CliRunner().invoke(command, [str(each) for each in arguments], env={"COMPRESS_KEYS_DIR": str(keys)})


def check(artifact: Path, keys: Path, installed: int | None = None) -> Manifest:
    return check_artifact(artifact, read_trusted(keys), PI4, installed, datetime.datetime.now(datetime.UTC))


def test_the_first_signature_needs_no_key_and_says_that_it_made_one(artifact: Path, tmp_path: Path) -> None:
    done = run("sign", artifact, keys=tmp_path / "keys")
    (key,) = read_trusted(tmp_path / "keys")

    assert done.exit_code == 0
    assert (
        done.stderr
        == f"note: created the signing key {key.key_id} in {tmp_path}/keys; back up that folder, and see `compress keys --help`\n"
    )
    assert "of 'small', 9 files\n" in done.stdout


def test_what_is_left_out_comes_from_the_artifact_the_clock_and_the_profile(artifact: Path, tmp_path: Path) -> None:
    before = datetime.datetime.now(datetime.UTC)
    done = run("sign", artifact, "--json", keys=tmp_path / "keys")
    manifest = check(artifact, tmp_path / "keys")

    assert json.loads(done.stdout) == {"digest": manifest.digest, "manifest": manifest.model_dump(mode="json")}
    assert manifest.name == "small"
    assert manifest.version >= int(before.timestamp())
    assert manifest.fits(PI4)
    assert set(manifest.files) == {
        *("artifact.json", "model.onnx", "plan.json", "report.html", "weights.safetensors"),
        *("serving.json", "infer.py", "golden-inputs.npy", "golden-outputs.npy"),
    }
    assert manifest.provenance["measured"] == "simulated"


def test_nothing_of_the_command_line_or_the_machine_is_in_the_manifest(artifact: Path, tmp_path: Path) -> None:
    run("sign", artifact, keys=tmp_path / "keys")

    assert str(tmp_path) not in (artifact / "manifest.json").read_text()
    assert check(artifact, tmp_path / "keys").provenance.keys() == {"compressed", "made_by", "measured", "structure", "verdict"}


def test_every_default_can_be_said(artifact: Path, tmp_path: Path) -> None:
    run("keys", "new", "release", keys=tmp_path / "keys")
    flags = (
        "--name",
        "door",
        "--version",
        "3",
        "--device",
        "Raspberry*",
        "--device",
        "Jetson*",
        "--days",
        "2",
        "--key",
        "release",
    )
    done = run("sign", artifact, *flags, keys=tmp_path / "keys")
    manifest = check(artifact, tmp_path / "keys")

    assert done.exit_code == 0
    assert (manifest.name, manifest.version, manifest.devices) == ("door", 3, ("Raspberry*", "Jetson*"))
    assert manifest.expires[:10] == f"{datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=2):%Y-%m-%d}"


def test_what_is_signed_later_is_newer(artifact: Path, tmp_path: Path) -> None:
    run("sign", artifact, "--version", "5", keys=tmp_path / "keys")
    with pytest.raises(OlderVersion):
        check(artifact, tmp_path / "keys", installed=6)

    run("sign", artifact, keys=tmp_path / "keys")

    assert check(artifact, tmp_path / "keys", installed=6)


def test_signing_for_shipping_leaves_a_signed_artifact_as_it_is(artifact: Path, tmp_path: Path) -> None:
    said: list[str] = []
    now = datetime.datetime.now(datetime.UTC)
    ensure_signed(artifact, tmp_path / "keys", now, said.append)
    first = check(artifact, tmp_path / "keys")
    ensure_signed(artifact, tmp_path / "keys", now + datetime.timedelta(days=1), said.append)

    assert check(artifact, tmp_path / "keys") == first
    assert [line.partition(" key ")[0].partition(",")[0] for line in said] == [
        "created the signing",
        f"signed as version {first.version} of 'small'",
    ]


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (("--key", "nobody"), 79, "no key 'nobody' that can sign"),
        (("--name", "a\nb"), 70, "cannot be signed: name: expected printable text"),
        (("--device", ""), 70, "cannot be signed: devices.0"),
        (("--version", "0"), 2, "0 is not in the range"),
        (("--days", "0"), 2, "0 is not in the range"),
    ],
)
def test_a_flag_that_makes_no_sense_is_refused_and_nothing_signed(
    artifact: Path, tmp_path: Path, flags: tuple[str, ...], code: int, said: str
) -> None:
    done = run("sign", artifact, *flags, keys=tmp_path / "keys")

    assert done.exit_code == code
    assert said in done.stderr
    assert not (artifact / "manifest.json").exists()


def test_a_folder_without_evidence_is_not_signed(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"")
    done = run("sign", tmp_path, keys=tmp_path / "keys")

    assert done.exit_code == 50
    assert done.stderr == f"compress: {tmp_path}: no artifact in this folder (No such file or directory)\n"


def test_an_artifact_that_was_changed_is_not_signed(artifact: Path, tmp_path: Path) -> None:
    (artifact / "model.onnx").write_bytes(b"another")
    done = run("sign", artifact, keys=tmp_path / "keys")

    assert done.exit_code == 50
    assert "model.onnx: missing, or changed since it was written" in done.stderr


def test_a_profile_in_the_evidence_that_is_none_is_refused(artifact: Path, tmp_path: Path) -> None:
    path = artifact / "artifact.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"profile": {"device": 7}}))
    done = run("sign", artifact, keys=tmp_path / "keys")

    assert done.exit_code == 70
    assert "the profile has no device.architecture" in done.stderr
