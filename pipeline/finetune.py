"""Fine-tune: SGD with a cosine schedule, label smoothing and distillation from the dense network; resumable by epoch.

A high peak rate forgets what a good cut still knows, and a low one does not bring a bad cut back in time. So each of `RATES` is
first tried on a few images, and judged by the validation accuracy.
"""

import copy
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.bfloat16 import mixed_precision
from pipeline.data.images import Images
from pipeline.files import sha256_bytes, write_atomically
from pipeline.scoring import accuracy

__all__ = ["FinetuneSettings", "Finetuned", "Progress", "distillation_loss", "finetune"]

RATES = (0.05, 0.02, 0.01, 0.005)
"""Peak rates to choose from, the highest first."""
ALIKE = 1.0
"""Percentage points that the highest may be behind the best: a long training bears more than a short trial."""
TRIAL_SHARE = 0.1
"""Of the images that the whole training sees, for each trial."""
TRIAL_IMAGES = 10_000
"""At most, for each trial."""
FEWEST_STEPS = 32
"""In a trial; a shorter one tells nothing, and the first of `RATES` is taken."""

Progress = Callable[[int, int, str], None]
"""(batches done, batches in all, text)."""


@dataclass(frozen=True)
class FinetuneSettings:
    """One schedule for every searcher and every baseline, so that they can be compared."""

    epochs: int = 20
    batch_size: int = 128
    learning_rate: float | None = None
    """At the peak, after one epoch of warm-up. None: one of `RATES`, by trial."""
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.1
    distillation: float = 0.7
    """Share of the loss that follows the dense network's answers; the rest follows the labels."""
    temperature: float = 4.0


@dataclass(frozen=True)
class Finetuned:
    """A trained network, and how it came about."""

    module: nn.Module
    learning_rate: float | None = None
    """At the peak. None where that is not known: a user's own training."""
    accuracies: tuple[float, ...] = ()
    """In percent on validation images, epoch by epoch."""


@dataclass
class _State:
    """Where training stands after an epoch."""

    epoch: int
    best_score: float
    best: dict[str, Tensor]
    history: list[float]
    learning_rate: float


def finetune(
    student: nn.Module,
    teacher: nn.Module | None,
    train: Images,
    validation: Images,
    settings: FinetuneSettings,
    seed: int,
    checkpoint: Path | None = None,
    progress: Progress = lambda done, total, text: None,
) -> Finetuned:
    """Train a copy of `student`; returns it as of its best validation epoch.

    The state is kept in `checkpoint` after every epoch, and a run that was cut off continues from there; the batches of
    an epoch depend on the seed and the epoch alone. Where the settings name no learning rate, `RATES` are tried first. Only
    `train` and `validation` are ever looked at. The forward pass runs in bfloat16 where that is faster.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module = copy.deepcopy(student).to(device).to(memory_format=torch.channels_last)
    if teacher is not None:
        teacher = (
            copy.deepcopy(teacher).to(device).to(memory_format=torch.channels_last).eval() if settings.distillation else None
        )
    optimizer = torch.optim.SGD(
        module.parameters(),
        lr=RATES[0],  # set anew at every step
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        nesterov=True,
    )
    identity = sha256_bytes(json.dumps([asdict(settings), RATES, seed, len(train), _shapes(module)]).encode())
    steps = math.ceil(len(train) / settings.batch_size)
    state = _resume(checkpoint, module, optimizer, identity)
    if state is None:

        def end_of(trial: FinetuneSettings, images: Images, tell: Progress) -> float:
            return finetune(student, teacher, images, validation, trial, seed, progress=tell).accuracies[-1]

        rate = settings.learning_rate
        state = _State(0, -1.0, {}, [], _tried_rate(end_of, train, settings, seed, progress) if rate is None else rate)
    started, first = time.monotonic(), state.epoch
    for epoch in range(state.epoch, settings.epochs):
        torch.manual_seed(1_000_003 * seed + epoch)  # for dropout
        module.train()
        for step, (images, labels) in enumerate(train.training_batches(settings.batch_size, seed, epoch)):
            for group in optimizer.param_groups:
                group["lr"] = state.learning_rate * _schedule(epoch + step / steps, settings.epochs)
            pixels = images.to(device, memory_format=torch.channels_last)
            loss = _loss(module, teacher, pixels, labels.to(device), settings)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            done = epoch * steps + step + 1
            left = (time.monotonic() - started) / (done - first * steps) * (settings.epochs * steps - done)
            best = f", best {state.best_score:.2f} %" if state.history else ""
            progress(
                done,
                settings.epochs * steps,
                f"epoch {epoch + 1} of {settings.epochs}, rate {state.learning_rate:g}{best}, {left:.0f} s left",
            )
        score = accuracy(module, validation)
        state.history.append(score)
        if score > state.best_score:
            state.best_score = score
            state.best = {name: tensor.detach().cpu().clone() for name, tensor in module.state_dict().items()}
        state.epoch = epoch + 1
        _save(checkpoint, module, optimizer, state, identity)
    if state.best:
        module.load_state_dict(state.best)
    module = module.cpu().to(memory_format=torch.contiguous_format).eval()
    return Finetuned(module, state.learning_rate, tuple(state.history))


def _tried_rate(
    end_of: Callable[[FinetuneSettings, Images, Progress], float],
    train: Images,
    settings: FinetuneSettings,
    seed: int,
    progress: Progress,
) -> float:
    """The highest rate with which a whole schedule on a few images ends about as well as with any other.

    `end_of` a training: its validation accuracy.
    """
    sample = train.sample(min(TRIAL_IMAGES, int(TRIAL_SHARE * settings.epochs * len(train))), seed)
    if len(sample) < FEWEST_STEPS * settings.batch_size:
        return RATES[0]

    started, training = time.monotonic(), settings.epochs * math.ceil(len(train) / settings.batch_size)

    def score(rate: float) -> float:
        def tell(done: int, total: int, text: str) -> None:
            through, whole = RATES.index(rate) * total + done, len(RATES) * total + training
            left = (time.monotonic() - started) / through * (whole - through)
            progress(0, training, f"trying rate {rate:g}, {RATES.index(rate) + 1} of {len(RATES)}, {left:.0f} s left")

        return end_of(replace(settings, epochs=1, learning_rate=rate), sample, tell)

    scores = {rate: score(rate) for rate in RATES}
    return next(rate for rate in RATES if scores[rate] >= max(scores.values()) - ALIKE)


def _loss(module: nn.Module, teacher: nn.Module | None, pixels: Tensor, labels: Tensor, settings: FinetuneSettings) -> Tensor:
    """(1 - a) CE(y, smoothed labels) + a T^2 KL(teacher / T || student / T)   (Hinton et al., arXiv 1503.02531)."""
    with mixed_precision(pixels.device):
        logits = module(pixels)
        with torch.no_grad():
            target = teacher(pixels) if teacher else None
    logits = logits.float()
    hard = F.cross_entropy(logits, labels, label_smoothing=settings.label_smoothing)
    if target is None:
        return hard
    soft = distillation_loss(logits, target.float(), settings.temperature)
    return (1 - settings.distillation) * hard + settings.distillation * soft


def distillation_loss(logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    """T^2 KL(target / T || logits / T), both (N, classes), mean over the batch (Hinton et al., arXiv 1503.02531)."""
    soft = F.log_softmax(logits / temperature, 1), F.log_softmax(target / temperature, 1)
    return temperature**2 * F.kl_div(*soft, reduction="batchmean", log_target=True)


def _schedule(epoch: float, epochs: int) -> float:
    """One epoch up, then a cosine down to zero."""
    warmup = min(1.0, epochs / 2)
    if epoch < warmup:
        return max(epoch / warmup, 0.01)
    return 0.5 * (1 + math.cos(math.pi * (epoch - warmup) / (epochs - warmup)))


def _shapes(module: nn.Module) -> list[tuple[str, list[int]]]:
    return [(name, list(tensor.shape)) for name, tensor in module.state_dict().items()]


def _save(checkpoint: Path | None, module: nn.Module, optimizer: torch.optim.SGD, state: _State, identity: str) -> None:
    """One file, replaced whole: the network, the momenta, the best network so far."""
    if checkpoint is None:
        return
    # clones: a layer that the network holds under two names is written twice, which safetensors refuses for one memory
    whole = torch.contiguous_format
    tensors = {f"now/{name}": tensor.detach().cpu().clone(memory_format=whole) for name, tensor in module.state_dict().items()}
    tensors |= {f"best/{name}": tensor.contiguous() for name, tensor in state.best.items()}
    for name, parameter in module.named_parameters():
        momentum = optimizer.state.get(parameter, {}).get("momentum_buffer")
        if momentum is not None:
            tensors[f"momentum/{name}"] = momentum.detach().cpu().contiguous()
    notes = {
        "identity": identity,
        "epoch": str(state.epoch),
        "best_score": repr(state.best_score),
        "history": json.dumps(state.history),
        "learning_rate": repr(state.learning_rate),
    }
    write_atomically(checkpoint, safetensors.torch.save(tensors, metadata=notes))


def _resume(checkpoint: Path | None, module: nn.Module, optimizer: torch.optim.SGD, identity: str) -> _State | None:
    """The state of an earlier, same training; None where there is none. The file is replaced whole, so it is never torn."""
    if checkpoint is None or not checkpoint.is_file():
        return None
    with safetensors.safe_open(checkpoint, "pt") as file:
        notes = file.metadata() or {}
    if notes.get("identity") != identity:
        return None
    tensors = safetensors.torch.load_file(checkpoint)
    module.load_state_dict({name[4:]: tensor for name, tensor in tensors.items() if name.startswith("now/")})
    for name, parameter in module.named_parameters():
        if f"momentum/{name}" in tensors:
            optimizer.state[parameter]["momentum_buffer"] = tensors[f"momentum/{name}"].to(parameter.device)
    best = {name[5:]: tensor for name, tensor in tensors.items() if name.startswith("best/")}
    history, rate = json.loads(notes["history"]), float(notes["learning_rate"])
    return _State(int(notes["epoch"]), float(notes["best_score"]), best, history, rate)
