"""Memory that was freed is used again, and not asked for anew."""

import platform
import subprocess
import sys

import pytest

PASSES = """
import resource, sys
import torch
from click.testing import CliRunner
from pipeline.cli import compress
from models.resnet import resnet20

if "compress" in sys.argv:
    CliRunner().invoke(compress, ["--target", "no-such-profile"])
torch.set_num_threads(1)
net, images = resnet20().eval(), torch.randn(256, 3, 32, 32)


def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


with torch.inference_mode():
    for _ in range(3):
        before = faults()
        net(images)
print(faults() - before)
"""

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")


def page_faults(*arguments: str) -> int:
    """Pages that the kernel had to provide for the third forward pass."""
    command = [sys.executable, "-c", PASSES, *arguments]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@glibc
def test_under_the_command_a_forward_pass_asks_the_kernel_for_no_memory_again() -> None:
    given_back, kept = page_faults(), page_faults("compress")

    assert given_back > 5_000  # 20 MiB: what is tested exists
    assert kept < given_back / 100
