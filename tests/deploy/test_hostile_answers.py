"""A device that answers what no device can: it fails by name, nothing it says is believed, and no other device is harmed."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.artifacts import NOW, Maker, lies, profile_of
from helpers.profiles import command
from helpers.sshd import Board, needs_sshd
from hypothesis import given
from hypothesis import strategies as st

from pipeline.deploy.deliver import deliver, look, roll_back
from pipeline.deploy.fleet import Outcome, Rollout, Target, roll_out
from pipeline.deploy.manifest import Trust
from pipeline.deploy.protocol import Begun, Committed, Done, Health, Previous, StoreStatus, checked
from pipeline.deploy.store import Timeouts
from pipeline.errors import CompressError, DeliveryError

HASH, OTHER = "0" * 64, "1" * 64
STATUS = {
    "store": "/home/pi/compress",
    "history": [{"release": HASH, "name": "net", "version": 1, "at": "2026-06-01"}, {"release": OTHER}],
    "current": HASH,
    "pending": None,
    "releases": [HASH],
    "incoming": 0,
    "foreign": [],
    "last": None,
    "recovered": None,
    "busy": False,
    "free_bytes": 2**30,
    "architecture": "x86_64",
    "python": "3.11",
    "interpreter": "/usr/bin/python3",
}
HEALTH = {
    "golden_inputs": 3,
    "peak_memory_bytes": 2**25,
    "runs": 64,
    "latency_p50_ms": 1.0,
    "latency_p90_ms": 1.5,
    "attempts": 1,
}
SOUND: list[tuple[type[Any], dict[str, Any]]] = [
    (StoreStatus, STATUS),
    (Begun, {"current": False, "placed": False, "have": {"model.onnx": [10, HASH]}}),
    (Health, HEALTH),
    (Previous, {"release": HASH}),
    (Committed, {"committed": HASH}),
    (Done, {}),
]
LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from([2**62, 2**63, "\ud800", "\x1b[2J"])
)
HOSTILE = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=5
)


def places(value: Any) -> list[tuple[Any, ...]]:
    """Where something stands in a value of JSON."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [(), *((key, *rest) for key, each in inner for rest in places(each))]


@given(data=st.data())
def test_an_answer_is_of_its_kind_or_refused_whatever_stands_in_it(data: st.DataObject) -> None:
    """a sound answer, one part of which is replaced by anything"""
    kind, sound = data.draw(st.sampled_from(SOUND), "answer")
    answer = {"answer": copy.deepcopy(sound)}
    place = ("answer", *data.draw(st.sampled_from(places(sound)), "place"))
    around: Any = answer
    for key in place[:-1]:
        around = around[key]
    around[place[-1]] = data.draw(HOSTILE, "replaced by")

    try:
        found = checked(answer["answer"], kind, "board")
    except DeliveryError as problem:
        found = str(problem)
    assert isinstance(found, kind) or (found.startswith("board: its agent gave an impossible answer") and found.isprintable())


@pytest.mark.parametrize(
    "change",
    [{"golden_inputs": 0}, {"latency_p50_ms": 0.0}, {"latency_p90_ms": float("nan")}, {"attempts": 0}, {"runs": -1}],
    ids=str,
)
def test_a_health_check_with_figures_that_cannot_be_is_refused(change: dict[str, float]) -> None:
    with pytest.raises(DeliveryError, match="its agent gave an impossible answer"):
        checked({**HEALTH, **change}, Health, "board")


# ---------------------------------------------------------------- at the other end of a real connection


@needs_sshd
@pytest.mark.parametrize(
    ("answers", "complaint"),
    [
        ([{"store": "\x1b[2J", "busy": "perhaps"}], r"its agent gave an impossible answer \(history: Field required\)"),
        ([{"failure": ["refused", "\ud800\x1b[2J"]}], r"open: \\ud800\\x1b\[2J; the old release stays active"),
        ([{"failure": ["bribed", "no"]}], r"reported an unknown kind of failure \(bribed: no\)"),
        (
            [STATUS, {"have": {"model.onnx": [2**62, HASH]}}],
            rf"impossible answer \(it has {2**62} bytes of model.onnx, whose size is ",
        ),
        (
            [STATUS, {"placed": True}, HEALTH, {}, HEALTH, {"committed": OTHER}],
            "impossible answer .it committed 111111111111 instead of",
        ),
        ([STATUS, {"placed": True}, {**HEALTH, "latency_p50_ms": 0.0}], "impossible answer .latency_p50_ms"),
    ],
    ids=["status", "surrogate", "unknown failure", "more than all", "another commit", "no time at all"],
)
def test_a_device_that_lies_is_not_believed(board: Board, maker: Maker, answers: list[Any], complaint: str) -> None:
    lies(board, *answers)
    profile = board.profile()

    with pytest.raises(DeliveryError, match=complaint) as refused:
        deliver(profile, maker.make("new", profile), Trust(maker.trusted, NOW))
    assert str(refused.value).isprintable()


@needs_sshd
def test_a_release_to_go_back_to_that_was_not_listed_is_not_believed(board: Board) -> None:
    lies(board, STATUS, {"release": "2" * 64})

    with pytest.raises(DeliveryError, match="it returns to 222222222222, which it did not list"):
        roll_back(board.profile())


@needs_sshd
def test_a_device_that_is_at_work_for_ever_is_given_up(board: Board) -> None:
    """its conversation has an end, whatever it says"""
    lies(board, *[{"alive": True}] * 3)

    with pytest.raises(CompressError, match="it did not finish in time"):
        look(board.profile(), Timeouts(silence_s=60, whole_s=1.0))


@needs_sshd
def test_the_other_devices_go_on_when_one_answers_oddly(tmp_path: Path, board: Board, maker: Maker) -> None:
    """and --results has a line for each"""
    lies(board, {"failure": ["refused", "\ud800"]})
    facts = board.profile().model_dump(mode="json")
    facts["device"]["memory"] = "1 GiB"
    (tmp_path / "board.yaml").write_text(yaml.safe_dump(facts))
    here = profile_of(tmp_path / "store")
    (tmp_path / "here.yaml").write_text(yaml.safe_dump(here.model_dump(mode="json")))
    devices = [{"name": "odd", "profile": "board.yaml"}, {"name": "here", "profile": "here.yaml"}]
    (tmp_path / "fleet.yaml").write_text(yaml.safe_dump({"devices": devices}))
    artifact, results = maker.make("new", here, days=36500), tmp_path / "results.jsonl"
    words = ("--keys", maker.keys, "--canary", "0", "--parallel", "1", "--max-failures", "50%", "--results", results)
    done = command("ship", "--inventory", tmp_path / "fleet.yaml", *words, artifact)

    assert done.exit_code == 86, done.output
    lines = [json.loads(line) for line in results.read_text("utf-8").splitlines()]
    assert [(line["name"], line["result"], line["error"]) for line in lines] == [
        ("odd", "failed", "DeliveryError"),
        ("here", "shipped", None),
    ]
    status = command("status", "--inventory", tmp_path / "fleet.yaml", "--json")
    assert ["error" in each for each in json.loads(status.stdout)["devices"]] == [True, False]


def test_all_devices_are_seen_to_though_their_results_cannot_be_told() -> None:
    """the first error of telling is raised at the end"""
    heard: list[str] = []

    def told(outcome: Outcome) -> None:
        heard.append(outcome.name)
        raise UnicodeEncodeError("ascii", "\ud800", 0, 1, outcome.name)

    def action(target: Target) -> Any:
        raise DeliveryError(f"{target.name}: \ud800")

    targets = [Target(f"d{index}", profile_of("/nowhere")) for index in range(3)]

    with pytest.raises(UnicodeEncodeError, match="d0"):
        roll_out(targets, action, Rollout(parallel=1, canary=0, max_failures=1.0), told)
    assert heard == ["d0", "d1", "d2"]
