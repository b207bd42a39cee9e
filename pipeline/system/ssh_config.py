"""OpenSSH configurations that a profile names: they are refused when they would run a program on this machine.

A profile can come from anyone, and ssh runs the programs of its configuration (`ProxyCommand`, `LocalCommand`, `Match exec`
and others). So a configuration that a profile names may only contain options that are known to run nothing. The user's own files
in ~/.ssh and the system's files in /etc/ssh are trusted.
"""

import glob
import shlex
from pathlib import Path

from pipeline.errors import ProfileError
from pipeline.system.foreign_file import read_foreign

__all__ = ["ALLOW_OPTION", "refuse_commands"]

ALLOW_OPTION = "--allow-ssh-commands"
LIMIT_BYTES = 2**20
DEEPEST_INCLUDE = 16

HARMLESS = frozenset(
    {
        "addkeystoagent",
        "addressfamily",
        "batchmode",
        "bindaddress",
        "bindinterface",
        "canonicaldomains",
        "canonicalizefallbacklocal",
        "canonicalizehostname",
        "canonicalizemaxdots",
        "canonicalizepermittedcnames",
        "casignaturealgorithms",
        "certificatefile",
        "challengeresponseauthentication",
        "channeltimeout",
        "checkhostip",
        "ciphers",
        "clearallforwardings",
        "compression",
        "connectionattempts",
        "connecttimeout",
        "controlmaster",
        "controlpath",
        "controlpersist",
        "dynamicforward",
        "enableescapecommandline",
        "escapechar",
        "exitonforwardfailure",
        "fingerprinthash",
        "forkafterauthentication",
        "forwardagent",
        "forwardx11",
        "forwardx11timeout",
        "forwardx11trusted",
        "gatewayports",
        "globalknownhostsfile",
        "gssapiauthentication",
        "gssapidelegatecredentials",
        "hashknownhosts",
        "host",
        "hostbasedauthentication",
        "hostbasedacceptedalgorithms",
        "hostkeyalgorithms",
        "hostkeyalias",
        "hostname",
        "identitiesonly",
        "identityagent",
        "identityfile",
        "ignoreunknown",
        "ipqos",
        "kbdinteractiveauthentication",
        "kbdinteractivedevices",
        "kexalgorithms",
        "localforward",
        "loglevel",
        "logverbose",
        "macs",
        "nohostauthenticationforlocalhost",
        "numberofpasswordprompts",
        "obscurekeystroketiming",
        "passwordauthentication",
        "permitremoteopen",
        "port",
        "preferredauthentications",
        "proxyjump",
        "proxyusefdpass",
        "pubkeyacceptedalgorithms",
        "pubkeyacceptedkeytypes",
        "pubkeyauthentication",
        "rekeylimit",
        "remotecommand",
        "remoteforward",
        "requesttty",
        "requiredrsasize",
        "revokedhostkeys",
        "sendenv",
        "serveralivecountmax",
        "serveraliveinterval",
        "sessiontype",
        "setenv",
        "stdinnull",
        "streamlocalbindmask",
        "streamlocalbindunlink",
        "stricthostkeychecking",
        "syslogfacility",
        "tag",
        "tcpkeepalive",
        "updatehostkeys",
        "usekeychain",
        "user",
        "userknownhostsfile",
        "verifyhostkeydns",
        "visualhostkey",
    }
)
"""Options that start no program here and load no library. All others are refused, including future options of OpenSSH."""
MAY_BE_NONE = frozenset({"proxycommand", "knownhostscommand", "pkcs11provider", "securitykeyprovider", "permitlocalcommand"})
"""Options that do nothing with the value `none`, `no` or `internal`."""


def refuse_commands(path: Path) -> None:
    """Check the configuration at `path` and every file that it includes.

    Raises ProfileError, with file and line, when one of them has an option that can run a program or load a library here, or
    cannot be read. Files in ~/.ssh and /etc/ssh are not checked.
    """
    _check(path.expanduser(), 0)


def _check(path: Path, depth: int) -> None:
    if _is_trusted(path):
        return
    if depth > DEEPEST_INCLUDE:
        raise ProfileError(f"{path}: includes are nested too deep; write the options into one file")
    try:
        text = read_foreign(path, LIMIT_BYTES).decode("latin-1")
    except OSError as problem:
        raise ProfileError(f"device.ssh_config: {path}: cannot be read ({problem.strerror})") from None
    for number, line in enumerate(text.split("\n"), start=1):
        keyword, value = _option(line)
        if not keyword:
            continue
        if keyword == "match" and "exec" in value.replace('"', "").replace("\\", "").lower():
            raise _refusal(path, number, "Match exec")
        if keyword == "include":
            for included in _included(path, number, value):
                _check(included, depth + 1)
        elif keyword in MAY_BE_NONE:
            if value.lower() not in ("none", "no", "internal"):
                raise _refusal(path, number, keyword)
        elif keyword not in HARMLESS and keyword != "match":
            raise _refusal(path, number, keyword)


def _option(line: str) -> tuple[str, str]:
    """Return the keyword of the line in lower case, and the rest; the keyword is empty for a blank line or a comment."""
    line = line.strip()
    if not line or line.startswith("#"):
        return "", ""
    end = next((position for position, letter in enumerate(line) if letter.isspace() or letter == "="), len(line))
    return line[:end].lower(), line[end:].strip().removeprefix("=").strip()


def _included(path: Path, number: int, value: str) -> list[Path]:
    """Return the files of an Include line as OpenSSH finds them: a relative path starts in ~/.ssh."""
    try:
        patterns = shlex.split(value)
    except ValueError:
        patterns = []
    if not patterns or any(letter in value for letter in "%$"):
        raise ProfileError(f"{path}:{number}: this Include cannot be resolved; write the full names of the files")
    found = []
    for pattern in patterns:
        full = Path(pattern).expanduser()
        found += glob.glob(str(full if full.is_absolute() else Path.home() / ".ssh" / full))  # noqa: PTH207 - an absolute pattern
    return [Path(name) for name in sorted(found)]


def _is_trusted(path: Path) -> bool:
    """Whether the file is the user's own or the system's configuration."""
    folder = path.resolve().parent
    return any(folder.is_relative_to(own) for own in ((Path.home() / ".ssh").resolve(), Path("/etc/ssh")))


def _refusal(path: Path, number: int, option: str) -> ProfileError:
    return ProfileError(
        f"{path}:{number}: '{option[:60]}' can run a program on this machine, which a profile may not do; if you trust the "
        f"file, add {ALLOW_OPTION}, or move the option to your own ~/.ssh/config"
    )
