"""One node holds a home; what it writes there is for its user alone."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from meshnode.config import Places
from meshnode.errors import AlreadyRunning, HomeNotWritable
from meshnode.home import home_lock, write_runtime_file


def places(folder: Path) -> Places:
    return Places(folder / "home", folder / "cache", folder / "config.toml")


def test_a_home_is_held_by_one_and_free_again_afterwards(tmp_path: Path) -> None:
    with home_lock(places(tmp_path)):
        write_runtime_file(places(tmp_path), {"pid": 4121})
        with pytest.raises(AlreadyRunning, match="pid 4121"), home_lock(places(tmp_path)):
            pass
    with home_lock(places(tmp_path)):
        pass


def test_a_home_that_is_held_without_a_runtime_file(tmp_path: Path) -> None:
    with home_lock(places(tmp_path)), pytest.raises(AlreadyRunning), home_lock(places(tmp_path)):
        pass


def test_the_runtime_file_is_for_its_user_alone(tmp_path: Path) -> None:
    with home_lock(places(tmp_path)):
        write_runtime_file(places(tmp_path), {"pid": os.getpid(), "token": "secret"})
    file = places(tmp_path).runtime_file
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert json.loads(file.read_text()) == {"pid": os.getpid(), "token": "secret"}


def test_a_home_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file")
    with pytest.raises(HomeNotWritable), home_lock(places(tmp_path)):
        pass
