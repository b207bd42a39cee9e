"""Evolution and TPE, by Optuna: two general searchers that a specialised one has to beat."""

import warnings
from collections import deque

import numpy as np
import optuna

from pipeline.core.plan import ChannelPlan
from pipeline.search.ask_tell import WAIT, Questions, SearchState, ask_and_tell
from pipeline.search.initial_design import design
from pipeline.search.problem import Choice, Evaluation
from pipeline.search.start import BISECTION_TRIALS, expected_share, find_start

__all__ = ["evolution", "suggested", "tpe"]

POPULATION = 10
REPEATS = 200
"""Number of known plans in a row after which a sampler is considered exhausted."""


@ask_and_tell
def evolution(state: SearchState) -> Questions[None]:
    """NSGA-II (Deb et al., 2002) with its constrained domination. With one objective it is a plain genetic algorithm."""
    yield from _search(state, optuna.samplers.NSGAIISampler(population_size=POPULATION, seed=state.problem.seed))


@ask_and_tell
def tpe(state: SearchState) -> Questions[None]:
    """Tree-structured Parzen estimator (Bergstra et al., 2011), constrained as in c-TPE. The groups are modelled jointly.

    Pending plans are believed to be bad, so that the next ones differ from them (Optuna's constant liar).
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(seed=state.problem.seed, multivariate=True)
    yield from _search(state, sampler)


def _search(state: SearchState, sampler: optuna.samplers.BaseSampler) -> Questions[None]:
    """Ask `sampler` for plans until the trials are spent. It starts from the same simple plans as the other searchers."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # the screen prints the line per trial
    trials, choices = state.problem.trials, state.space.choices
    steps, early = min(BISECTION_TRIALS, trials), deque[ChannelPlan]()
    if state.wanted > 1:  # some boards or workers are free while the start is not known
        around = np.full(len(choices), expected_share(state))
        early.extend(design(state.space, around, min(state.wanted, trials - steps), [state.problem.seed, 1]))
    yield from find_start(state, steps, early)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    answers = {answer.plan: answer for answer in state.answers}
    for plan in dict.fromkeys([*answers, *state.pending]):
        pairs = zip(choices, state.space.widths_in(plan), strict=True)
        study.enqueue_trial({choice.name: choice.widths.index(width) for choice, width in pairs})
    unanswered: dict[ChannelPlan, list[optuna.Trial]] = {}
    told, repeats = len(state.answers), 0
    while state.asked < trials and repeats < REPEATS:
        trial = study.ask()
        plan = state.space.plan_of([choice.widths[suggested(trial, choice)] for choice in choices])
        repeats = repeats + 1 if plan in answers or plan in unanswered else 0
        if plan in answers:
            _tell(study, trial, answers[plan])
            continue
        known = plan in unanswered or plan in state.pending
        unanswered.setdefault(plan, []).append(trial)
        if not known:
            yield plan
        elif len(unanswered[plan]) > POPULATION:
            yield WAIT  # the sampler needs an answer to get away from this plan
        for answer in state.answers[told:]:
            answers[answer.plan] = answer
            for each in unanswered.pop(answer.plan, ()):
                _tell(study, each, answer)
        told = len(state.answers)


def _tell(study: optuna.Study, trial: optuna.Trial, answer: Evaluation) -> None:
    for number, violation in enumerate(answer.violations):
        trial.set_constraint(f"violation{number}", violation)
    study.tell(trial, answer.score)


def suggested(trial: optuna.Trial, choice: Choice) -> int:
    """An index of the choice's widths. A block is dropped or kept, which is a category and not a number."""
    if choice.is_block:
        return int(trial.suggest_categorical(choice.name, [0, 1]))
    return trial.suggest_int(choice.name, 0, len(choice.widths) - 1)
