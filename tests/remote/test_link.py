"""A link to a worker that is slow, endless, or not what it should be. The workers are shell scripts at the end of real pipes."""

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.remote.link import Link, LinkLost

BLOB = bytes(1000)
Says = Callable[..., Link]


def frame(message: Any) -> bytes:
    text = json.dumps(message).encode()
    return struct.pack(">IQ", len(text), 0) + text


@pytest.fixture
def says(tmp_path: Path) -> Iterator[Says]:
    """A worker that says these things, with a pause after each, once or for ever."""
    links = []

    def start(*parts: bytes, pause_s: float = 0.0, for_ever: bool = False) -> Link:
        for index, part in enumerate(parts):
            (tmp_path / f"{index:03}").write_bytes(part)
        once = f"for each in {tmp_path}/???; do cat $each; sleep {pause_s}; done"
        links.append(Link(["sh", "-c", f"while :; do {once}; done" if for_ever else f"{once}; exec cat > /dev/null"]))
        return links[-1]

    yield start
    for link in links:
        link._process.kill()
        link.close()


def test_a_blob_may_take_longer_than_the_longest_silence_while_more_and_more_of_it_arrives(says: Says) -> None:
    """12 reports, one in every quarter of a second, and two seconds of silence allowed"""
    reports = [frame({"alive": True, "received": 50 * count}) for count in range(1, 13)]
    link = says(*reports, frame({"done": True}), pause_s=0.25)

    assert link.ask({}, BLOB, limit_s=2.0) == {"done": True}


def test_the_caller_is_told_how_much_of_a_blob_has_arrived(says: Says) -> None:
    reports = [frame({"alive": True, "received": count}) for count in (100, 400, 300, -1, 900)]
    link, told = says(*reports, frame({"alive": True}), frame({"done": True}), pause_s=0.0), list[int]()

    link.ask({}, BLOB, arrived=told.append)
    assert told == [100, 400, 900, len(BLOB)]


def test_a_worker_that_reports_no_progress_is_silent(says: Says) -> None:
    link = says(frame({"alive": True, "received": 50}), pause_s=0.01, for_ever=True)

    with pytest.raises(LinkLost, match="it does not answer"):
        link.ask({}, BLOB, limit_s=0.5)


def test_a_report_that_cannot_be_is_no_progress(says: Says) -> None:
    reports = [frame({"alive": True, "received": received}) for received in (-1, 1001, 10**30, "50", None, 0.5)]
    link = says(*reports, pause_s=0.01, for_ever=True)

    with pytest.raises(LinkLost, match="it does not answer"):
        link.ask({}, BLOB, limit_s=0.3)


@pytest.mark.parametrize("pause_s", [0.0, 0.05])
def test_a_worker_that_is_at_work_for_ever_is_given_up(says: Says, pause_s: float) -> None:
    link = says(frame({"alive": True}), pause_s=pause_s, for_ever=True)

    with pytest.raises(LinkLost, match="it did not finish in time"):
        link.ask({}, limit_s=30.0, whole_s=0.5)


def test_a_long_answer_may_arrive_slowly(says: Says) -> None:
    """20 kB in 10 pieces, one in every quarter of a second, and two seconds of silence allowed"""
    answer = {"numbers": list(range(3500))}
    data = frame(answer)
    link = says(*(data[start : start + 2000] for start in range(0, len(data), 2000)), pause_s=0.25)

    assert link.ask({}, limit_s=2.0) == answer


def test_an_answer_longer_than_any_honest_one_is_not_read(says: Says) -> None:
    link = says(struct.pack(">IQ", 60_000_000, 0))

    with pytest.raises(LinkLost, match="it announced an answer of 60000000 bytes, but the limit is 1048576"):
        link.ask({}, limit_bytes=2**20)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.sampled_from(["failure"]), inner, max_size=3),
    max_leaves=6,
)
MESSAGES = st.binary(max_size=40) | JSON.map(lambda value: json.dumps(value).encode()) | st.just(b"[" * 100_000)


@settings(max_examples=50)
@given(text=MESSAGES, cut=st.integers(0, 12))
def test_whatever_arrives_is_a_clean_answer_or_a_lost_link(
    tmp_path_factory: pytest.TempPathFactory, text: bytes, cut: int
) -> None:
    """JSON, no JSON, or a message that ends early"""
    path = tmp_path_factory.getbasetemp() / "said"
    data = struct.pack(">IQ", len(text), 0) + text
    path.write_bytes(data[: len(data) - cut])
    link = Link(["cat", str(path)])
    try:
        found: dict[str, Any] | LinkLost = link.ask({}, limit_s=20)
    except LinkLost as loss:
        found = loss
    finally:
        link.close()

    if isinstance(found, LinkLost):
        assert str(found).isprintable()
    else:
        json.dumps(found, ensure_ascii=False).encode()  # no half of a surrogate pair in it
