"""Host name: what a profile may name as the address of a device."""

import re

__all__ = ["checked_host"]


def checked_host(host: str) -> str:
    """Return `host`. Raises ValueError for anything but user@name, a Host of the ssh configuration, or an ssh:// URL."""
    # ssh inserts the name into the commands of a configuration, so it must not contain shell metacharacters
    if host.startswith("-") or not re.fullmatch(r"(ssh://)?[\w.@:%\[\]+=,/~-]+", host):
        raise ValueError("expected user@name, or a Host of your ssh configuration")
    if bracketed := re.fullmatch(r"(ssh://)?([^\[]*)\[(.*)\](:\d+)?", host):
        raise ValueError(
            f"ssh accepts no address in brackets; write {bracketed[2]}{bracketed[3]}, and set a port as Port in your ssh "
            "configuration"
        )
    if re.fullmatch(r"[^:]+:\d+", host):
        raise ValueError(f"ssh accepts a port only in a URL; write ssh://{host}")
    return host
