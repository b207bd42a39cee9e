"""Profiles: the shipped ones load, and every way to get one wrong is answered with file, line and what to write."""

import json
import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from pipeline.core.profile import Device, ProbeSettings, Profile, Runtime, available_cores, load_profile
from pipeline.errors import ProfileError, ThreadsError
from pipeline.foreign_text import escape_text
from pipeline.system.bundled import shipped_files

ROOT = Path(__file__).parents[2]
SHIPPED = shipped_files("hw_profiles", ".yaml")
BOARD = """\
device:
  name: a board
  architecture: aarch64
  cores: 4
  memory: 4 GiB
runtime:
  threads: 4
budget:
  latency_p50: 50 %
"""


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "board.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def refusal(path: Path) -> str:
    """What is said of the file, with FILE in the place of its path."""
    with pytest.raises(ProfileError) as refused:
        load_profile(str(path))
    return str(refused.value).replace(str(path), "FILE")


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_profile_loads_by_name_and_by_path(name: str) -> None:
    profile = load_profile(name)

    assert load_profile(str(SHIPPED[name])) == load_profile(f"{name}.yaml") == profile
    assert 1 <= profile.threads <= profile.cores
    assert profile.memory_bytes >= 2**28
    assert profile.architecture
    assert profile.measures_its_device == (name == "local")
    assert profile.probe.runs * profile.probe.processes >= 64


def test_a_profile_says_what_it_says(tmp_path: Path) -> None:
    profile = load_profile(str(write(tmp_path, BOARD)))

    assert (profile.device.name, profile.device.memory, profile.architecture) == ("a board", 4 * 2**30, "aarch64")
    assert (profile.cores, profile.threads, profile.measures_its_device) == (4, 4, False)
    assert profile.budget == {"latency_p50": "50 %"}
    with pytest.raises(ValueError, match="frozen"):
        profile.runtime.threads = 2  # type: ignore[misc]


def test_this_machine_is_asked_for_what_its_profile_leaves_out(tmp_path: Path) -> None:
    profile = load_profile(str(write(tmp_path, "device: {name: here, this_machine: true}\nruntime: {threads: all}\n")))

    assert profile.threads == profile.cores == len(available_cores())
    assert profile.measures_its_device
    assert profile.memory_bytes > 2**28


def test_a_device_behind_a_host_is_measured_itself(tmp_path: Path) -> None:
    profile = load_profile(str(write(tmp_path, BOARD.replace("  cores: 4\n", "  cores: 4\n  host: pi@board.local\n"))))

    assert profile.measures_its_device


@pytest.mark.parametrize("target", ["raspberrypi9", "nowhere/board.yaml", "hw_profiles", "", "x" * 300, "a\0b"])
def test_an_unknown_name_is_answered_with_the_known_ones(target: str) -> None:
    with pytest.raises(ProfileError) as refused:
        load_profile(target)

    assert str(refused.value) == (
        f"unknown profile '{escape_text(target)}'; give a YAML file or one of jetson-nano, local, raspberrypi, "
        f"raspberrypi-zero2w, raspberrypi5; or copy a similar one from {ROOT / 'hw_profiles'} and edit it"
    )


# (what of BOARD is replaced, by what, and what is said of it)
MISTAKES = {
    "unknown key, nearly known": ("  threads: 4", "  thread: 4", "FILE:7: unknown key 'runtime.thread'. Did you mean 'threads'?"),
    "unknown section": (
        "budget:",
        "wishes:",
        "FILE:8: unknown key 'wishes'. Known keys: budget, device, precision, probe, runtime.",
    ),
    "wrong type": (
        "cores: 4",
        "cores: four",
        "FILE:4: device.cores: input should be a valid integer (got 'four'). Write for example 'cores: 4'.",
    ),
    "number in quotes": (
        "cores: 4",
        'cores: "4"',
        "FILE:4: device.cores: input should be a valid integer (got '4'). Write for example 'cores: 4'.",
    ),
    "truth for a number": (
        "cores: 4",
        "cores: true",
        "FILE:4: device.cores: input should be a valid integer (got True). Write for example 'cores: 4'.",
    ),
    "out of range": (
        "cores: 4",
        "cores: 0",
        "FILE:4: device.cores: input should be greater than or equal to 1 (got 0). Write for example 'cores: 4'.",
    ),
    "wrong unit": (
        "memory: 4 GiB",
        "memory: 4 ms",
        "FILE:5: device.memory: expected a number in b or kb or mb or gb or kib or mib or gib (got '4 ms'); "
        "write for example 80 MiB. Write for example 'memory: 4 GiB'.",
    ),
    "no such choice": (
        "architecture: aarch64",
        "architecture: riscv",
        "FILE:3: device.architecture: input should be 'aarch64', 'armv7l' or 'x86_64' (got 'riscv'). "
        "Write for example 'architecture: aarch64'.",
    ),
    "missing key": (
        "  name: a board\n",
        "",
        "FILE:1: 'device.name' is missing. Write for example 'name: Raspberry Pi 4 Model B'.",
    ),
    "missing key of a board": (
        "  cores: 4\n",
        "",
        "FILE:1: device: 'cores' is missing; only a device with this_machine: true may leave it out.",
    ),
    "missing section": ("runtime:\n  threads: 4\n", "", "FILE:1: 'runtime' is missing."),
    "duplicate key": (
        "  cores: 4\n",
        "  cores: 4\n  memory: 1 GiB\n  cores: 8\n",
        "FILE:6: 'cores' occurs twice; keep one",
    ),
    "duplicate section": ("budget:", "runtime: {}\nbudget:", "FILE:8: 'runtime' occurs twice; keep one"),
    "this machine behind a host": (
        "  cores: 4\n",
        "  cores: 4\n  this_machine: true\n  host: pi@board\n",
        "FILE:1: device: this_machine and host exclude each other; remove one.",
    ),
    "a file that the device cannot read": (
        "  threads: 4",
        '  threads: 4\n  opset: 21\n  onnxruntime: "1.17.3"',
        "FILE:8: runtime.opset: onnxruntime 1.17.3 reads files up to opset 20 (got 21); remove opset from the profile, set it to 20 or less, or install "
        "a later onnxruntime on the device. Write for example 'opset: 18'.",
    ),
    "a runtime from before anything was known of it": (
        "  threads: 4",
        '  threads: 4\n  onnxruntime: "1.14.0"',
        "FILE:8: runtime.onnxruntime: onnxruntime 1.14.0 is not supported; install 1.15 or later on the device (got '1.14.0'). "
        "Write for example 'onnxruntime: \"1.22.1\"'.",
    ),
    "a format that the device cannot read": (
        "  threads: 4",
        '  threads: 4\n  ort_format: true\n  onnxruntime: "1.15.1"',
        "FILE:8: runtime.ort_format: onnxruntime 1.15.1 does not load the current ORT format; install 1.16 or later on the device, or write false "
        "(got True).",
    ),
    "int8 as a promise": (
        "budget:",
        "precision: [int8]\nbudget:",
        "FILE:8: precision: expected [fp32] or [fp32, int8] (got ['int8']). Write for example 'precision: [fp32, int8]'.",
    ),
    "a precision that is not offered": (
        "budget:",
        "precision: [fp32, fp16]\nbudget:",
        "FILE:8: precision.1: input should be 'fp32' or 'int8' (got 'fp16').",
    ),
    "a host that ssh would take for an option": (
        "  cores: 4\n",
        "  cores: 4\n  host: -oProxyCommand=reboot\n",
        "FILE:5: device.host: expected user@name, or a Host of your ssh configuration (got '-oProxyCommand=reboot'). "
        "Write for example 'host: pi@raspberrypi.local'.",
    ),
    "a pool beside a host": (
        "  cores: 4\n",
        "  cores: 4\n  host: pi@one\n  hosts: [pi@two, pi@three]\n",
        "FILE:1: device: host and hosts exclude each other; remove one.",
    ),
    "a pool of one board": (
        "  cores: 4\n",
        "  cores: 4\n  hosts: [pi@one, pi@one]\n",
        "FILE:5: device.hosts: expected at least two different boards; a single one is device.host (got ['pi@one', 'pi@one']). "
        "Write for example 'hosts: [pi@board-1.local, pi@board-2.local]'.",
    ),
    "a pool with an option of ssh": (
        "  cores: 4\n",
        "  cores: 4\n  hosts: [pi@one, -oProxyCommand=reboot]\n",
        "FILE:5: device.hosts: expected user@name, or a Host of your ssh configuration (got ['pi@one', '-oProxyCommand=reboot']). "
        "Write for example 'hosts: [pi@board-1.local, pi@board-2.local]'.",
    ),
    "every board without boards": (
        "  cores: 4\n",
        "  cores: 4\n  every_board: true\n",
        "FILE:1: device: every_board needs hosts, a list of boards; add it, or remove every_board.",
    ),
    "a version that YAML takes for a number": (
        "  threads: 4",
        "  onnxruntime: 1.22",
        "FILE:7: runtime.onnxruntime: input should be a valid string (got 1.22). Write for example 'onnxruntime: \"1.22.1\"'.",
    ),
    "threads in words": (
        "threads: 4",
        "threads: none",
        "FILE:7: runtime.threads: input should be a valid integer (got 'none'). Write for example 'threads: 4'.",
    ),
    "no threads": (
        "threads: 4",
        "threads: 0",
        "FILE:7: runtime.threads: expected a whole number of at least 1, or all (got 0). Write for example 'threads: 4'.",
    ),
    "threads above cores": (
        "threads: 4",
        "threads: 5",
        "FILE: runtime.threads is 5, but a board has 4 cores; write threads: 4 or less",
    ),
    "anchor": ("cores: 4", "cores: &n 4\n  cpu: *n", "FILE:5: anchors and aliases are not supported; write the value itself"),
    "anchor that holds itself": (
        "cores: 4",
        "cores: &n [*n]",
        "FILE:4: anchors and aliases are not supported; write the value itself",
    ),
    "bad indentation": ("  cores: 4", "   cores: 4", "FILE:4: not valid YAML: mapping values are not allowed here"),
    "tab": ("  cores: 4", "\tcores: 4", "FILE:4: not valid YAML: found character '\\t' that cannot start any token"),
    "tag of a program": (
        "name: a board",
        "name: !!python/object/apply:os.getcwd []",
        "FILE:2: not valid YAML: could not determine a constructor for the tag 'tag:yaml.org,2002:python/object/apply:os.getcwd'",
    ),
    "second document": ("budget:", "---\nbudget:", "FILE:8: not valid YAML: but found another document"),
    "budget in a list": (
        "  latency_p50: 50 %",
        "  - latency_p50: 50 %",
        "FILE:8: budget: input should be a valid dictionary (got [{'latency_p50': '50 %'}]). "
        "Write for example 'budget: {latency_p50: 50 %}'.",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_answered_with_its_place_and_what_to_write(tmp_path: Path, mistake: str) -> None:
    before, after, message = MISTAKES[mistake]
    assert BOARD.count(before) == 1

    assert refusal(write(tmp_path, BOARD.replace(before, after))) == message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "FILE: the file is empty; copy one from hw_profiles/ and edit it"),
        ("# only a comment\n", "FILE: the file is empty; copy one from hw_profiles/ and edit it"),
        ("just words", "FILE:1: expected keys and values (got str); copy a file from hw_profiles/"),
        ("- a\n- b\n", "FILE:1: expected keys and values (got list); copy a file from hw_profiles/"),
        ("device: {", "FILE:1: not valid YAML: expected the node content, but found '<stream end>'"),
        ("a: \x01", "FILE: not valid YAML: unacceptable character #x0001: special characters are not allowed"),
        ("#" * 65_537, "FILE: larger than 64 KiB; check that this is the right file"),
        ("[" * 20_000, "FILE:1: nested too deep"),
        ("name: Größe".encode("latin-1"), "FILE: not UTF-8 text"),
        (BOARD.encode("utf-16"), "FILE: not UTF-8 text"),
    ],
    ids=lambda value: str(value)[:12] if len(value) < 60_000 else "large",
)
def test_what_is_no_profile_at_all_is_refused_in_one_line(tmp_path: Path, content: str | bytes, message: str) -> None:
    assert refusal(write(tmp_path, content)) == message


def test_the_first_board_of_a_pool_does_the_work_of_a_single_one(tmp_path: Path) -> None:
    """and a profile that was written out is read again"""
    loaded = load_profile(str(write(tmp_path, BOARD.replace("  cores: 4\n", "  cores: 4\n  hosts: [pi@one, pi@two]\n"))))

    assert (loaded.device.host, loaded.device.hosts) == ("pi@one", ["pi@one", "pi@two"])
    assert loaded.measures_its_device
    assert Device.model_validate(loaded.device.model_dump() | {"memory": "4 GiB"}) == loaded.device


def test_threads_that_this_machine_lacks_are_a_class_of_their_own(tmp_path: Path) -> None:
    """also where the file claims more cores than there are: a figure of two threads is not one of nine hundred"""
    cores = len(available_cores())
    text = "device: {name: here, this_machine: true, cores: 1000}\nruntime: {threads: 900}\n"

    with pytest.raises(ThreadsError, match=re.escape(f"runtime.threads is 900, but here has {cores} core")):
        load_profile(str(write(tmp_path, text)))


def test_the_shipped_examples_of_other_budgets_are_true_keys() -> None:
    """what stands commented out at the end of a profile is a budget that can be set"""
    from pipeline.core.budget import known_metrics

    for path in SHIPPED.values():
        examples = re.findall(r"^#   (\w+): \d+ \w+$", path.read_text(), flags=re.MULTILINE)
        assert examples, path
        assert set(examples) <= set(known_metrics())


def test_the_page_on_usage_has_every_key_with_its_default() -> None:
    def default(section: type[BaseModel], key: str) -> str:
        if section is Device and key in ("name", "architecture", "cores", "memory"):
            return "required"  # but by a device that is this machine
        value = section.model_fields[key].get_default(call_default_factory=True)
        return f"`{value if isinstance(value, str) else json.dumps(value).replace(chr(34), '')}`"

    sections = {"device": Device, "runtime": Runtime, "probe": ProbeSettings}
    known = {f"{name}.{key}": default(section, key) for name, section in sections.items() for key in section.model_fields}
    known |= {key: default(Profile, key) for key in Profile.model_fields if key not in sections}

    page = (ROOT / "docs" / "profiles.md").read_text()
    assert dict(re.findall(r"^\| `([\w.]+)` \| (.+?) \|", page, flags=re.MULTILINE)) == known
