"""Diagnosis: finds out from the messages of ssh why a link was lost."""

from pipeline.core.profile import Device
from pipeline.errors import DeviceSoftware, DeviceUnreachable, HostKeyRefused, ProbeError
from pipeline.remote.link import LinkLost
from pipeline.remote.ssh_arguments import manual_command
from pipeline.remote.ssh_keys import locked_key

__all__ = ["diagnosis"]

SSH_FAILED = 255
"""OpenSSH's own exit status; any other status is the remote command's."""
NO_COMMAND = (126, 127)


def diagnosis(loss: LinkLost, device: Device) -> ProbeError:
    """Return the error to raise for a lost link to `device`."""
    message, host, connect = str(loss), device.host, manual_command(device)
    if "IDENTIFICATION HAS CHANGED" in message or ("host key for" in message.lower() and "has changed" in message):
        return HostKeyRefused(
            f"{host}: its host key has changed ({message}); if the device was set up again, remove the old key (ssh-keygen -R "
            "and its name) and connect once by hand; if not, this may be an attack"
        )
    if "Host key verification failed" in message or "host key is known" in message:
        return HostKeyRefused(
            f"{host}: its host key is unknown; connect once by hand ({connect}), compare the fingerprint with the device's "
            "own, and accept it"
        )
    if "Permission denied" in message and (key := locked_key(device)):
        return DeviceUnreachable(
            f"{host}: it accepts none of your ssh keys ({message}); the key {key} has a passphrase and is not in an ssh agent: "
            f"start one (eval $(ssh-agent)), then run ssh-add {key}"
        )
    if "Permission denied" in message:
        installing = connect.replace("ssh", "ssh-copy-id", 1)
        return DeviceUnreachable(
            f"{host}: it accepts none of your ssh keys ({message}); install one with: {installing} (compress never asks for "
            "passwords)"
        )
    if loss.status in NO_COMMAND:
        return DeviceSoftware(
            f"{host}: no interpreter '{device.python}' on the device ({message}); set device.python in the profile"
        )
    if loss.status == SSH_FAILED:
        return DeviceUnreachable(f"{host}: cannot be reached ({message}); check that it is on and that '{connect} true' works")
    return DeviceUnreachable(
        f"{host}: the connection was lost ({message}); check that '{connect} {device.python} --version' works"
    )
