"""Recipes: what the worker makes of one is the file that would have been sent; and a bad one is answered, never measured."""

import copy
import importlib.util
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from helpers.analysed import analysed
from helpers.nets import EXAMPLE, ZOO, build
from helpers.workers import WORKER, Worker, until

from pipeline.core.onnx_outputs import run_onnx
from pipeline.core.plan import PruneSpace
from pipeline.core.restriction import Restriction
from pipeline.core.weight_slices import WeightSlices
from pipeline.graph.analyse import analyse
from pipeline.graph.prunable_network import random_kept
from pipeline.graph.settings import PruningSettings
from pipeline.graph.slice import SliceableGraph
from pipeline.graph.structure import structure
from pipeline.graph.weight_file import assembled, file_size_bytes

Order = dict[str, Any]
SHAPE = tuple(EXAMPLE.shape)


@cache
def worker_module() -> ModuleType:
    """The worker's text, as the device has it: by path, without the package."""
    spec = importlib.util.spec_from_file_location("worker_by_path", WORKER)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def prepared(name: str) -> tuple[PruneSpace, SliceableGraph]:
    prunable = analysed(ZOO[name])
    return prunable.space, prunable.deployed


def slices_of(name: str, seed: int) -> WeightSlices:
    space, graph = prepared(name)
    return graph.weight_slices(random_kept(space, seed))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ZOO)
def test_the_worker_makes_the_file_that_would_have_been_sent(name: str, seed: int, tmp_path: Path) -> None:
    space, graph = prepared(name)
    sent = graph.slice(random_kept(space, seed))
    weight_slices = slices_of(name, seed)
    worker_module().assemble(
        str(tmp_path / "made.onnx"), weight_slices.order, weight_slices.blob, weight_slices.base.data(), weight_slices.base.index
    )
    data = (tmp_path / "made.onnx").read_bytes()
    made = onnx.load_model_from_string(data)
    answers = [run_onnx(each, EXAMPLE.numpy()).tobytes() for each in (data, sent.SerializeToString())]

    onnx.checker.check_model(made, full_check=True)
    assert made == sent
    assert structure(made) == structure(sent)
    assert len(data) == file_size_bytes(weight_slices, assembled(weight_slices, values=False)) == len(sent.SerializeToString())
    assert answers[0] == answers[1]


def test_the_worker_leaves_out_the_tensors_of_a_dropped_block(tmp_path: Path) -> None:
    prunable = analyse(build(ZOO["residual"]), EXAMPLE, settings=PruningSettings(restriction=Restriction(depth=True)))
    kept = random_kept(prunable.space, 0) | {prunable.space.blocks[0].name: ()}
    sent, weight_slices = prunable.deployed.slice(kept), prunable.deployed.weight_slices(kept)
    worker_module().assemble(
        str(tmp_path / "made.onnx"), weight_slices.order, weight_slices.blob, weight_slices.base.data(), weight_slices.base.index
    )
    data = (tmp_path / "made.onnx").read_bytes()

    assert len(sent.graph.initializer) < len(weight_slices.base.tensors)
    assert onnx.load_model_from_string(data) == sent
    assert len(data) == file_size_bytes(weight_slices, assembled(weight_slices, values=False))


def test_a_depthwise_convolution_has_as_many_groups_as_channels_in_the_made_file_too(tmp_path: Path) -> None:
    weight_slices = slices_of("depthwise", 3)
    worker_module().assemble(
        str(tmp_path / "made.onnx"), weight_slices.order, weight_slices.blob, weight_slices.base.data(), weight_slices.base.index
    )
    made = onnx.load(tmp_path / "made.onnx")
    widths = {tensor.name: tensor.dims[0] for tensor in made.graph.initializer}
    groups = {node.input[1]: a.i for node in made.graph.node for a in node.attribute if a.name == "group" and a.i > 1}

    assert groups == {"filter.0.weight": 3} == {weight: widths[weight] for weight in groups}


def test_two_sets_of_slices_have_one_name_only_where_the_file_is_the_same() -> None:
    assert slices_of("chain", 1).digest == slices_of("chain", 1).digest
    assert len({slices_of("chain", seed).digest for seed in range(5)}) == 5


def test_slices_are_smaller_than_their_weights() -> None:
    """What grows with the weights is the base, which is sent once: an order has a bit for each channel."""
    weight_slices = slices_of("chain", 1)

    assert sum(len(bits) // 2 for _, bits in weight_slices.order["masks"]) < 10
    assert {key: type(value) for key, value in weight_slices.order.items()} == {
        "base": str,
        "model_bytes": int,
        "masks": list,
        "cuts": list,
    }


# ---------------------------------------------------------------- spoken to the worker


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    worker = Worker(tmp_path)
    yield worker
    worker.process.terminate()
    worker.close()


@pytest.fixture
def weight_slices() -> WeightSlices:
    return slices_of("chain", 1)


def keep_base(worker: Worker, weight_slices: WeightSlices) -> None:
    base = weight_slices.base
    assert worker.ask({"do": "base", "name": base.digest, "tensors": base.index}, base.data()) == {}


def measure(worker: Worker, order: Order | None, blob: bytes) -> Order:
    feed = worker.put(EXAMPLE.numpy().tobytes())
    return worker.measure(blob, slices=order, input=feed, shape=SHAPE)


def test_slices_answer_like_their_file(worker: Worker, weight_slices: WeightSlices) -> None:
    keep_base(worker, weight_slices)
    space, graph = prepared("chain")
    file = graph.slice(random_kept(space, 1)).SerializeToString()
    answers = [
        measure(worker, *each)["processes"][0]["answer"] for each in ((weight_slices.order, weight_slices.blob), (None, file))
    ]

    np.testing.assert_array_equal(answers[0], answers[1])


def test_a_made_file_is_kept_under_the_name_it_was_given(worker: Worker, weight_slices: WeightSlices) -> None:
    keep_base(worker, weight_slices)
    assert worker.ask({"do": "make", "name": weight_slices.digest, "slices": weight_slices.order}, weight_slices.blob) == {}
    (made,) = worker.folder.glob(f"*/{weight_slices.digest}")

    assert made.stat().st_size == file_size_bytes(weight_slices, assembled(weight_slices, values=False))


def test_slices_of_weights_that_were_never_sent_are_refused_and_the_worker_goes_on(
    worker: Worker, weight_slices: WeightSlices
) -> None:
    answer = worker.ask({"do": "make", "name": weight_slices.digest, "slices": weight_slices.order}, weight_slices.blob)

    assert answer == {"failure": ["run-error", f"no such base: '{weight_slices.base.digest}'"]}
    assert worker.answers()


def a_cut(order: Order, axis: object, mask: object) -> None:
    """The last tensor's: all before it are looked at already when it comes to this one."""
    order["cuts"][-1] = [[axis, mask]]


def drop(key: str) -> Callable[[Order], object]:
    return lambda order: order.pop(key)


def put(key: str, value: object) -> Callable[[Order], object]:
    return lambda order: order.__setitem__(key, value)


MALFORMED: dict[str, Callable[[Order], object]] = {
    "no masks": drop("masks"),
    "no cuts": drop("cuts"),
    "no length": drop("model_bytes"),
    "a length that is no number": put("model_bytes", "many"),
    "fewer cuts than tensors": lambda order: order["cuts"].pop(),
    "more cuts than tensors": lambda order: order["cuts"].append([]),
    "a mask that there is not": lambda order: a_cut(order, 0, 99),
    "a mask of another axis's length": lambda order: (order["masks"].append([64, "ff" * 8]), a_cut(order, 0, len(order["masks"]) - 1)),
    "an axis that there is not": lambda order: a_cut(order, 9, 0),
    "an axis that is no number": lambda order: a_cut(order, "first", 0),
    "a mask that is no hexadecimal": lambda order: order["masks"].__setitem__(0, [8, "channels"]),
    "cuts that are numbers": put("cuts", 7),
    "a base that is no name": put("base", ["x"]),
}  # fmt: skip


@pytest.mark.parametrize("case", MALFORMED)
@pytest.mark.parametrize("do", ["make", "measure"])
def test_malformed_slices_are_a_failure_and_nothing_is_made(
    worker: Worker, weight_slices: WeightSlices, case: str, do: str
) -> None:
    """also where a sound one was measured before: its file must not be taken for this one's"""
    keep_base(worker, weight_slices)
    assert measure(worker, weight_slices.order, weight_slices.blob)["processes"]
    order = copy.deepcopy(weight_slices.order)
    MALFORMED[case](order)
    if do == "make":
        answer = worker.ask({"do": "make", "name": weight_slices.digest, "slices": order}, weight_slices.blob)
    else:
        answer = measure(worker, order, weight_slices.blob)

    assert list(answer) == ["failure"]
    assert answer["failure"][0] == "run-error"
    assert not list(worker.folder.glob(f"*/{weight_slices.digest}"))


@pytest.mark.parametrize("blob", [b"", b"not compressed", "cut off"], ids=["empty", "not compressed", "cut off"])
def test_slices_whose_graph_cannot_be_unpacked_are_a_failure(
    worker: Worker, weight_slices: WeightSlices, blob: bytes | str
) -> None:
    keep_base(worker, weight_slices)
    answer = measure(worker, weight_slices.order, blob if isinstance(blob, bytes) else weight_slices.blob[:-20])

    assert answer["failure"][0] == "run-error"


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors[-1].__setitem__(4, 10**9),
        lambda tensors: tensors[-1].__setitem__(3, [-1, 3]),
        lambda tensors: tensors[-1].__setitem__(2, "of wood"),
        lambda tensors: tensors.append(["too short"]),
    ],
    ids=["beyond the end", "negative", "no such type", "too short"],
)
def test_a_base_that_is_described_wrongly_makes_nothing(
    worker: Worker, weight_slices: WeightSlices, change: Callable[[list[Any]], object]
) -> None:
    tensors = copy.deepcopy(weight_slices.base.index)
    change(tensors)
    worker.ask({"do": "base", "name": weight_slices.base.digest, "tensors": tensors}, weight_slices.base.data())
    answer = worker.ask({"do": "make", "name": weight_slices.digest, "slices": weight_slices.order}, weight_slices.blob)

    assert answer["failure"][0] == "run-error"
    assert not list(worker.folder.glob(f"*/{weight_slices.digest}"))


def test_a_worker_that_got_malformed_slices_leaves_nothing(worker: Worker, weight_slices: WeightSlices) -> None:
    """what follows on the pipe may be the rest of it: it ends, and whoever asked starts another"""
    keep_base(worker, weight_slices)
    worker.ask({"do": "make", "name": weight_slices.digest, "slices": {"base": weight_slices.base.digest}}, weight_slices.blob)

    assert until(lambda: worker.process.poll() is not None)
    assert list(worker.folder.iterdir()) == []
