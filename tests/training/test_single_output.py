"""Networks that answer with a dict, a list or a tuple around one tensor are taken; the user's functions see their own form."""

import copy
from collections import OrderedDict, namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.compress import compress
from pipeline.errors import ModelError
from pipeline.graph.exporters import EXPORTERS
from pipeline.stages.job import Job
from pipeline.training.scoring import OnnxModule
from pipeline.training.single_output import answers_in, unwrap
from pipeline.training.task import OwnTask

Answer = namedtuple("Answer", ["logits", "note"])
FORMS: dict[str, Any] = {
    "dict": lambda y: {"out": y},
    "ordered": lambda y: OrderedDict(out=y, aux=None),
    "list": lambda y: [y],
    "tuple": lambda y: (y,),
    "named": lambda y: Answer(y, "none"),
    "nested": lambda y: {"out": [1, (y, None)]},
}
IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """conv(8) -> conv(8) -> mean -> linear(3), and its answer in a form."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 3)
        self.form = form

    def logits(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.b(self.a(x).relu()).relu().mean((2, 3)))
        return found

    def forward(self, x: Tensor) -> Any:
        return FORMS[self.form](self.logits(x))


def structure(answer: Any) -> Any:
    """An answer with a word in place of its tensor, and the types of everything around it."""
    if isinstance(answer, Tensor):
        return "tensor"
    if isinstance(answer, dict):
        return type(answer), {key: structure(inner) for key, inner in answer.items()}
    if isinstance(answer, list | tuple):
        return type(answer), [structure(inner) for inner in answer]
    return answer


@pytest.mark.parametrize("form", FORMS)
def test_the_tensor_is_taken_and_its_copies_and_names_stay(form: str) -> None:
    net = Net(form).eval()
    names = list(net.state_dict())
    found = unwrap(net, IMAGES[:1], "net")

    assert found is not None
    assert torch.equal(net(IMAGES), net.logits(IMAGES))
    assert torch.equal(copy.deepcopy(net)(IMAGES), net.logits(IMAGES))
    assert list(net.state_dict()) == names


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_its_onnx_file_has_the_one_output(exporter: str) -> None:
    net = Net("nested").eval()
    unwrap(net, IMAGES[:1], "net")
    answer = OnnxModule(EXPORTERS[exporter](net, IMAGES[:1], 18).SerializeToString())(IMAGES)

    assert torch.allclose(answer, net.logits(IMAGES), atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_the_user_s_functions_see_the_network_s_own_form(form: str) -> None:
    """Of the network, of a copy of it, and of its ONNX file; afterwards each answers with the tensor again."""
    net = Net(form).eval()
    own = structure(net(IMAGES))
    found = unwrap(net, IMAGES[:1], "net")
    assert found is not None
    file = OnnxModule(EXPORTERS["torch.onnx.export(..., dynamo=False)"](net, IMAGES[:1], 18).SerializeToString())
    for module in (net, copy.deepcopy(net), file):
        assert answers_in(lambda module: structure(module(IMAGES)), found)(module) == own
        assert isinstance(module(IMAGES), Tensor)


@pytest.mark.parametrize("train", [lambda module: module, copy.deepcopy, lambda module: Net("dict").eval()])
def test_a_trained_network_answers_with_the_tensor_whichever_it_is(train: Any) -> None:
    net = Net("dict").eval()
    found = unwrap(net, IMAGES[:1], "net")
    assert found is not None

    assert isinstance(answers_in(train, found)(net)(IMAGES), Tensor)


def test_more_tensors_in_training_do_not_hide_the_one() -> None:
    class Auxiliary(Net):
        def forward(self, x: Tensor) -> Any:
            return {"out": self.logits(x), "aux": x} if self.training else {"out": self.logits(x)}

    net = Auxiliary("dict").eval()
    unwrap(net, IMAGES[:1], "net")

    assert torch.equal(net.train()(IMAGES), net.logits(IMAGES))


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (
            lambda y: (y, y),
            "nets.py:net: the network returns a tuple with 2 tensors, but exactly one is needed; make its forward return only that one",
        ),
        (lambda y: {"a": [y], "b": (y, y)}, "nets.py:net: the network returns a dict with 3 tensors"),
        (lambda y: None, "nets.py:net: the network returns a NoneType with 0 tensors"),
    ],
)
def test_another_number_of_tensors_is_refused(monkeypatch: pytest.MonkeyPatch, answer: Any, complaint: str) -> None:
    monkeypatch.setitem(FORMS, "odd", answer)
    with pytest.raises(ModelError) as caught:
        unwrap(Net("odd").eval(), IMAGES[:1], "nets.py:net")

    assert str(caught.value).startswith(complaint)


def test_a_tensor_is_left_as_it_is() -> None:
    net = nn.Conv2d(3, 4, 3)

    assert unwrap(net, IMAGES[:1], "net") is None
    assert not net._forward_hooks


def test_a_whole_run_of_one_s_own_task_with_a_dict(tmp_path: Path) -> None:
    """All functions take the dict, from the network and from the ONNX file; the file's name for its output is its own."""
    (tmp_path / "nets.py").write_text(
        "from test_single_output import Net\nimport torch\ndef net():\n    torch.manual_seed(0)\n    return Net('dict')\n"
    )
    seen: list[str] = []

    def evaluate(module: nn.Module) -> float:
        with torch.no_grad():
            answer = module(IMAGES)
        seen.append(type(answer).__name__)
        return 100 - float(answer["out"].square().mean())

    def train(module: nn.Module) -> nn.Module:
        seen.append(type(module(IMAGES)).__name__)
        return module

    done = compress(
        Job(
            "raspberrypi",
            model=f"{tmp_path}/nets.py:net",
            task=OwnTask(IMAGES, evaluate, train, test_each_image=lambda module: [evaluate(module)] * 50),
            budget={"latency_p50": "100%", "params": "90%", "accuracy_drop": 1000.0},
            searcher="uniform",
            trials=1,
            dry_run=True,
            out=tmp_path / "run",
        )
    )

    assert set(seen) == {"dict"}
    assert any("returns a dict with one tensor (at ['out'])" in notice for notice in done.artifact.notices)
