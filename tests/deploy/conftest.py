"""What the tests of shipping share: a maker of signed artifacts, and this machine as the device that they go to."""

from pathlib import Path

import pytest
from helpers.artifacts import Maker, profile_of

from pipeline.core.profile import Profile


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the store is, or will be."""
    return tmp_path / "store"


@pytest.fixture
def profile(folder: Path) -> Profile:
    """This machine as a device, with its store in `folder`."""
    return profile_of(folder)


@pytest.fixture
def maker(tmp_path: Path) -> Maker:
    return Maker(tmp_path / "artifacts")
