"""A network may take several inputs and return tensors in a dict, a list or a tuple. The user's functions see its own form."""

import copy
import sys
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from helpers.graphs import TWO_INPUTS, profile, two_by_two
from torch import Tensor, nn

from pipeline import load_compressed
from pipeline.compress import compress
from pipeline.core.batch import Batch
from pipeline.core.network_form import in_form, settle_form
from pipeline.core.onnx_outputs import all_outputs
from pipeline.deploy import agent
from pipeline.errors import DataError, ModelError
from pipeline.graph.export import export_trainable
from pipeline.graph.exporters import EXPORTERS, TRAINABLE_EXPORTERS, Exporter
from pipeline.packaging import infer
from pipeline.packaging.serving import serving_files
from pipeline.stages.job import Job
from pipeline.training.adapt_network import adapt
from pipeline.training.scoring import OnnxModule
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
    if isinstance(answer, Boxes):
        return Boxes, structure(vars(answer))
    return answer


@pytest.mark.parametrize("form", FORMS)
def test_the_tensor_is_taken_and_its_copies_and_names_stay(form: str) -> None:
    net = Net(form).eval()
    names = list(net.state_dict())
    found = settle_form(net, IMAGES[:1], "net")

    assert found is not None
    assert torch.equal(net(IMAGES), net.logits(IMAGES))
    assert torch.equal(copy.deepcopy(net)(IMAGES), net.logits(IMAGES))
    assert list(net.state_dict()) == names


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_its_onnx_file_has_the_one_output(exporter: str) -> None:
    net = Net("nested").eval()
    settle_form(net, IMAGES[:1], "net")
    answer = OnnxModule(EXPORTERS[exporter](net, IMAGES[:1], 18).SerializeToString())(IMAGES)

    assert torch.allclose(answer, net.logits(IMAGES), atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_the_user_s_functions_see_the_network_s_own_form(form: str) -> None:
    """Of the network, of a copy of it, and of its ONNX file; afterwards each answers with the tensor again."""
    net = Net(form).eval()
    own = structure(net(IMAGES))
    found = settle_form(net, IMAGES[:1], "net")
    assert found is not None
    file = OnnxModule(EXPORTERS["torch.onnx.export(..., dynamo=False)"](net, IMAGES[:1], 18).SerializeToString())
    for module in (net, copy.deepcopy(net), file):
        assert in_form(lambda module: structure(module(IMAGES)), found)(module) == own
        assert isinstance(module(IMAGES), Tensor)


@pytest.mark.parametrize("train", [lambda module: module, copy.deepcopy, lambda module: Net("dict").eval()])
def test_a_trained_network_answers_with_the_tensor_whichever_it_is(train: Any) -> None:
    net = Net("dict").eval()
    found = settle_form(net, IMAGES[:1], "net")
    assert found is not None

    assert isinstance(in_form(train, found)(net)(IMAGES), Tensor)


def test_more_tensors_in_training_do_not_hide_the_one() -> None:
    class Auxiliary(Net):
        def forward(self, x: Tensor) -> Any:
            return {"out": self.logits(x), "aux": x} if self.training else {"out": self.logits(x)}

    net = Auxiliary("dict").eval()
    settle_form(net, IMAGES[:1], "net")

    assert torch.equal(net.train()(IMAGES), net.logits(IMAGES))


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (lambda y: None, "nets.py:net: the network returns a NoneType without a tensor; return at least one"),
        (lambda y: {"a": [], "b": 1.0}, "nets.py:net: the network returns a dict without a tensor; return at least one"),
    ],
)
def test_a_network_without_a_tensor_is_refused(monkeypatch: pytest.MonkeyPatch, answer: Any, complaint: str) -> None:
    monkeypatch.setitem(FORMS, "odd", answer)
    with pytest.raises(ModelError) as caught:
        settle_form(Net("odd").eval(), IMAGES[:1], "nets.py:net")

    assert str(caught.value).startswith(complaint)


def test_a_tensor_is_left_as_it_is() -> None:
    net = nn.Conv2d(3, 4, 3)

    assert settle_form(net, IMAGES[:1], "net") is None
    assert not net._forward_hooks


@dataclass
class Boxes:
    scores: Any
    shapes: Any


class TwoByTwo(nn.Module):
    """picture -> conv(8) -> conv(4) -> map; mean of the map + embedding of a number -> linear(3) -> scores"""

    FORMS: ClassVar[dict[str, Any]] = {
        "dict": lambda a, b: {"map": a, "scores": b},
        "tuple": lambda a, b: (a, b),
        "nested": lambda a, b: [{"map": a}, ("text", b)],
        "dataclass": lambda a, b: Boxes(b, {"map": a}),
    }

    def __init__(self, form: str = "dict") -> None:
        super().__init__()
        self.a, self.b, self.kinds, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3), nn.Embedding(5, 4), nn.Linear(4, 3)
        self.form = form

    def plain(self, picture: Tensor, kind: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.b(self.a(picture).relu())
        return maps, self.head(maps.mean((2, 3)) + self.kinds(kind))

    def forward(self, picture: Tensor, unused: None = None, kind: Tensor | None = None) -> Any:
        assert kind is not None
        return self.FORMS[self.form](*self.plain(picture, kind))


KINDS = torch.tensor([0, 4, 2, 1])
NAMED = Batch((IMAGES, KINDS))
NAMES = {
    "dict": ("map", "scores"),
    "tuple": ("output", "output_1"),
    "nested": ("output.map", "output_1.1"),
    "dataclass": ("scores", "shapes.map"),
}


@pytest.mark.parametrize("form", NAMES)
def test_several_tensors_are_a_tuple_and_the_user_s_functions_see_their_own_form(form: str) -> None:
    net = TwoByTwo(form).eval()
    own = structure(net(IMAGES, kind=KINDS))
    found = settle_form(net, NAMED[:1], "net", ("picture", "kind"))
    assert found is not None
    expected = dict(zip(("map", "scores"), net.plain(IMAGES, KINDS), strict=True))
    order = [name.rpartition(".")[2] for name in NAMES[form]] if form == "dataclass" else ["map", "scores"]

    assert found.outputs == NAMES[form]
    for module in (net, copy.deepcopy(net)):
        for name, tensor in zip(order, module(NAMED), strict=True):
            assert torch.equal(tensor, expected[name])
        assert in_form(lambda module: structure(module(IMAGES, kind=KINDS)), found)(module) == own
        assert isinstance(module(NAMED), tuple)


@pytest.mark.parametrize("exporter", [*EXPORTERS.values(), *TRAINABLE_EXPORTERS.values()])
def test_its_onnx_file_has_the_names_of_the_inputs_and_outputs(exporter: Exporter) -> None:
    """and as a module it takes what the network takes, in the user's functions, and returns its form"""
    net = TwoByTwo().eval()
    found = settle_form(net, NAMED[:1], "net", ("picture", "kind"))
    assert found is not None
    file = OnnxModule(exporter(net, NAMED[:1], 18).SerializeToString())

    assert (file.input_names, file.output_names) == (("picture", "kind"), ("map", "scores"))
    for ours, theirs in zip(file(NAMED), net(NAMED), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)

    def calls(module: nn.Module) -> list[Any]:
        answers = [module(IMAGES, None, KINDS), module(kind=KINDS, picture=IMAGES), module(IMAGES, kind=KINDS)]
        return [{key: value.shape for key, value in answer.items()} for answer in answers]

    assert in_form(calls, found)(file) == in_form(calls, found)(net)


def test_an_output_that_is_returned_twice_or_that_is_an_input_gets_a_value_of_its_own() -> None:
    class Repeated(Net):
        def forward(self, x: Tensor) -> Any:
            y = self.logits(x)
            return {"a": y, "b": y, "x": x}

    net = Repeated("dict").eval()
    settle_form(net, IMAGES[:1], "net")
    model = export_trainable(net, IMAGES[:1], 18, 10)
    a, b, x = OnnxModule(model.SerializeToString())(IMAGES)

    assert [value.name for value in model.graph.output] == ["a", "b", "x"]
    assert torch.equal(a, b)
    assert torch.equal(x, IMAGES)


def test_an_output_never_takes_the_name_of_a_weight() -> None:
    class Scaled(Net):
        def __init__(self) -> None:
            super().__init__("dict")
            self.scale = nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> Any:
            return {"scale": self.logits(x) * self.scale, "other": x}

    net = Scaled().eval()
    settle_form(net, IMAGES[:1], "net")
    model = export_trainable(net, IMAGES[:1], 18, 10)

    assert "scale" in {tensor.name for tensor in model.graph.initializer}
    assert [value.name for value in model.graph.output] == ["scale_2", "other"]


@pytest.mark.parametrize(
    ("inputs", "complaint"),
    [
        ((IMAGES, KINDS[:2]), r"all inputs need the same number of samples \(got 4 of 0, 2 of 1\)"),
        ({"a": IMAGES, "b": [1, 2]}, r"input 'b': got list; give a tensor with at least one sample"),
        ((torch.tensor(1.0),), r"input 0: got \(\); give a tensor"),
        ({}, r"all inputs need the same number of samples \(got none\)"),
    ],
)
def test_inputs_that_do_not_fit_each_other_are_refused(inputs: Any, complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        OwnTask(inputs, evaluate=lambda module: 0.0, train=lambda module: module)


def test_a_network_that_takes_no_batches_gets_its_samples_one_by_one_whatever_its_form() -> None:
    class Alone(TwoByTwo):
        def forward(self, picture: Tensor, unused: None = None, kind: Tensor | None = None) -> Any:
            assert len(picture) == 1
            return super().forward(picture, unused, kind)

    torch.manual_seed(0)
    net = Alone("nested").eval()
    settle_form(net, NAMED[:1], "net", ("picture", "kind"))
    (notice,) = adapt(net, NAMED[:2])

    assert notice.startswith("the network does not accept batches")
    for ours, theirs in zip(net(NAMED), net.plain(IMAGES, KINDS), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.fixture
def _imports(monkeypatch: pytest.MonkeyPatch) -> None:
    """The health check runs in a process of its own and changes it. Here the changes are undone."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", sys.dont_write_bytecode)
    monkeypatch.delitem(sys.modules, "infer", raising=False)


@pytest.mark.usefixtures("_imports")
def test_a_whole_run_of_one_s_own_task_with_dicts_of_inputs_and_outputs(tmp_path: Path) -> None:
    """All functions see the dict, from the network and from the ONNX file. The device gets files for all inputs and outputs."""
    (tmp_path / "nets.py").write_text(
        "from test_network_form import TwoByTwo\nimport torch\ndef net():\n    torch.manual_seed(0)\n    return TwoByTwo()\n"
    )
    seen: list[str] = []

    def evaluate(module: nn.Module) -> float:
        with torch.no_grad():
            answer = module(IMAGES, kind=KINDS)
        seen.append(f"{type(answer).__name__} of {type(module).__name__}")
        return 100 - float(answer["scores"].square().mean() + answer["map"].square().mean())

    def train(module: nn.Module) -> nn.Module:
        seen.append(type(module(picture=IMAGES, kind=KINDS)).__name__)
        return module

    done = compress(
        Job(
            "raspberrypi",
            model=f"{tmp_path}/nets.py:net",
            task=OwnTask(
                {"picture": IMAGES, "kind": KINDS},
                evaluate,
                train,
                test_each_image=lambda module: [evaluate(module)] * 50,
            ),
            budget={"latency_p50": "100%", "params": "95%", "accuracy_drop": 1000.0},
            searcher="uniform",
            trials=1,
            dry_run=True,
            out=tmp_path / "run",
        )
    )
    inputs, outputs = (np.load(done.folder / f"golden-{side}.npy") for side in ("inputs", "outputs"))
    found = infer.Model(str(done.folder)).run(inputs["picture"][1:2], kind=inputs["kind"][1:2])
    network = load_compressed(TwoByTwo(), done.folder)
    with torch.no_grad():
        own = network(IMAGES[1:2], kind=KINDS[1:2])
    health = agent.examined(str(done.folder), runs=1)

    assert set(seen) == {"dict of TwoByTwo", "dict of OnnxModule", "dict"}
    assert any("the shipped file has the outputs map, scores" in notice for notice in done.artifact.notices)
    for name in ("map", "scores"):
        np.testing.assert_allclose(found[name], outputs[name][1:2], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(own[name].numpy(), outputs[name][1:2], rtol=1e-3, atol=1e-5)
    assert health["golden_inputs"] == len(IMAGES)


@pytest.mark.usefixtures("_imports")
def test_the_health_check_on_a_device_names_the_output_that_is_wrong(tmp_path: Path) -> None:
    """picture, count -> map, scaled; an expected value of scaled is changed"""
    names, answers = ("map", "scaled"), all_outputs(two_by_two(), TWO_INPUTS)
    inputs = dict(zip(("picture", "count"), TWO_INPUTS, strict=True))
    for wrong in (1.0, 1.2):
        expected = dict(zip(names, (answers[0], answers[1] * wrong), strict=True))
        files = {"model.onnx": two_by_two(), **serving_files(profile(), inputs, expected, {})}
        for name, data in files.items():
            (tmp_path / name).write_bytes(data)
        if wrong == 1.0:
            assert agent.examined(str(tmp_path), runs=1)["golden_inputs"] == 1
        else:
            with pytest.raises(agent.Failed, match=r"output 'scaled': golden input 0 is off by 16\.7 %"):
                agent.examined(str(tmp_path), runs=1)
