"""What a board says of itself, and what is found in it."""

from collections.abc import Iterator

from pipeline.core.device_state import DeviceState
from pipeline.doctor import Finding

QUIET = DeviceState(
    temperature_c=50.0,
    clock_mhz=1500.0,
    clock_measured=True,
    governor="performance",
    throttle_flags=0,
    throttle_count=None,
    load=0.0,
    free_memory_bytes=2**30,
)
MACHINE = {
    "cpu": "Raspberry Pi 4 Model B Rev 1.5",
    "architecture": "aarch64",
    "system": "Linux 6.6.31",
    "python": "3.11.2",
    "interpreter": "/usr/bin/python3",
    "numpy": "2.0.2",
    "onnxruntime": "1.22.1",
    "providers": ["CPUExecutionProvider"],
    "cores": [0, 1, 2, 3],
    "free_memory_bytes": 2**30,
    "free_disk_bytes": 2**33,
    "folder": "/tmp/compress-probe-x",
}
"""What a board says of itself."""


def the_only(found: Iterator[Finding], what: str) -> Finding:
    (finding,) = (finding for finding in found if finding.what == what)
    return finding
