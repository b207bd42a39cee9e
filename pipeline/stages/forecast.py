"""Forecast: estimate how long a run will take, from the sizes of its steps and the costs that are known so far."""

from dataclasses import dataclass

from pipeline.core.forecast import Forecast, ForecastTime
from pipeline.core.profile import Profile
from pipeline.core.progress import Callback
from pipeline.core.run import Run
from pipeline.stages.job import Job
from pipeline.system.units import format_duration
from pipeline.training.task import Classification, Task

__all__ = [
    "Costs",
    "Sizes",
    "costs_so_far",
    "estimate_after_loading",
    "estimate_before_search",
    "forecast_outcome",
    "say_forecast",
    "sizes_of",
]

Range = tuple[float, float]
"""The smallest and the largest probable duration, in seconds."""

START_S = (0.2, 1.5)
"""Starting a process that measures, and creating its sessions."""
ONNX_SHARE = (0.1, 5.0)
"""A run of the ONNX file with one image, as a multiple of torch's time per image in a batch."""
DEVICE_SLOWDOWN = 10.0
"""A device may be so much slower than this machine."""
TRAINING_PASSES = (1.5, 7.0)
"""Training with one image, as a multiple of its evaluation: two passes and a backward pass, of a smaller network."""
PREPARATION_S = (5.0, 120.0)
"""Export, analysis and rehearsal. They are past when the costs are measured."""
FINISH_S = (1.0, 20.0)
"""Export, verification and report."""
TRIAL_SPREAD = (0.3, 1.5)
"""A trial, as a multiple of the first measurement and score of the dense network."""
SENSITIVITY_PASSES = (0.5, 4.0)
"""An image of the sensitivity, as a multiple of its evaluation. Networks are reconstructed, too."""
CONFIRMATIONS, FINAL_MEASUREMENTS, INT8_MEASUREMENTS = (1.0, 8.0), (1.0, 8.0), (6.0, 20.0)
"""Numbers of measurements after the search."""


@dataclass(frozen=True)
class Sizes:
    """How much a run has to do."""

    trials: int
    processes: int
    final_processes: int
    int8: bool
    epochs: int
    """0 if training is limited by `training_limit_s`, or if the user's own function trains."""
    training_images: int
    scored_images: int
    """Validation images per epoch, or per trial."""
    test_images: int
    training_limit_s: float
    budgets: int = 1
    """Number of networks that are fine-tuned and measured after the search."""
    boards: int = 1
    """Boards that measure at the same time. In the best case, the search takes as much less time."""


@dataclass(frozen=True)
class Costs:
    """What was measured of a run so far, in seconds."""

    elapsed_s: float
    trials: int
    """Number of finished trials of the search; not 0 if an older version began the run."""
    image_s: float
    """Time of the dense torch network per image."""
    dense_s: float
    """Measuring and scoring the dense network."""
    thinnest_s: float
    """Measuring the thinnest network."""
    sensitivity_images: int = 0
    """Images that will run through networks for the sensitivity of each group."""


def sizes_of(job: Job, task: Task, profile: Profile, budgets: int = 1) -> Sizes:
    """How much the run of `job` for so many budgets has to do."""
    ours = isinstance(task, Classification)
    limited = isinstance(task, Classification) and task.counts_steps and job.finetuning.epochs is None
    return Sizes(
        trials=job.trials,
        processes=profile.probe.processes,
        final_processes=profile.probe.final_processes,
        int8="int8" in profile.precision,
        epochs=job.finetuning.whole_epochs if ours and not limited else 0,
        training_images=len(task.splits.train) if isinstance(task, Classification) else 0,
        scored_images=len(task.splits.validation) if isinstance(task, Classification) else 0,
        test_images=task.test_images or 0,
        training_limit_s=60 * job.finetuning.minutes if limited else 0.0,
        budgets=budgets,
        boards=1 if job.dry_run or job.calibration else len(profile.device.hosts or [1]),
    )


def estimate_after_loading(sizes: Sizes, profile: Profile, image_s: float) -> Forecast:
    """The forecast when only the network's time per image on this machine is known."""
    runs = 2 * (profile.probe.warmup_runs + profile.probe.runs)  # the dense graph runs as often
    slowdown = 1.0 if profile.device.host is None else DEVICE_SLOWDOWN
    run_s = (ONNX_SHARE[0] * image_s, ONNX_SHARE[1] * image_s * slowdown)
    process = tuple(START_S[end] + min(profile.probe.time_limit_s, runs * run_s[end]) for end in (0, 1))
    score_s = min(sizes.scored_images, 2000) * image_s
    trial = ((sizes.processes * process[0] + 0.2 * score_s) / sizes.boards, sizes.processes * process[1] + 2 * score_s)
    whole = _sum(
        PREPARATION_S, _times(trial, (sizes.trials, sizes.trials + 3)), _after_search(sizes, process[0], process[1], image_s)
    )
    return Forecast("loaded", *_rounded(whole))


def estimate_before_search(sizes: Sizes, costs: Costs) -> Forecast:
    """The forecast when the dense and the thinnest network were measured, from what these took."""
    least, most = sorted((costs.dense_s, costs.thinnest_s))
    trial = (TRIAL_SPREAD[0] * least, TRIAL_SPREAD[1] * most)
    process = (trial[0] / sizes.processes, trial[1] / sizes.processes)
    trial = (trial[0] / sizes.boards, trial[1])
    whole = _sum(
        (costs.elapsed_s, costs.elapsed_s),
        _times(trial, (sizes.trials - costs.trials,) * 2),
        _times(SENSITIVITY_PASSES, (costs.sensitivity_images * costs.image_s,) * 2),
        _after_search(sizes, *process, costs.image_s),
    )
    return Forecast("measured", *_rounded(whole))


def costs_so_far(run: Run, image_s: float, sensitivity_images: int = 0) -> Costs:
    """The costs that the journal of `run` holds once the dense and the thinnest network were measured."""
    dense, thinnest = run.find("dense", 1), run.find("uniform", 1)
    return Costs(
        elapsed_s=sum(run.phase_seconds().values()),
        trials=sum(trial.role == "search" for trial in run.trials),
        image_s=image_s,
        dense_s=dense.seconds if dense else 0.0,
        thinnest_s=thinnest.seconds if thinnest else 0.0,
        sensitivity_images=sensitivity_images,
    )


def say_forecast(run: Run, callback: Callback, forecast: Forecast, *, own_training: bool) -> None:
    """Keep the forecast in the journal, and show it. A resumed run keeps and shows the one that was made first.

    `own_training`: whether the user's own function trains. Its time is unknown, and no part of the forecast.
    """
    kept, elapsed_s = run.record_forecast(forecast), sum(run.phase_seconds().values())
    reasons: dict[ForecastTime, str] = {
        "loaded": "a wide range, because nothing is measured yet",
        "measured": "from the first measurements",
    }
    training = ", without your own training" if own_training else ""
    reason = f"{reasons[kept.made]}; {format_duration(elapsed_s)} so far"
    callback.say(f"the whole run will probably take {kept.text}{training} ({reason})")


def forecast_outcome(run: Run) -> str:
    """How long the run has taken, and what its forecasts were, in a sentence."""
    names: dict[ForecastTime, str] = {"loaded": "after loading", "measured": "after the first measurements"}
    expected = " and ".join(f"{forecast.text} {names[forecast.made]}" for forecast in run.forecasts)
    took = f"the run took {format_duration(sum(run.phase_seconds().values()))}"
    return f"{took}; the forecast was {expected}" if expected else took


def _after_search(sizes: Sizes, least_process_s: float, most_process_s: float, image_s: float) -> Range:
    measurement = (sizes.final_processes * least_process_s, sizes.final_processes * most_process_s)
    numbers = _sum(CONFIRMATIONS, FINAL_MEASUREMENTS, INT8_MEASUREMENTS if sizes.int8 else (0.0, 0.0))
    epoch = _sum(_times(TRAINING_PASSES, (sizes.training_images,) * 2), _times((0.3, 1.5), (sizes.scored_images,) * 2))
    tested = _times(ONNX_SHARE, (2 * sizes.test_images + sizes.scored_images,) * 2)
    images = _sum(_times(epoch, (sizes.epochs, 1.3 * sizes.epochs)), tested)  # rates are tried before the first epoch
    limited = (0.1 * sizes.training_limit_s, 1.1 * sizes.training_limit_s)
    once = _sum(_times(measurement, numbers), _times(images, (image_s, image_s)), limited, FINISH_S)
    return _times(once, (sizes.budgets, sizes.budgets))


def _sum(*ranges: Range) -> Range:
    return sum(each[0] for each in ranges), sum(each[1] for each in ranges)


def _times(first: Range, second: Range) -> Range:
    return first[0] * second[0], first[1] * second[1]


def _rounded(duration: Range) -> Range:
    return round(duration[0], 1), round(duration[1], 1)
