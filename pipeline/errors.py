"""The errors of this program as a tree. Each class has its own exit code.

    CompressError
    ├── ProfileError            10  the profile is missing or malformed
    │   └── ThreadsError        11  the profile asks for threads that the device does not have
    ├── BudgetError             12  the budget is malformed, or needs a figure that this run cannot measure
    │   └── UnreachableBudget   13  even the thinnest plan misses the budget
    ├── (budget missed)         14  the run finished and the artifact misses its budget; not an exception
    ├── ModelError              20  the network cannot be loaded
    │   ├── WeightsError        21  the weights do not fit the network
    │   ├── UnsafeWeights       22  the weights file would run code when read
    │   ├── TraceError          23  the network cannot be traced or exported
    │   ├── NothingToPrune      24  no group of channels can be pruned
    │   └── NetworkError        25  the network's own code fails while it is scored, trained or exported
    ├── DataError               30  the data cannot be loaded
    │   ├── EmptyData           31  a folder holds no images
    │   ├── OneClass            32  all images belong to one class
    │   ├── CorruptImage        33  a file is not a readable image
    │   └── ImageMismatch       34  images are grey or of another size, and nothing says how to change that
    ├── ProbeError              40  measuring is not possible
    │   ├── DeviceUnreachable   41  the device does not answer, or the connection was lost
    │   ├── HostKeyRefused      42  the device's host key is unknown, or has changed
    │   ├── DeviceSoftware      43  the device has no Python with working numpy and onnxruntime
    │   ├── DeviceBusy          44  another job is measuring on the device
    │   └── ProviderFallback    45  the execution provider leaves nodes to another one
    ├── RunError                50  the run directory cannot be used
    │   ├── OtherJob            51  the run directory holds another job's results
    │   ├── RunLocked           52  another process uses the run directory
    │   └── StorageError        53  the disk is full, or the directory is not writable
    ├── ShipError               60  the outputs of the exported file differ from the network's
    ├── SoftwareError           61  a library is installed in a version that is known to be unsafe
    ├── TrainingError           62  training is not possible with the settings of fine-tuning
    │   └── TrainingDiverged    63  training diverged, and lower learning rates did not help
    ├── OutOfMemory             64  there is not enough memory
    ├── ComputeDeviceError      65  the processor or GPU that networks should run on is not there
    ├── ManifestError           70  the manifest of an artifact is incomplete or malformed, or cannot be made
    │   ├── Unsigned            71  there is no manifest, or it has no signature
    │   ├── UntrustedKey        72  the signing key is not in the trust file, or not valid yet
    │   │   └── RevokedKey      73  the signing key was revoked
    │   ├── WrongSignature      74  the signature does not belong to this manifest
    │   ├── Expired             75  the manifest has expired
    │   ├── OlderVersion        76  the device already has a newer version
    │   ├── OtherDevice         77  the artifact was made for another kind of device
    │   └── FilesDiffer         78  a file is missing, extra, changed, or not a regular file
    ├── KeysError               79  the folder of signing keys is malformed, or other users can open it
    ├── DeliveryError           80  an artifact cannot be deployed to a device; the old release stays active
    │   ├── Unhealthy           81  the artifact does not load, gives wrong outputs, or misses its budget
    │   ├── TransferCorrupt     82  a file on the device differs from the file that was sent
    │   ├── DeviceStorage       83  the device's disk is full, or not writable
    │   ├── RolledBack          84  the switch was not committed in time and was undone
    │   ├── NoPrevious          85  there is no earlier release to return to
    │   └── FleetFailed         86  some of several devices did not accept the artifact
    └── Interrupted            130  Ctrl-C; the run can be resumed

2 is an invalid command line (from click), and 1 is a defect in this program.

Every message is one line: what is wrong, where, what was found, and what to do.
"""

from pipeline.foreign_text import clean_lines, clean_text

__all__ = [
    "BUDGET_MISSED",
    "BudgetError",
    "CompressError",
    "CorruptImage",
    "DataError",
    "DeviceBusy",
    "DeviceSoftware",
    "DeviceUnreachable",
    "EmptyData",
    "Expired",
    "FilesDiffer",
    "HostKeyRefused",
    "ImageMismatch",
    "Interrupted",
    "KeysError",
    "ManifestError",
    "ModelError",
    "NetworkError",
    "NothingToPrune",
    "OlderVersion",
    "OneClass",
    "OtherDevice",
    "OtherJob",
    "OutOfMemory",
    "ProbeError",
    "ProfileError",
    "ProviderFallback",
    "RevokedKey",
    "RunError",
    "RunLocked",
    "ShipError",
    "SoftwareError",
    "StorageError",
    "ThreadsError",
    "TraceError",
    "TrainingDiverged",
    "TrainingError",
    "TransferCorrupt",
    "Unhealthy",
    "UnreachableBudget",
    "UnsafeWeights",
    "Unsigned",
    "UntrustedKey",
    "WeightsError",
    "WrongSignature",
    "one_line",
]

BUDGET_MISSED = 14
"""Exit code of a run that finished and wrote its artifact, which misses the budget."""


MESSAGE_LIMIT = 2000
"""Longest message of an error, in characters. The middle of a longer message is removed."""


def one_line(error: BaseException, limit: int = 300) -> str:
    """Return the first line of a foreign error, cleaned and shortened in its middle, for use in a message of this program."""
    lines = clean_lines(str(error), limit)
    return lines[0] if lines else type(error).__name__


class CompressError(Exception):
    """An error that a user can cause and fix. The command line prints the message and exits with `exit_code`.

    The message is cleaned here, because names and values in it often come from foreign files or devices.
    """

    exit_code = 1

    def __init__(self, message: object = "") -> None:
        super().__init__(clean_text(str(message), MESSAGE_LIMIT))


class ProfileError(CompressError):
    """The profile is missing or malformed."""

    exit_code = 10


class ThreadsError(ProfileError):
    """The profile asks for threads that its device, or this machine, does not have."""

    exit_code = 11


class BudgetError(CompressError):
    """The budget is malformed, or needs a figure that this run cannot measure."""

    exit_code = 12


class UnreachableBudget(BudgetError):
    """The network misses the budget even at minimum width."""

    exit_code = 13


class ModelError(CompressError):
    """The network cannot be loaded."""

    exit_code = 20


class WeightsError(ModelError):
    """The weights do not fit the network."""

    exit_code = 21


class UnsafeWeights(ModelError):
    """The weights file is of a kind that can run code when it is read."""

    exit_code = 22


class TraceError(ModelError):
    """The network cannot be traced, exported or verified."""

    exit_code = 23


class NothingToPrune(ModelError):
    """No group of channels can be pruned."""

    exit_code = 24


class NetworkError(ModelError):
    """The network's own code fails while it is scored, trained or exported."""

    exit_code = 25


class DataError(CompressError):
    """The data cannot be loaded."""

    exit_code = 30


class EmptyData(DataError):
    """A folder holds no images."""

    exit_code = 31


class OneClass(DataError):
    """All images belong to one class."""

    exit_code = 32


class CorruptImage(DataError):
    """A file is not a readable image."""

    exit_code = 33


class ImageMismatch(DataError):
    """Images are grey or of another size than the network takes, and nothing says how to change that."""

    exit_code = 34


class ProbeError(CompressError):
    """Measuring is not possible."""

    exit_code = 40


class DeviceUnreachable(ProbeError):
    """The device does not answer, or the connection was lost."""

    exit_code = 41


class HostKeyRefused(ProbeError):
    """The device's host key is unknown, or has changed."""

    exit_code = 42


class DeviceSoftware(ProbeError):
    """The device has no Python with working numpy and onnxruntime."""

    exit_code = 43


class DeviceBusy(ProbeError):
    """Another job is measuring on the device."""

    exit_code = 44


class ProviderFallback(ProbeError):
    """The execution provider of the profile does not run every node, and the profile does not allow another one to."""

    exit_code = 45


class RunError(CompressError):
    """The run directory cannot be used."""

    exit_code = 50


class OtherJob(RunError):
    """The run directory holds another job's results."""

    exit_code = 51


class RunLocked(RunError):
    """Another process uses the run directory."""

    exit_code = 52


class StorageError(RunError):
    """The disk is full, or the directory is not writable."""

    exit_code = 53


class ShipError(CompressError):
    """The outputs of the exported file differ from the network's."""

    exit_code = 60


class SoftwareError(CompressError):
    """A library is installed in a version that is known to be unsafe."""

    exit_code = 61


class ComputeDeviceError(CompressError):
    """The processor or GPU that networks should run on is not there."""

    exit_code = 65


class TrainingError(CompressError):
    """Training is not possible with the settings of fine-tuning."""

    exit_code = 62


class TrainingDiverged(TrainingError):
    """Training diverged: the loss was not finite, or many times the loss at chance level."""

    exit_code = 63


class OutOfMemory(CompressError):
    """There is not enough memory."""

    exit_code = 64


class ManifestError(CompressError):
    """The manifest of an artifact is malformed, or cannot be made."""

    exit_code = 70


class Unsigned(ManifestError):
    """There is no manifest, or it has no signature."""

    exit_code = 71


class UntrustedKey(ManifestError):
    """The signing key is not in the trust file, or not valid yet."""

    exit_code = 72


class RevokedKey(UntrustedKey):
    """The signing key was revoked."""

    exit_code = 73


class WrongSignature(ManifestError):
    """The signature does not belong to this manifest."""

    exit_code = 74


class Expired(ManifestError):
    """The manifest has expired."""

    exit_code = 75


class OlderVersion(ManifestError):
    """The device already has a newer version than the artifact's."""

    exit_code = 76


class OtherDevice(ManifestError):
    """The artifact was made for another kind of device."""

    exit_code = 77


class FilesDiffer(ManifestError):
    """A file is missing, extra, changed, or not a regular file."""

    exit_code = 78


class KeysError(CompressError):
    """The folder of signing keys is malformed, has no usable key, or other users can open it."""

    exit_code = 79


class DeliveryError(CompressError):
    """An artifact cannot be deployed to a device; the old release stays active."""

    exit_code = 80


class Unhealthy(DeliveryError):
    """The artifact does not load, gives wrong outputs, or misses its budget on the device."""

    exit_code = 81


class TransferCorrupt(DeliveryError):
    """A file on the device differs from the file that was sent."""

    exit_code = 82


class DeviceStorage(DeliveryError):
    """The device's disk is full, or not writable."""

    exit_code = 83


class RolledBack(DeliveryError):
    """The switch was not committed in time and was undone."""

    exit_code = 84


class NoPrevious(DeliveryError):
    """There is no earlier release to return to."""

    exit_code = 85


class FleetFailed(DeliveryError):
    """Some of several devices did not accept the artifact."""

    exit_code = 86


class Interrupted(CompressError):
    """The user pressed Ctrl-C. Completed measurements are kept."""

    exit_code = 130
