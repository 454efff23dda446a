"""Changes the settings files of other programs on the disk: planned first, shown, then written whole with a backup.

A backup is never written over: settings.json.bak, then .bak.1, .bak.2 ... unless one already has the same content. A
link is followed, so that a dotfile that is kept elsewhere stays a link; the mode of a file stays what it was.
"""

from __future__ import annotations

import difflib
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from meshnode import durable
from meshnode.agents.merging import MOST_BYTES, SettingsNotMergeable, merged
from meshnode.agents.recipe import Recipe, RecipeFile

MOVED_BY = {
    "~/.codex": "CODEX_HOME",
    "~/.pi/agent": "PI_CODING_AGENT_DIR",
    "~/.claude": "CLAUDE_CONFIG_DIR",
    "~/.continue": "CONTINUE_GLOBAL_DIR",
    "~/.config": "XDG_CONFIG_HOME",
}
"""The variables with which programs and systems move these folders."""
MOST_BACKUPS = 1000
BEFORE_JSONC = "opencode.json"


@dataclass(frozen=True, slots=True)
class Change:
    """What is to happen to one file. `before` is None when there is none; `path` is where links lead."""

    path: Path
    before: str | None
    after: str

    @property
    def needed(self) -> bool:
        return self.before != self.after

    def diff(self) -> str:
        """The change in the unified format; "" for none."""
        old = (self.before or "").splitlines(keepends=True)
        new = self.after.splitlines(keepends=True)
        name = str(self.path)
        lines = difflib.unified_diff(old, new, name if self.before is not None else "/dev/null", name)
        return "".join(line if line.endswith("\n") else f"{line}\n" for line in lines)


def place(path: str, environment: Mapping[str, str]) -> Path:
    """Where a file of a recipe is for the user with this environment. Variables that are not absolute are ignored."""
    for prefix, variable in MOVED_BY.items():
        moved = environment.get(variable, "")
        if path.startswith(f"{prefix}/") and Path(moved).is_absolute():
            return Path(moved) / path.removeprefix(f"{prefix}/")
    home = environment.get("HOME") or str(Path.home())
    return Path(home) / path.removeprefix("~/")


def plan(recipe: Recipe, environment: Mapping[str, str]) -> list[Change]:
    """What `write` would do for each file of a recipe. Changes nothing.

    Raises SettingsNotMergeable for a file that cannot be read or understood.
    """
    return [_plan_file(file, environment) for file in recipe.files if file.path]


def _plan_file(file: RecipeFile, environment: Mapping[str, str]) -> Change:
    path = place(file.path, environment)
    if path.name == BEFORE_JSONC and not path.exists() and path.with_suffix(".jsonc").exists():
        # opencode reads both; a second file beside the one that the user keeps would surprise them.
        path = path.with_suffix(".jsonc")
    try:
        path = path.resolve()
        before = _read(path)
    except (OSError, UnicodeDecodeError, RuntimeError) as reason:
        raise SettingsNotMergeable(
            f"{path} cannot be read ({reason})", fix=f"put this into it yourself:\n{file.content.rstrip()}"
        ) from None
    return Change(path, before, merged(before or "", file.content, file.format, name=str(path)))


def _read(path: Path) -> str | None:
    try:
        # Asked first: to open a pipe is to wait for its other end.
        if not stat.S_ISREG(path.stat().st_mode):
            raise OSError("it is no plain file")
    except FileNotFoundError:
        return None
    with path.open("rb") as opened:
        content = opened.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise OSError("it is too large for settings")
    return content.decode("utf-8")


def write(change: Change) -> Path | None:
    """Do it; the backup of what was there, None where nothing was. Raises HomeNotWritable; the old file then stays."""
    mode = durable.PRIVATE_FILE
    backup = None
    if change.before is not None:
        mode = stat.S_IMODE(change.path.stat().st_mode)
        backup = _back_up(change.path, change.before.encode(), mode)
    durable.write(change.path, change.after.encode(), mode)
    # The mask of new files has no say in the mode that a file had before.
    change.path.chmod(mode)
    return backup


def _back_up(path: Path, content: bytes, mode: int) -> Path:
    for number in range(MOST_BACKUPS):
        backup = path.with_name(f"{path.name}.bak{f'.{number}' if number else ''}")
        try:
            if backup.read_bytes() == content:
                return backup
        except FileNotFoundError:
            durable.write(backup, content, mode)
            return backup
        except OSError:
            continue
    raise SettingsNotMergeable(f"{path} has {MOST_BACKUPS} backups", fix="remove some of them")
