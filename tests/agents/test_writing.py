from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from meshnode.agents.merging import SettingsNotMergeable
from meshnode.agents.recipe import Recipe, RecipeFile
from meshnode.agents.writing import Change, place, plan, write
from meshnode.errors import HomeNotWritable

CONTENT = '{\n  "provider": {\n    "meshnode": 1\n  }\n}\n'
RECIPE = Recipe("x", "X", "", "", "m", files=(RecipeFile("~/.config/x/opencode.json", "json", CONTENT),))


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {"HOME": str(tmp_path)}


def the_file(environment: dict[str, str]) -> Path:
    file = Path(environment["HOME"]) / ".config/x/opencode.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    return file


def test_a_new_file_is_private_and_has_no_backup(environment: dict[str, str]) -> None:
    (change,) = plan(RECIPE, environment)
    assert change.before is None and change.needed
    assert change.diff().startswith("--- /dev/null\n") and '+  "provider": {' in change.diff()
    assert write(change) is None
    file = the_file(environment)
    assert file.read_text() == CONTENT and stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in file.parent.iterdir()] == ["opencode.json"]


def test_a_second_time_nothing_is_to_do(environment: dict[str, str]) -> None:
    file = the_file(environment)
    file.write_text('{"a": 1}')
    (change,) = plan(RECIPE, environment)
    assert write(change) == file.with_name("opencode.json.bak")
    (again,) = plan(RECIPE, environment)
    assert not again.needed and again.diff() == ""


def test_a_plan_changes_nothing(environment: dict[str, str]) -> None:
    file = the_file(environment)
    file.write_text('{"a": 1}')
    plan(RECIPE, environment)
    assert file.read_text() == '{"a": 1}' and len(list(file.parent.iterdir())) == 1


def test_an_older_backup_is_never_written_over(environment: dict[str, str]) -> None:
    file = the_file(environment)
    file.with_name("opencode.json.bak").write_text("older")
    file.with_name("opencode.json.bak.1").mkdir()
    file.write_text('{"a": 1}')
    (change,) = plan(RECIPE, environment)
    assert write(change) == file.with_name("opencode.json.bak.2")
    assert file.with_name("opencode.json.bak").read_text() == "older"
    file.write_text('{"a": 1}')
    (change,) = plan(RECIPE, environment)
    assert write(change) == file.with_name("opencode.json.bak.2"), "the same content needs no second backup"


def test_mode_and_link_are_kept(environment: dict[str, str], tmp_path: Path) -> None:
    kept = tmp_path / "dotfiles" / "opencode.json"
    kept.parent.mkdir()
    kept.write_text("{}")
    kept.chmod(0o664)
    file = the_file(environment)
    file.symlink_to(kept)
    (change,) = plan(RECIPE, environment)
    assert change.path == kept and write(change) == kept.with_name("opencode.json.bak")
    assert file.is_symlink() and json.loads(file.read_text()) == json.loads(CONTENT)
    assert stat.S_IMODE(kept.stat().st_mode) == 0o664
    assert stat.S_IMODE(kept.with_name("opencode.json.bak").stat().st_mode) & ~0o664 == 0, "open to nobody else"


def test_a_link_to_itself_a_folder_and_bytes_are_refused(environment: dict[str, str]) -> None:
    file = the_file(environment)
    file.symlink_to(file)
    with pytest.raises(SettingsNotMergeable):
        plan(RECIPE, environment)
    file.unlink()
    file.mkdir()
    with pytest.raises(SettingsNotMergeable):
        plan(RECIPE, environment)
    file.rmdir()
    file.write_bytes(b"\xff\xfe{}")
    with pytest.raises(SettingsNotMergeable, match="cannot be read"):
        plan(RECIPE, environment)


def test_a_fifo_does_not_hold_us_up(environment: dict[str, str]) -> None:
    file = the_file(environment)
    os.mkfifo(file)
    with pytest.raises(SettingsNotMergeable):
        plan(RECIPE, environment)


def test_a_jsonc_in_its_place_is_the_one_that_counts(environment: dict[str, str]) -> None:
    other = the_file(environment).with_suffix(".jsonc")
    other.write_text('{"a": 1}')
    assert plan(RECIPE, environment)[0].path == other
    other.write_text('{\n// mine\n"a": 1}')
    with pytest.raises(SettingsNotMergeable, match="has comments") as refusal:
        plan(RECIPE, environment)
    assert '"meshnode": 1' in refusal.value.fix


def test_a_folder_that_cannot_be_made_leaves_all_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HomeNotWritable):
        write(Change(tmp_path / "file" / "x.json", None, "{}"))


@pytest.mark.parametrize(
    ("path", "variable", "expected"),
    [
        ("~/.codex/a.toml", "CODEX_HOME", "a.toml"),
        ("~/.pi/agent/models.json", "PI_CODING_AGENT_DIR", "models.json"),
        ("~/.claude/meshnode.json", "CLAUDE_CONFIG_DIR", "meshnode.json"),
        ("~/.config/opencode/opencode.json", "XDG_CONFIG_HOME", "opencode/opencode.json"),
        ("~/.continue/config.yaml", "CONTINUE_GLOBAL_DIR", "config.yaml"),
    ],
)
def test_folders_that_were_moved_are_found(path: str, variable: str, expected: str, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    assert place(path, {"HOME": "/h", variable: str(moved)}) == moved / expected
    assert place(path, {"HOME": "/h", variable: "relative"}) == Path("/h") / path.removeprefix("~/")
    assert place(path, {"HOME": "/h"}) == Path("/h") / path.removeprefix("~/")
