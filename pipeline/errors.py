"""What can go wrong, as a tree; each class has its own exit code.

    CompressError
    ├── ProfileError            10  the profile is missing or malformed
    │   └── ThreadsError        11  the profile asks for threads that the device does not have
    ├── BudgetError             12  the budget is malformed, or cannot be judged where this run measures
    │   └── UnreachableBudget   13  even the thinnest plan misses the budget
    ├── (budget missed)         14  the run finished and the artifact misses its budget; not an exception
    ├── ModelError              20  the network cannot be loaded
    │   ├── WeightsError        21  the weights do not fit the network
    │   ├── UnsafeWeights       22  the weights file would run code when read
    │   ├── TraceError          23  the network cannot be traced or exported
    │   ├── NothingToPrune      24  no group of channels can be narrowed
    │   └── NetworkError        25  the network's own code fails while it is scored, trained or exported
    ├── DataError               30  the data cannot be loaded
    │   ├── EmptyData           31  a folder holds no images
    │   ├── OneClass            32  there is nothing to tell apart
    │   ├── CorruptImage        33  a file is not a readable image
    │   └── ImageMismatch       34  images are grey or of another size, and nothing says how to change that
    ├── ProbeError              40  measuring is not possible
    │   ├── DeviceUnreachable   41  the device does not answer, or not any more
    │   ├── HostKeyRefused      42  the device's host key is not known, or another than it was
    │   ├── DeviceSoftware      43  the device lacks a Python with numpy and onnxruntime that work there
    │   └── DeviceBusy          44  another job is measuring there
    ├── RunError                50  the run directory cannot be used
    │   ├── OtherJob            51  another job's results live there
    │   ├── RunLocked           52  another process works there
    │   └── StorageError        53  the disk is full, or the directory cannot be written
    ├── ShipError               60  the exported file does not answer like the network
    ├── SoftwareError           61  a library is installed in a version that is known to be unsafe
    ├── TrainingError           62  the settings of fine-tuning cannot be trained with
    │   └── TrainingDiverged    63  training diverged, and lower learning rates did not help
    ├── OutOfMemory             64  there is not enough memory
    ├── ManifestError           70  the manifest of an artifact is missing parts, malformed, or cannot be made
    │   ├── Unsigned            71  there is no manifest, or no signature of it
    │   ├── UntrustedKey        72  signed with a key that is not in the trust file, or not valid yet
    │   │   └── RevokedKey      73  signed with a key that was revoked
    │   ├── WrongSignature      74  the signature is not this manifest's
    │   ├── Expired             75  the manifest's time is over
    │   ├── OlderVersion        76  the device has a newer version already
    │   ├── OtherDevice         77  the artifact was made for another kind of device
    │   └── FilesDiffer         78  a file is missing, extra, altered, or no regular file
    ├── KeysError               79  the folder of signing keys is malformed, or open to others
    ├── DeliveryError           80  an artifact cannot be placed on a device; what served there serves on
    │   ├── Unhealthy           81  the artifact does not load, answer, or stay within its budget there
    │   ├── TransferCorrupt     82  what lies on the device is not what was sent
    │   ├── DeviceStorage       83  the device's disk is full, or cannot be written
    │   ├── RolledBack          84  the switch was not committed in time
    │   ├── NoPrevious          85  there is no release to go back to
    │   └── FleetFailed         86  some devices of several did not take the artifact
    └── Interrupted            130  Ctrl-C; the run can be resumed

2 is a wrong command line (click's own), 1 a defect in this program.

Every message says what, where, got, and what to do, in one line.
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
"""Exit code of a run that finished, shipped its artifact, and missed its budget."""


MESSAGE_LIMIT = 2000
"""Longest message of an error, in characters; what is longer loses its middle."""


def one_line(error: BaseException, limit: int = 300) -> str:
    """The first line of a foreign error, cleaned and cut in its middle, so that it can stand inside a message of ours."""
    lines = clean_lines(str(error), limit)
    return lines[0] if lines else type(error).__name__


class CompressError(Exception):
    """Anything that a user can cause and mend. The command line prints the message and exits with `exit_code`.

    The message is cleaned here, because names and values in it often come from a file or a device of somebody else.
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
    """The budget is malformed, or asks for a figure that cannot be judged where this run measures."""

    exit_code = 12


class UnreachableBudget(BudgetError):
    """At minimum width the network still misses the budget."""

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
    """The network cannot be traced, exported or proven."""

    exit_code = 23


class NothingToPrune(ModelError):
    """No group of channels can be narrowed."""

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
    """The device does not answer, or not any more."""

    exit_code = 41


class HostKeyRefused(ProbeError):
    """The device's host key is not known, or is another than it was."""

    exit_code = 42


class DeviceSoftware(ProbeError):
    """The device lacks a Python with numpy and onnxruntime that work there."""

    exit_code = 43


class DeviceBusy(ProbeError):
    """Another job is measuring on the device."""

    exit_code = 44


class RunError(CompressError):
    """The run directory cannot be used."""

    exit_code = 50


class OtherJob(RunError):
    """The run directory holds another job's results."""

    exit_code = 51


class RunLocked(RunError):
    """Another process works in the run directory."""

    exit_code = 52


class StorageError(RunError):
    """The disk is full, or the directory cannot be written."""

    exit_code = 53


class ShipError(CompressError):
    """The exported file does not answer like the network it came from."""

    exit_code = 60


class SoftwareError(CompressError):
    """A library is installed in a version that is known to be unsafe."""

    exit_code = 61


class TrainingError(CompressError):
    """The settings of fine-tuning cannot be trained with."""

    exit_code = 62


class TrainingDiverged(TrainingError):
    """Training diverged: its loss was not finite, or many times that of a network that knows nothing."""

    exit_code = 63


class OutOfMemory(CompressError):
    """There is not enough memory."""

    exit_code = 64


class ManifestError(CompressError):
    """The manifest of an artifact is malformed, or cannot be made."""

    exit_code = 70


class Unsigned(ManifestError):
    """There is no manifest, or no signature of it."""

    exit_code = 71


class UntrustedKey(ManifestError):
    """Signed with a key that is not in the trust file, or is not valid yet."""

    exit_code = 72


class RevokedKey(UntrustedKey):
    """Signed with a key that was revoked."""

    exit_code = 73


class WrongSignature(ManifestError):
    """The signature was not made for this manifest."""

    exit_code = 74


class Expired(ManifestError):
    """The manifest's time is over."""

    exit_code = 75


class OlderVersion(ManifestError):
    """The device has a newer version than the artifact's."""

    exit_code = 76


class OtherDevice(ManifestError):
    """The artifact was made for another kind of device."""

    exit_code = 77


class FilesDiffer(ManifestError):
    """A file is missing, extra, altered, or not a regular file."""

    exit_code = 78


class KeysError(CompressError):
    """The folder of signing keys is malformed, has no usable key, or is open to others."""

    exit_code = 79


class DeliveryError(CompressError):
    """An artifact cannot be placed on a device; what served there serves on."""

    exit_code = 80


class Unhealthy(DeliveryError):
    """The artifact does not load, does not answer rightly, or misses its budget on the device."""

    exit_code = 81


class TransferCorrupt(DeliveryError):
    """What lies on the device is not what was sent."""

    exit_code = 82


class DeviceStorage(DeliveryError):
    """The device's disk is full, or cannot be written."""

    exit_code = 83


class RolledBack(DeliveryError):
    """The switch was not committed in time and was taken back."""

    exit_code = 84


class NoPrevious(DeliveryError):
    """There is no release to go back to."""

    exit_code = 85


class FleetFailed(DeliveryError):
    """Some devices of several did not take the artifact."""

    exit_code = 86


class Interrupted(CompressError):
    """The user pressed Ctrl-C; what was measured is kept."""

    exit_code = 130
