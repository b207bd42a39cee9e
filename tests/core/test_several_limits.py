"""Several limits of one key: which budgets they give, what they are called, and what is refused."""

import pytest

from pipeline.core.budget import Budget, all_constraints, budget_facts, read_budgets
from pipeline.core.profile import load_profile
from pipeline.errors import BudgetError

HERE, ELSEWHERE = load_profile("local"), load_profile("raspberrypi")


def test_each_limit_gives_a_budget_with_all_other_limits_the_largest_first() -> None:
    budgets = read_budgets(ELSEWHERE, {"latency_p50": "25%, 50%,35 %", "params": "80%"})

    assert [budget.facts for budget in budgets] == [
        {"latency_p50": share, "accuracy_drop": "2.00 points", "params": "80.0 %"} for share in ("50.0 %", "35.0 %", "25.0 %")
    ]
    assert [budget.name for budget in budgets] == ["latency_p50-50", "latency_p50-35", "latency_p50-25"]
    assert budgets[1].text == "latency p50 <= 35.0 % of dense"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("20ms,2.5ms", ["latency_p50-20.00ms", "latency_p50-2.500ms"]),
        ("33.3%,5%", ["latency_p50-33.3", "latency_p50-5"]),
    ],
)
def test_names_are_fit_for_files_and_tell_limits_apart(text: str, names: list[str]) -> None:
    assert [budget.name for budget in read_budgets(HERE, {"latency_p50": text})] == [
        name.replace("20.00ms", "20ms") for name in names
    ]


def test_a_budget_without_commas_is_one_budget_without_a_name() -> None:
    """such a run has the folders and the identity that it always had"""
    (budget,) = read_budgets(ELSEWHERE, {"latency_p50": "40%"})

    assert (budget.name, budget.text) == ("", "")
    assert budget_facts([budget]) == {"latency_p50": "40.0 %", "accuracy_drop": "2.00 points"}


def test_a_search_sees_every_constraint_once_and_the_job_names_all_limits() -> None:
    budgets = read_budgets(ELSEWHERE, {"latency_p50": "50%,25%"})

    assert [each.text for each in all_constraints(budgets)] == [
        "latency p50 <= 50.0 % of dense",
        "accuracy drop <= 2.00 points",
        "latency p50 <= 25.0 % of dense",
    ]
    assert budget_facts(budgets) == {"latency_p50": "50.0 %, 25.0 %", "accuracy_drop": "2.00 points"}


def test_the_name_of_a_budget_can_be_told_from_what_the_journal_says_of_it() -> None:
    for budget in read_budgets(HERE, {"latency_p50": "12.345ms,3.21ms"}):
        (again,) = read_budgets(HERE, budget.facts)

        assert Budget(again.constraints, budget.key).name == budget.name


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (
            {"latency_p50": "50%,25%", "params": "50%,25%"},
            "budget: latency_p50 and params have several limits each; give several limits to one key only",
        ),
        (
            {"accuracy_drop": "1,2"},
            "budget: accuracy_drop: does not guide the search, so several limits have no effect on it; give one limit",
        ),
        (
            {"params": "50%,1000"},
            "budget: params: got shares of the dense network and other limits (50%,1000); give one kind",
        ),
        ({"params": "50%,50 %"}, "budget: params: a limit is given twice (got 50%,50 %); give each limit once"),
        ({"params": "50%,50.01%"}, "budget: params: two limits are too close to tell apart (got 50%,50.01%); leave one out"),
        ({"params": "50%,"}, "budget: params: expected a number in k or m or g (got ''); write for example 1.5M or 50 %"),
    ],
)
def test_limits_that_cannot_be_searched_together_are_refused(texts: dict[str, str], message: str) -> None:
    with pytest.raises(BudgetError) as problem:
        read_budgets(ELSEWHERE, texts)

    assert str(problem.value) == message
