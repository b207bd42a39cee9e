"""A folder with networks and images for mistakes, and the required form of an error message."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from click.testing import CliRunner

from pipeline.cli.main import compress
from pipeline.errors import CompressError
from pipeline.system.bundled import shipped_folder

NETS = '''
from torch import nn

PREPROCESSING = {"size": 8, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}

class Net(nn.Module):
    """conv(8) -> conv(8) -> mean -> linear"""

    def __init__(self, classes=2):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, classes)

    def forward(self, x):
        return self.head(self.b(self.a(x)).mean((2, 3)))

class Undecided(Net):
    def forward(self, x):
        return super().forward(-x if x.sum() > 0 else x)

class Torn(Net):
    def forward(self, x):
        raise ValueError("no image is good enough")

class Two(Net):
    def forward(self, x):
        return super().forward(x), x

class Map(Net):
    def forward(self, x):
        return self.a(x)

class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3 * 8 * 8, 2)

    def forward(self, x):
        return self.head(x.flatten(1))

def nine():
    return Net(9)
'''
TRAINED = ("--epochs", "1", "--learning-rate", "0.05")
"""A fine-tuning that does not try rates first, which takes as long as everything else."""
DRY = ("--dry-run", "--trials", "3", "--supernet", "2", *TRAINED, "--searcher", "random")
DIGITS = ("--target", "raspberrypi", *DRY)


class Place(NamedTuple):
    """A folder with nets.py and sound images of cats and dogs in images/. Tests add broken files."""

    folder: Path
    image_folder: Callable[..., Path]

    @property
    def out(self) -> Path:
        return self.folder / "run"

    def profile(self, *, was: str, becomes: str) -> Path:
        """The Raspberry Pi's profile with one change."""
        text = (shipped_folder("hw_profiles") / "raspberrypi.yaml").read_text()
        assert was in text
        (self.folder / "board.yaml").write_text(text.replace(was, becomes))
        return self.folder / "board.yaml"

    def net(self, name: str = "Net") -> tuple[str, ...]:
        return *DIGITS, "--model", f"{self.folder / 'nets.py'}:{name}", "--data", str(self.folder / "images")

    def images(self, change: Callable[[Path], object] = lambda root: None, **options: str) -> tuple[str, ...]:
        """Arguments for the sound network, with images that `change` has changed."""
        change(self.image_folder(self.folder / "odd", train=4, test=2, **options))
        return *DIGITS, "--model", f"{self.folder / 'nets.py'}:Net", "--data", str(self.folder / "odd")

    def weights(self, name: str, content: object) -> tuple[str, ...]:
        path = self.folder / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif name.endswith(".safetensors"):
            safetensors.torch.save_file(content, path)  # type: ignore[arg-type]
        else:
            torch.save(content, path)
        return *DIGITS, "--weights", str(path)


def message(arguments: tuple[str, ...], error: type[CompressError]) -> str:
    """The one line on stderr of a command that ends with the exit code of `error`."""
    result = CliRunner().invoke(compress, arguments, catch_exceptions=False)

    assert result.exit_code == error.exit_code, result.output
    return one_line(result.stderr)


def without_heartbeat(text: str) -> str:
    """`text` without the lines that say that a slow stage is at work. On a busy machine any stage can be slow."""
    return re.sub(r"^  [\w-]+: (at work for|\d+ % after) .*\n", "", text, flags=re.MULTILINE)


def one_line(stderr: str) -> str:
    stderr = without_heartbeat(stderr)
    assert stderr.startswith("compress: ")
    assert stderr.endswith("\n")
    assert len(stderr.splitlines()) == 1
    assert "Traceback" not in stderr
    return stderr.removeprefix("compress: ").rstrip("\n")


def nothing_but_the_journal(out: Path) -> bool:
    """Whether there are no artifact and no temporary files. Files that were made before the error may exist."""
    return {path.name for path in out.rglob("*")} <= {"journal.jsonl", "dense.onnx", "rehearsal.json", "supernet.safetensors"}
