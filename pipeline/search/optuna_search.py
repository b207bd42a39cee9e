"""Evolution and TPE, by Optuna: two general searchers that a specialised one has to beat."""

import warnings
from dataclasses import replace

import optuna

from pipeline.core.plan import ChannelPlan
from pipeline.search.problem import Choice, Evaluation, Problem
from pipeline.search.start import BISECTION_TRIALS, find_start

__all__ = ["evolution", "suggested", "tpe"]

POPULATION = 10
REPEATS = 200
"""Number of known plans in a row after which a sampler is considered exhausted."""


def evolution(problem: Problem) -> None:
    """NSGA-II (Deb et al., 2002) with its constrained domination. With one objective it is a plain genetic algorithm."""
    _search(problem, optuna.samplers.NSGAIISampler(population_size=POPULATION, seed=problem.seed))


def tpe(problem: Problem) -> None:
    """Tree-structured Parzen estimator (Bergstra et al., 2011), constrained as in c-TPE. The groups are modelled jointly."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(seed=problem.seed, multivariate=True)
    _search(problem, sampler)


def _search(problem: Problem, sampler: optuna.samplers.BaseSampler) -> None:
    """Ask `sampler` for plans until the trials are spent. It starts from the same simple plans as the other searchers."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # the screen prints the line per trial
    answers = {answer.plan: answer for answer in problem.known}
    asked = 0

    def ask(plan: ChannelPlan) -> Evaluation:
        nonlocal asked
        asked += 1
        answers[plan] = problem.evaluate(plan)
        return answers[plan]

    asking = replace(problem, evaluate=ask)
    find_start(asking, min(BISECTION_TRIALS, problem.trials))
    study = optuna.create_study(direction="maximize", sampler=sampler)
    choices = problem.space.choices
    for plan in answers:
        pairs = zip(choices, problem.space.widths_in(plan), strict=True)
        study.enqueue_trial({choice.name: choice.widths.index(width) for choice, width in pairs})
    repeats = 0
    while asked < problem.trials and repeats < REPEATS:
        trial = study.ask()
        plan = problem.space.plan_of([choice.widths[suggested(trial, choice)] for choice in choices])
        repeats = repeats + 1 if plan in answers else 0
        answer = answers[plan] if plan in answers else ask(plan)
        for number, violation in enumerate(answer.violations):
            trial.set_constraint(f"violation{number}", violation)
        study.tell(trial, answer.score)


def suggested(trial: optuna.Trial, choice: Choice) -> int:
    """An index of the choice's widths. A block is dropped or kept, which is a category and not a number."""
    if choice.is_block:
        return int(trial.suggest_categorical(choice.name, [0, 1]))
    return trial.suggest_int(choice.name, 0, len(choice.widths) - 1)
