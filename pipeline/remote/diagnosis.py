"""Diagnosis: finds out from the messages of ssh why a link was lost."""

from pipeline.core.profile import Device
from pipeline.errors import DeviceSoftware, DeviceUnreachable, HostKeyRefused, ProbeError
from pipeline.remote.link import LinkLost
from pipeline.remote.ssh_arguments import by_hand
from pipeline.remote.ssh_keys import locked_key

__all__ = ["diagnosis"]

SSH_FAILED = 255
"""OpenSSH's own exit status; any other status is the remote command's."""
NO_COMMAND = (126, 127)


def diagnosis(loss: LinkLost, device: Device) -> ProbeError:
    """Return the error to raise for a lost link to `device`."""
    said, host, connect = str(loss), device.host, by_hand(device)
    if "IDENTIFICATION HAS CHANGED" in said or ("host key for" in said.lower() and "has changed" in said):
        return HostKeyRefused(
            f"{host}: its host key is not the one that is known ({said}); if the device was set up anew, forget the old key "
            "(ssh-keygen -R and its name) and connect once by hand; if not, somebody may stand in between"
        )
    if "Host key verification failed" in said or "host key is known" in said:
        return HostKeyRefused(
            f"{host}: its host key is not known here; connect once by hand ({connect}), compare the fingerprint it shows with "
            "the device's own, and accept it"
        )
    if "Permission denied" in said and (key := locked_key(device)):
        return DeviceUnreachable(
            f"{host}: it lets nobody in with the keys there are ({said}); the key {key} has a passphrase and no agent holds it: "
            f"start one (eval $(ssh-agent)), then ssh-add {key}"
        )
    if "Permission denied" in said:
        installing = connect.replace("ssh", "ssh-copy-id", 1)
        return DeviceUnreachable(
            f"{host}: it lets nobody in with the keys there are ({said}); install one with: {installing} "
            "(passwords are never asked for)"
        )
    if loss.status in NO_COMMAND:
        return DeviceSoftware(f"{host}: no interpreter '{device.python}' there ({said}); set device.python")
    if loss.status == SSH_FAILED:
        return DeviceUnreachable(f"{host}: cannot be reached ({said}); is it on, and does '{connect} true' work?")
    return DeviceUnreachable(f"{host}: the connection was lost ({said}); does '{connect} {device.python} --version' work?")
