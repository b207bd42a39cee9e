"""Code that lives in a project is imported as Python would import it, and an error in it is told with its own file and line."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pipeline.core.profile import load_profile
from pipeline.errors import DataError, ModelError
from pipeline.stages.job import Job
from pipeline.training.load import find_model, load_data, load_model
from pipeline.training.model_args import read_arguments
from pipeline.training.user_code import is_code

LAYERS = "from torch import nn\nN = 4\ndef block(width): return nn.Linear(2, int(N * width))\n"
LIBRARIES = ("torch", "torchvision")
"""Both register operators when they are imported, which a process can do only once."""
NET = "from torch import nn\n{imported}\ndef net(width=1.0): return nn.Sequential(block(width))\n"


@pytest.fixture(autouse=True)
def own_imports(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test imports and makes importable is gone after it. What other tests left is out of the way."""
    theirs = [name for name, module in sys.modules.items() if "pytest-of-" in (getattr(module, "__file__", None) or "")]
    for name in theirs:
        monkeypatch.delitem(sys.modules, name)
    modules = set(sys.modules)
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if "pytest-of-" not in folder])
    yield
    for name in set(sys.modules) - modules:
        if name.partition(".")[0] not in LIBRARIES:
            del sys.modules[name]


def project(root: Path, files: dict[str, str]) -> Path:
    """project(root, {"pkg/net": "..."}) writes root/pkg/net.py."""
    for name, text in files.items():
        path = root / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def width(spec: str, **arguments: float) -> int:
    """Outputs of the network's one layer."""
    return int(load_model(find_model(spec, arguments), None, None)[0].out_features)  # type: ignore[index]


# where code lives


@pytest.mark.parametrize("init", [True, False], ids=["with __init__", "without"])
@pytest.mark.parametrize("imported", ["from .layers import block", "from pkg.layers import block", "from layers import block"])
def test_a_file_inside_a_package_finds_its_neighbours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, init: bool, imported: str
) -> None:
    monkeypatch.chdir(tmp_path)
    project(tmp_path, {"pkg/layers": LAYERS, "pkg/net": NET.format(imported=imported)})
    if init:
        (tmp_path / "pkg/__init__.py").touch()

    assert width("pkg/net.py:net") == 4


def test_a_package_is_found_from_anywhere(tmp_path: Path) -> None:
    """`from ..common` reaches out of pkg/deep into pkg, and the current folder is another."""
    net = NET.format(imported="from ..common import block")
    project(tmp_path, {"pkg/common": LAYERS, "pkg/deep/net": net, "pkg/__init__": "", "pkg/deep/__init__": ""})

    assert width(f"{tmp_path}/pkg/deep/net.py:net") == 4


def test_relative_imports_reach_as_far_as_they_need_without_any_init(tmp_path: Path) -> None:
    project(tmp_path, {"outer/common": LAYERS, "outer/inner/net": NET.format(imported="from ..common import block")})

    assert width(f"{tmp_path}/outer/inner/net.py:net") == 4


def test_a_factory_may_be_the_package_itself(tmp_path: Path) -> None:
    project(tmp_path, {"whole/__init__": NET.format(imported="from .layers import block"), "whole/layers": LAYERS})

    assert width(f"{tmp_path}/whole/__init__.py:net") == 4


def test_a_factory_imports_its_neighbour_when_it_is_called(tmp_path: Path) -> None:
    """The folder stays importable after the file was imported."""
    late = "def make():\n    import late_net\n    return late_net.net()\n"
    project(tmp_path, {"late": late, "late_net": LAYERS + NET.format(imported="")})

    assert width(f"{tmp_path}/late.py:make") == 4


def test_code_imports_its_neighbour_also_in_a_spawned_worker(tmp_path: Path) -> None:
    """An object travels by the name of its class, and what it needs is imported there."""
    late = "class Late:\n    def total(self, x):\n        import late_sum\n        return late_sum.total(x)\n"
    main = f"""
import multiprocessing
from pipeline.errors import ModelError
from pipeline.training.user_code import load_code
if __name__ == "__main__":
    late = load_code({f"{tmp_path}/code/worker_net.py:Late"!r}, "--model", ModelError).found()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.apply(late.total, ([1, 2],)))
"""
    project(tmp_path, {"code/worker_net": late, "code/late_sum": "def total(x): return sum(x)\n", "main": main})
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "main.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=120
    )

    assert done.stdout == "3\n", done.stderr


def test_two_files_of_one_name_are_two_modules(tmp_path: Path) -> None:
    one = project(tmp_path / "one", {"twin": "from torch import nn\ndef net(): return nn.Sequential(nn.Linear(2, 1))\n"})
    two = project(tmp_path / "two", {"twin": "from torch import nn\ndef net(): return nn.Sequential(nn.Linear(2, 2))\n"})

    assert (width(f"{one}/twin.py:net"), width(f"{two}/twin.py:net")) == (1, 2)


def test_a_file_called_like_a_part_of_python_does_not_take_its_place(tmp_path: Path) -> None:
    project(tmp_path, {"colorsys": "from torch import nn\ndef net(): return nn.Sequential(nn.Linear(2, 3))\n"})
    found = width(f"{tmp_path}/colorsys.py:net")
    known = sys.modules.get("colorsys")

    assert found == 3
    assert known is None or not hasattr(known, "net")


def test_a_file_is_run_once(tmp_path: Path) -> None:
    project(tmp_path, {"once": "from torch import nn\nprint('run')\nnet = lambda: nn.Sequential(nn.Linear(2, 3))\n"})

    assert find_model(f"{tmp_path}/once.py:net").factory is find_model(f"{tmp_path}/once.py:net").factory


# package.module:attribute


def test_a_module_is_imported_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project(tmp_path, {"near/net": NET.format(imported="from .layers import block"), "near/layers": LAYERS}))

    assert width("near.net:net") == 4


def test_a_module_is_imported_from_what_is_installed() -> None:
    network = load_model(find_model("torchvision.models.squeezenet:squeezenet1_1"), None, num_classes=3)

    assert sum(tensor.numel() for tensor in network.parameters()) > 700_000


def test_data_take_the_same_forms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = """
import torch
class Made:
    @staticmethod
    def splits():
        from .parts import part
        return part(20), part(10)
"""
    part = """
import torch
from torch.utils.data import TensorDataset
def part(count): return TensorDataset(torch.zeros(count, 1, 4, 4), torch.arange(count) % 2)
"""
    monkeypatch.chdir(project(tmp_path, {"images/mine": text, "images/parts": part}))

    assert len(load_data("images.mine:Made.splits", None, 0).test) == 10
    assert len(load_data("images/mine.py:Made.splits", None, 0).test) == 10


CLASS = """
from torch import nn
class Net(nn.Sequential):
    def __init__(self, width=4): super().__init__(nn.Linear(2, width))
    @staticmethod
    def small(): return Net(2)
    @classmethod
    def large(cls, width=8): return cls(width)
    def grown(self): return Net(16)
    class Kinds:
        tiny = staticmethod(lambda: Net(1))
built = Net(5)
"""


@pytest.mark.parametrize(
    ("name", "outputs"), [("Net", 4), ("Net.small", 2), ("Net.large", 8), ("Net.Kinds.tiny", 1), ("built", 5)]
)
def test_dots_lead_to_methods_and_a_built_network_is_taken(tmp_path: Path, name: str, outputs: int) -> None:
    assert width(f"{project(tmp_path, {'classes': CLASS})}/classes.py:{name}") == outputs


@pytest.mark.parametrize(
    ("spec", "is_one"),
    [
        ("nets.py:make", True),
        ("/a b/nets.py:Net.small", True),
        ("pkg.net:net", True),
        ("pkg:Net.small", True),
        ("digits", False),
        ("images:2", False),
        ("./images", False),
        ("a/b:c", False),
    ],
)
def test_what_is_code(spec: str, is_one: bool) -> None:
    assert is_code(spec) is is_one


# arguments


def test_arguments_reach_the_factory_and_win_over_the_number_of_classes(tmp_path: Path) -> None:
    text = "from torch import nn\ndef net(num_classes=7, width=1): return nn.Sequential(nn.Linear(width, num_classes))\n"
    spec = f"{project(tmp_path, {'given': text})}/given.py:net"
    told = load_model(find_model(spec, {"width": 3}), None, num_classes=5)[0]  # type: ignore[index]
    asked = load_model(find_model(spec, {"num_classes": 2}), None, num_classes=5)[0]  # type: ignore[index]

    assert (told.in_features, told.out_features) == (3, 5)
    assert asked.out_features == 2


def test_torchvision_networks_take_arguments() -> None:
    narrow = find_model("torchvision:mobilenet_v2", {"width_mult": 0.25})

    assert narrow.factory(**narrow.arguments).features[0][0].out_channels == 8


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        (["width=0.5", "depth=20"], {"width": 0.5, "depth": 20}),
        (["a=1e-3", "b=010", "c=0o10", "d=0x1F", "e=-.5", "f=1."], {"a": 1e-3, "b": 10, "c": 8, "d": 31, "e": -0.5, "f": 1.0}),
        (["a=true", "b=False", "c=yes", "d=null", "e=", "f=~"], {"a": True, "b": False, "c": "yes", "d": None, "e": None, "f": None}),
        (["a='0.5'", 'b="true"', "c=a b", "d=x=y", "e=1:30", "f=2024-01-01"], {"a": "0.5", "b": "true", "c": "a b", "d": "x=y", "e": "1:30", "f": "2024-01-01"}),
    ],
    ids=["numbers", "other numbers", "true, false, null", "text"],
)  # fmt: skip
def test_values_are_scalars_of_yaml_1_2(texts: list[str], found: dict[str, object]) -> None:
    assert read_arguments(texts) == found
    assert {name: type(value) for name, value in read_arguments(texts).items()} == {n: type(v) for n, v in found.items()}


@given(
    st.dictionaries(st.from_regex(r"[a-z]{1,5}", fullmatch=True), st.integers() | st.booleans() | st.none() | st.text("ab 1.-+e"))
)
def test_what_json_writes_is_read_back(values: dict[str, object]) -> None:

    assert read_arguments(f"{name}={json.dumps(value)}" for name, value in values.items()) == values


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("width", "'width': expected NAME=VALUE, for example width=0.5"),
        ("a-b=1", "'a-b=1': expected NAME=VALUE"),
        ("w=[1, 2]", "not a single value"),
        ("w={a: 1}", "not a single value"),
        ("w=.nan", "not a finite number"),
        ("w=1e999", "too large a number"),
        ("w='", "not a valid YAML value"),
    ],
)
def test_other_values_are_refused(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        read_arguments([text])

    assert complaint in str(caught.value)


def test_arguments_belong_to_a_job_and_its_identity_and_older_jobs_keep_theirs() -> None:
    profile = load_profile("raspberrypi")
    plain, given_one = Job("raspberrypi"), Job("raspberrypi", model_args={"width": 0.5})

    assert "model_args" not in plain.identity(profile, {})
    assert given_one.identity(profile, {}) == {**plain.identity(profile, {}), "model_args": {"width": 0.5}}


# what goes wrong in it


@pytest.mark.parametrize(
    ("files", "spec", "complaint"),
    [
        ({"bad": "import torch\n\n1 / 0\n"}, "bad.py:net", "bad.py: cannot be imported: ZeroDivisionError: division by zero (at {0}/bad.py:3)"),
        ({"bad": "def net(:\n"}, "bad.py:net", "bad.py: cannot be imported: SyntaxError: invalid syntax (at {0}/bad.py:1)"),
        ({"user": "import nearby\n", "nearby": "\nraise KeyError('x')\n"}, "user.py:net", "KeyError: 'x' (at {0}/nearby.py:2)"),
        ({"bad": "import no_such_thing\n"}, "bad.py:net", "ModuleNotFoundError: No module named 'no_such_thing' (at {0}/bad.py:1); install it into"),
        ({"bad": "import torch\ndef net():\n    return torch.nn.Linear(-1, 'x')\n"}, "bad.py:net", "bad.py:net: the factory failed with"),
        ({"bad": "import torch\ndef net():\n    return torch.nn.Linear(-1, 'x')\n"}, "bad.py:net", "(at {0}/bad.py:3)"),
        ({"p/net": "from .no import x\n"}, "p/net.py:net", "p/net.py: cannot be imported as p.net: ModuleNotFoundError: No module named 'p.no' (at {0}/p/net.py:1)"),
        ({"p/net": "1 / 0\n"}, "p.net:net", "p.net: cannot be imported: ZeroDivisionError: division by zero (at {0}/p/net.py:1)"),
        ({"p/net": "x = 1\n"}, "p.nett:net", "no module 'p.nett' in {0} or among the installed packages; give --model package.module:factory"),
        ({"p/net": "x = 1\n"}, "p.net:net", "p.net: no function 'net' in this file or module; give --model file.py:factory or package.module:factory"),
        ({"p/net": "x = 1\n"}, "p.net:x", "p.net: no function 'x' in this file or module"),
        ({"c": CLASS}, "c.py:Net.grown", "c.py: 'Net.grown' is a method that needs an instance; make it a @staticmethod or"),
        ({"json/net": "from . import x\n"}, "json/net.py:net", "json/net.py: its package 'json' has the same name as another one, "),
    ],
)  # fmt: skip
def test_an_error_in_a_user_s_file_is_one_line_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], spec: str, complaint: str
) -> None:
    monkeypatch.chdir(project(tmp_path, files))
    with pytest.raises(ModelError) as caught:
        load_model(find_model(spec), None, None)

    assert complaint.format(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_argument_that_the_factory_does_not_take_is_refused_with_those_that_it_takes(tmp_path: Path) -> None:
    spec = f"{project(tmp_path, {'two': LAYERS + NET.format(imported='')})}/two.py:net"
    with pytest.raises(ModelError) as caught:
        find_model(spec, {"breadth": 0.5})

    assert str(caught.value) == f"{spec}: got an unexpected keyword argument 'breadth'; it accepts width"


def test_an_error_while_data_are_made_is_told_with_its_place(tmp_path: Path) -> None:
    project(tmp_path, {"imgs": "def make():\n    return open('no such file')\n"})
    with pytest.raises(DataError) as caught:
        load_data(f"{tmp_path}/imgs.py:make", None, 0)

    assert "FileNotFoundError" in str(caught.value)
    assert f"(at {tmp_path}/imgs.py:2)" in str(caught.value)


def test_a_network_in_torch_s_own_words() -> None:
    """package.module:attribute needs no file of one's own."""
    network = load_model(find_model("torch.nn:Linear", {"in_features": 2, "out_features": 3}), None, None)

    assert isinstance(network, nn.Linear)
    assert network(torch.ones(1, 2)).shape == (1, 3)
