"""Configurations of ssh that come with a profile: found beside it, and refused when they would run a program here."""

import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cli.main import compress
from pipeline.core.profile import Device, load_profile
from pipeline.deploy.inventory import read_inventory
from pipeline.errors import ProfileError
from pipeline.remote.diagnosis import diagnosis
from pipeline.remote.link import LinkLost
from pipeline.remote.ssh_arguments import manual_command, ssh_arguments
from pipeline.remote.ssh_keys import locked_key
from pipeline.system.ssh_config import refuse_commands

needs_ssh = pytest.mark.skipif(shutil.which("ssh") is None, reason="no OpenSSH here")

RUNS_A_PROGRAM = [
    "ProxyCommand touch {mark}",
    "  proxycommand=touch {mark}",
    '"ProxyCommand" touch {mark}',
    "KnownHostsCommand /usr/bin/touch {mark}",
    "LocalCommand touch {mark}",
    "PermitLocalCommand yes",
    'Match exec "touch {mark}"',
    "Match host board !exec 'touch {mark}'",
    'Match "exec" "touch {mark}"',
    'Match ex"ec" "touch {mark}"',
    "PKCS11Provider /tmp/evil.so",
    "SecurityKeyProvider /tmp/evil.so",
    "SmartcardDevice /tmp/evil.so",
    "XAuthLocation /tmp/evil",
    "OptionOfTheFuture touch {mark}",
    "Include more_%d",
]
HARMLESS = """\
# a board behind another
Host board
\tHostName 192.168.7.2
    User=pi
    Port = 2222
    IdentityFile "~/.ssh/board key"
    IdentitiesOnly yes
    ProxyJump jump@example.org
    ProxyCommand none
    KnownHostsCommand none
    RemoteCommand tmux
Match host board user pi
    ServerAliveInterval 5
"""


def write_profile(folder: Path, config: str, name: str = "./ssh_config") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ssh_config").write_text(config)
    path = folder / "pi.yaml"
    path.write_text(
        f"device:\n  name: a board\n  architecture: aarch64\n  cores: 4\n  memory: 4 GiB\n  host: board\n  ssh_config: {name}\n"
        "runtime:\n  threads: 1\n"
    )
    return path


@pytest.mark.parametrize("line", RUNS_A_PROGRAM)
def test_a_profile_s_configuration_that_runs_a_program_is_refused_and_nothing_runs(tmp_path: Path, line: str) -> None:
    mark = tmp_path / "ran"
    path = write_profile(tmp_path, f"Host board\n{line.format(mark=mark)}\n")

    result = CliRunner().invoke(compress, ["doctor", "--target", str(path)])

    assert result.exit_code == ProfileError.exit_code
    assert f"{tmp_path / 'ssh_config'}:2" in result.stderr
    assert not mark.exists()


def test_the_same_configuration_is_taken_when_the_command_line_asks_for_it(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    path = write_profile(tmp_path, f"Host board\nProxyCommand touch {mark}\n")

    result = CliRunner().invoke(compress, ["doctor", "--target", str(path), "--allow-ssh-commands"])

    assert result.exit_code != ProfileError.exit_code
    assert mark.exists() == (shutil.which("ssh") is not None)


def test_options_that_run_nothing_are_taken(tmp_path: Path) -> None:
    assert load_profile(str(write_profile(tmp_path, HARMLESS))).device.host == "board"


def test_what_an_included_file_runs_is_refused_too(tmp_path: Path) -> None:
    (tmp_path / "more").write_text("Host *\n  LocalCommand reboot\n")
    path = write_profile(tmp_path, f"Include {tmp_path}/mo?e\n")

    with pytest.raises(ProfileError, match="more:2: 'localcommand' can run a program"):
        load_profile(str(path))


def test_files_that_include_each_other_are_refused(tmp_path: Path) -> None:
    path = write_profile(tmp_path, f"Include {tmp_path}/ssh_config\n")

    with pytest.raises(ProfileError, match="includes are nested too deep"):
        load_profile(str(path))


def test_the_user_s_own_configuration_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    own = tmp_path / ".ssh" / "config"
    own.parent.mkdir()
    own.write_text("Host board\n  ProxyCommand nc %h %p\n")

    refuse_commands(Path("~/.ssh/config"))
    refuse_commands(own)


@given(
    text=st.text(st.sampled_from('\n =\t"#aMatchexecProyCmndI/*%$\\'), max_size=80)
    | st.binary(max_size=80).map(lambda raw: raw.decode("latin-1"))
)
def test_any_text_is_a_configuration_that_is_taken_or_refused_by_name(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "arbitrary_ssh_config"
    path.write_bytes(text.encode("latin-1"))

    try:
        refuse_commands(path)
    except ProfileError as problem:
        refusal = str(problem)
    else:
        refusal = ""

    assert str(path) in refusal or "proxycommand " not in text.lower().replace("none", "")


@needs_ssh
@given(
    before=st.sampled_from(["", " ", "\t", "\f", "\r", '"']),
    between=st.sampled_from([" ", "=", " = ", "\t", '" ', "\f", "\v", "\xa0", "\r"]),
)
def test_whatever_ssh_reads_as_a_command_is_refused(tmp_path_factory: pytest.TempPathFactory, before: str, between: str) -> None:
    """ssh itself, which only prints what it has read, is the oracle"""
    path = tmp_path_factory.getbasetemp() / "spelt_ssh_config"
    path.write_bytes(f"{before}ProxyCommand{between}true\n".encode("latin-1"))
    read = subprocess.run(["ssh", "-G", "-F", str(path), "board"], capture_output=True, text=True, check=False).stdout

    if "proxycommand true" in read:
        with pytest.raises(ProfileError):
            refuse_commands(path)


def test_a_path_in_a_profile_starts_from_the_profile_s_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_profile(tmp_path / "boards", HARMLESS)
    monkeypatch.chdir(tmp_path)

    assert load_profile("boards/pi.yaml").device.ssh_config == "boards/ssh_config"
    monkeypatch.chdir(tmp_path / "boards")
    assert load_profile("pi.yaml").device.ssh_config == "./ssh_config"


def test_a_path_in_a_profile_of_an_inventory_starts_from_the_profile_s_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_profile(tmp_path / "boards", HARMLESS)
    (tmp_path / "fleet.yaml").write_text("devices:\n  - {name: kitchen, profile: boards/pi.yaml, host: pi@kitchen}\n")
    monkeypatch.chdir("/")

    (target,) = read_inventory(tmp_path / "fleet.yaml")

    assert target.profile.device.ssh_config == str(tmp_path / "boards" / "ssh_config")


@pytest.mark.parametrize(
    ("host", "advice"),
    [
        ("board:2222", "write ssh://board:2222"),
        ("pi@board:2222", "write ssh://pi@board:2222"),
        ("[::1]", "write ::1, and set a port as Port"),
        ("pi@[::1]:22", "write pi@::1, and set a port as Port"),
        ("ssh://[::1]:22", "write ::1, and set a port as Port"),
        ("$(reboot)", "expected user@name"),
        ("a`reboot`", "expected user@name"),
        ("a;reboot", "expected user@name"),
    ],
)
def test_a_host_that_ssh_would_misread_is_refused_with_what_to_write(host: str, advice: str) -> None:
    with pytest.raises(ValueError, match=advice):
        device(host)


@needs_ssh
@pytest.mark.parametrize(
    ("host", "meant"),
    [("ssh://pi@board:2222", ("pi", "board", "2222")), ("pi@::1", ("pi", "::1", "22")), ("pi@board", ("pi", "board", "22"))],
)
def test_a_host_is_taken_as_ssh_takes_it(host: str, meant: tuple[str, str, str]) -> None:
    asked = subprocess.run(
        [*ssh_arguments(device(host, "/dev/null")), "-G", "--", host], capture_output=True, text=True, check=False
    )
    found = dict(line.split(" ", 1) for line in asked.stdout.splitlines() if " " in line)

    assert (found["user"], found["hostname"], found["port"]) == meant


@needs_ssh
def test_options_for_a_user_s_own_sessions_do_not_reach_a_program_s(tmp_path: Path) -> None:
    config = tmp_path / "ssh_config"
    config.write_text(
        "Host *\n  RemoteCommand tmux\n  RequestTTY force\n  LocalForward 8080 localhost:80\n  SessionType none\n  StdinNull yes\n"
    )

    asked = subprocess.run(
        [*ssh_arguments(device("board", str(config))), "-G", "--", "board"], capture_output=True, text=True, check=False
    )
    options = dict(line.split(" ", 1) for line in asked.stdout.splitlines() if " " in line)

    assert asked.stderr == ""
    assert options.get("remotecommand", "none") == "none"
    assert (options["requesttty"], options["sessiontype"], options["stdinnull"]) == ("false", "default", "no")
    assert options["clearallforwardings"] == "yes"


@pytest.fixture
def locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Device:
    """A board whose key has a passphrase, where no agent runs."""
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret words", "-f", str(key)], check=True)
    (tmp_path / "ssh_config").write_text(f"Host board\n  IdentityFile {key}\n")
    return device("board", str(tmp_path / "ssh_config"))


@needs_ssh
def test_a_key_with_a_passphrase_and_no_agent_is_told_apart_from_a_key_that_is_not_installed(locked: Device) -> None:
    key = locked_key(locked)
    told = str(diagnosis(LinkLost("board: Permission denied (publickey).", 255), locked))

    assert key
    assert f"ssh-add {key}" in told
    assert "ssh-copy-id" not in told


def test_advice_to_connect_by_hand_names_the_configuration_that_the_profile_names() -> None:
    board = device("board", "boards/ssh_config")

    assert manual_command(board) == "ssh -F boards/ssh_config board"
    assert "check that it is on and that 'ssh -F boards/ssh_config board true' works" in str(
        diagnosis(LinkLost("no route", 255), board)
    )


def device(host: str, config: str | None = None) -> Device:
    return Device.model_validate(
        {"name": "a board", "architecture": "aarch64", "cores": 4, "memory": "4 GiB", "host": host, "ssh_config": config}
    )
