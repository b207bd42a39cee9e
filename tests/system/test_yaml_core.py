"""YAML 1.2: numbers are what they look like, and nothing is a truth value but true and false."""

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.places import DRY, Place, message
from helpers.readers import NOON, TRUST_FILE
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.profile import load_profile
from pipeline.deploy.keys import new_key, read_trusted
from pipeline.errors import KeysError, ProfileError
from pipeline.system.yaml_core import CoreLoader, dump_yaml


def loaded(text: str) -> Any:
    return CoreLoader(text).get_single_data()


# text -> value by the core schema, https://yaml.org/spec/1.2.2/#1032-tag-resolution
SCHEMA = {
    "010": 10,
    "-07": -7,
    "0o17": 15,
    "0x1F": 31,
    "1:30": "1:30",
    "1_000": "1_000",
    "0b11": "0b11",
    "1e3": 1000.0,
    "1.": 1.0,
    "-.5": -0.5,
    ".inf": math.inf,
    "-.INF": -math.inf,
    "~": None,
    "null": None,
    "true": True,
    "FALSE": False,
    "yes": "yes",
    "no": "no",
    "on": "on",
    "Off": "Off",
    "2026-01-31": "2026-01-31",
    "'010'": "010",
    "!!int 010": 10,
    "!!str 010": "010",
    "<<: 1": {"<<": 1},
}


@pytest.mark.parametrize("text", SCHEMA)
def test_a_plain_scalar_is_what_the_core_schema_says(text: str) -> None:
    found = loaded(text)

    assert found == SCHEMA[text]
    assert isinstance(found, type(SCHEMA[text]))


@pytest.mark.parametrize("text", ["!!bool yes", "!!int 1:30", "!!timestamp 2026-01-31", "!!binary aGk=", "!!set {a}", "!own x"])
def test_a_tag_that_the_text_does_not_fit_or_that_is_not_of_the_schema_is_refused(text: str) -> None:
    with pytest.raises(yaml.YAMLError):
        loaded(text)


@given(st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False), max_size=4))
def test_what_is_written_is_read_as_it_was_by_yaml_1_1_and_1_2(value: dict[str, Any]) -> None:
    assert loaded(dump_yaml(value)) == value
    assert yaml.safe_load(dump_yaml(value)) == value


@pytest.mark.parametrize("text", ["12e4", "0o17", "010", "yes", "1:30", "1e3", "0x1f"])
def test_text_that_looks_like_a_number_is_written_in_quotes(text: str) -> None:
    assert loaded(dump_yaml({"a": text})) == yaml.safe_load(dump_yaml({"a": text})) == {"a": text}


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("cores: 1:30", "board.yaml:6: device.cores: input should be a valid integer (got '1:30')"),
        ("cores: 1e1", "board.yaml:6: device.cores: input should be a valid integer (got 10.0)"),
        ("cores: 4\n  this_machine: yes", "board.yaml:7: device.this_machine: input should be a valid boolean (got 'yes')"),
    ],
)
def test_what_is_no_number_or_truth_value_in_yaml_1_2_is_refused_in_a_profile(place: Place, written: str, said: str) -> None:
    path = place.profile(was="cores: 4", becomes=written)

    assert said in message(("--target", str(path), *DRY), ProfileError)


def test_cores_010_are_ten(place: Place) -> None:
    assert load_profile(str(place.profile(was="cores: 4", becomes="cores: 010"))).device.cores == 10


def test_a_key_whose_id_looks_like_a_number_is_still_read_from_an_earlier_trust_file(tmp_path: Path) -> None:
    """names and ids were written without quotes there"""
    tmp_path.chmod(0o700)
    new_key(tmp_path, "12e3", NOON)
    path = tmp_path / TRUST_FILE
    assert "'12e3'" in path.read_text()
    path.write_text(path.read_text().replace("'12e3'", "12e3"))
    assert [key.name for key in read_trusted(tmp_path)] == ["12e3"]
    path.write_text(path.read_text().replace("12e3", "12.0"))
    assert [key.name for key in read_trusted(tmp_path)] == ["12.0"]
    path.write_text(path.read_text().replace("12.0", "12"))
    with pytest.raises(KeysError, match="name: input should be a valid string"):
        read_trusted(tmp_path)
