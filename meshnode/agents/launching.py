"""Runs a program with a recipe: its environment and arguments alone, no file of the user touched.

The program shares our terminal. Ctrl-C is for it: it reaches the whole group, and we only wait. SIGTERM and SIGHUP are
handed on. The key of a node goes by environment, never by argument, where every user of the machine could read it.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

from meshnode.agents.recipe import KEY_REFERENCE, KEY_VARIABLE, NO_KEY, Launch, Recipe
from meshnode.errors import MeshnodeError

HANDED_ON = (signal.SIGTERM, signal.SIGHUP)
LEFT_TO_THE_PROGRAM = (signal.SIGINT, signal.SIGQUIT)
NOT_PASSED_ON = ("MESHNODE_JOIN",)
"""What a program has no business with: an invite is a secret of its own."""


class AgentMissing(MeshnodeError):
    """The program is not installed."""

    code = "agent-missing"


def find(recipe: Recipe, environment: Mapping[str, str]) -> str:
    """The path of the program. Raises AgentMissing with how to install it."""
    assert recipe.launch is not None
    found = shutil.which(recipe.launch.binary, path=environment.get("PATH"))
    if found is None:
        raise AgentMissing(f"no {recipe.launch.binary} in PATH", fix=f"install it: {recipe.install}")
    return found


def run(recipe: Recipe, arguments: Sequence[str], environment: Mapping[str, str], *, key: str | None) -> int:
    """Run it to its end; its exit code, 128 + the signal that ended it. Raises AgentMissing.

    `key` is that of the node, None when it asks for none. Only in the main thread: it holds signals meanwhile.
    """
    assert recipe.launch is not None
    binary = find(recipe, environment)
    given = environment_for(recipe.launch, environment, key=key)
    with _scratch(recipe.launch) as files:
        argv = [binary, *arguments_for(recipe.launch, arguments, files)]
        code = _run(argv, given)
    return code if code >= 0 else 128 - code


def environment_for(launch: Launch, environment: Mapping[str, str], *, key: str | None) -> dict[str, str]:
    """The whole environment of the program."""
    given = {name: value for name, value in environment.items() if name not in NOT_PASSED_ON}
    for name, value in launch.environment.items():
        given[name] = (key or NO_KEY) if value == KEY_REFERENCE else value
    if key is not None:
        given[KEY_VARIABLE] = key
    return given


def arguments_for(launch: Launch, arguments: Sequence[str], files: Mapping[str, Path]) -> list[str]:
    """The recipe's arguments with the paths of its scratch files, then those of the user."""
    places = {f"{{{name}}}": str(path) for name, path in files.items()}
    return [places.get(item, item) for item in launch.arguments] + list(arguments or launch.without_arguments)


@contextlib.contextmanager
def _scratch(launch: Launch) -> Iterator[dict[str, Path]]:
    """The private files of one run, in a folder (0700) that goes with it."""
    if not launch.scratch:
        yield {}
        return
    with tempfile.TemporaryDirectory(prefix="meshnode-", ignore_cleanup_errors=True) as folder:
        files = {name: Path(folder) / name for name in launch.scratch}
        for name, file in files.items():
            file.write_text(launch.scratch[name], "utf-8")
        yield files


def _run(argv: list[str], environment: Mapping[str, str]) -> int:
    started: list[subprocess.Popen[bytes]] = []

    def hand_on(number: int, _frame: FrameType | None) -> None:
        for process in started:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)

    with _handling({number: hand_on for number in HANDED_ON} | {number: _nothing for number in LEFT_TO_THE_PROGRAM}):
        try:
            started.append(subprocess.Popen(argv, env=dict(environment)))
        except OSError as reason:
            raise AgentMissing(f"{argv[0]} cannot be run ({reason.strerror})") from None
        return started[0].wait()


def _nothing(_number: int, _frame: FrameType | None) -> None:
    """A handler, not SIG_IGN: that one the program would inherit, and then not hear Ctrl-C."""


@contextlib.contextmanager
def _handling(handlers: Mapping[signal.Signals, Callable[[int, FrameType | None], None]]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
