"""A node for the length of a command: the one that runs here, or one that is started and ended with the command.

The node of another program would not do: its models are another person's choice. What is started is what a person
would type: in a home that shares a mesh with others a node of that mesh, else `meshnode --model NAME`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import IO, Any

from meshnode.agents.recipe import AgentModel
from meshnode.cli.client import RunningNode, find_node, reported
from meshnode.cli.ready_models import choose, other_names
from meshnode.cli.render import printable, say
from meshnode.config import Places, find_places
from meshnode.errors import MeshnodeError, ModelNotFound, NodeNotRunning

POLL_S = 0.1
MESH_PATIENCE_S = 30.0
"""How long the models of a mesh may take to be heard of, once the node is in it."""
END_S = 30.0
MOST_WORDS = 1 << 20
CLIENT_HOME = "add --client"
"""The fix of the error of a home whose certificate is that of a client: the way to know without its keys."""


@contextlib.contextmanager
def node_for_now(model: str | None, *, configured: bool) -> Iterator[tuple[RunningNode, AgentModel]]:
    """The node of this home and its model of that name, or the first that chats; a started node ends after the block.

    `configured`: the settings name models, so that a node without flags has some. Raises NodeNotRunning with the ways
    to have one, ModelNotFound, ModelLoading, ModelError, and what the started node reports.
    """
    places = find_places()
    try:
        node = find_node(places)
    except NodeNotRunning:
        pass
    else:
        others = other_names(node) if model else None
        yield node, choose(node.call("GET", "/api/status"), model, others)
        return
    with _started(places, model, configured=configured) as found:
        yield found


def is_in_mesh(places: Places) -> bool:
    """Whether this home belongs to a mesh that others are in, too: it knows peers, or was let in by somebody.

    A mesh of its own has every home, and its key with it.
    """
    folder = places.home / "mesh"
    return (folder / "membership").exists() and ((folder / "peers").exists() or not (folder / "mesh.key").exists())


@contextlib.contextmanager
def _started(places: Places, model: str | None, *, configured: bool) -> Iterator[tuple[RunningNode, AgentModel]]:
    in_mesh = is_in_mesh(places)
    if model is None and not in_mesh and not configured:
        raise NodeNotRunning(
            f"home {places.home}",
            fix="name a model, and a node is started with it: --model demo; or run one yourself: meshnode --model NAME",
        )
    flags = [] if in_mesh or model is None else ["--model", model]
    with_what = " in its mesh" if in_mesh else f" with {printable(model)}" if model else ""
    say(f"no node runs here: starting one{with_what}")
    child = _Child(flags)
    try:
        try:
            found = child.wait(places, model, in_mesh=in_mesh)
        except MeshnodeError as error:
            if not in_mesh or CLIENT_HOME not in error.fix:
                raise
            child.end()
            child = _Child(["--client"])
            found = child.wait(places, model, in_mesh=True)
        yield found
    finally:
        child.end()


class _Child:
    """A node that is our child, in a session of its own: Ctrl-C in this terminal is not for it."""

    def __init__(self, flags: list[str]) -> None:
        self._words: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        self._told = ""
        command = [sys.executable, "-m", "meshnode", *flags, "--json"]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self._words,
            stderr=subprocess.DEVNULL,
            env=dict(os.environ),
            start_new_session=True,
        )

    def wait(self, places: Places, model: str | None, *, in_mesh: bool) -> tuple[RunningNode, AgentModel]:
        """Until a model is ready, with words on the way. Raises what the node reports, and ModelNotFound."""
        deadline: float | None = None
        while True:
            if self._process.poll() is not None:
                raise self._failure()
            time.sleep(POLL_S)
            try:
                node = find_node(places)
                status = node.call("GET", "/api/status")
            except NodeNotRunning:
                continue
            self._tell(status)
            self._check_failed(status)
            try:
                # A node of our own has the model that was asked for, however it calls it.
                chosen = choose(status, model, other_names(node)) if in_mesh else choose(status, None)
            except MeshnodeError as error:
                if in_mesh and self._is_up():
                    deadline = deadline or time.monotonic() + MESH_PATIENCE_S
                    if time.monotonic() > deadline:
                        raise _not_in_mesh(error) from None
                continue
            if in_mesh or self._is_up():
                return node, chosen

    def _is_up(self) -> bool:
        return "ready" in self._last_words()

    def _check_failed(self, status: dict[str, Any]) -> None:
        for entry in status["models"]:
            if entry["state"] == "failed" and entry.get("where") == "here":
                raise reported(entry["error"] or {"message": entry["detail"]})

    def _tell(self, status: dict[str, Any]) -> None:
        tasks = [f"{task.get('task', '')} {task.get('text', '')}" for task in status.get("tasks") or ()]
        details = [f"{entry['id']}: {entry['detail'] or entry['state']}" for entry in status["models"]]
        text = printable((tasks or details or [""])[0], 200)
        if text and text != self._told:
            self._told = text
            say(text)

    def _last_words(self) -> dict[str, Any]:
        """The JSON object that the node has printed; {} before."""
        self._words.seek(0)
        for line in reversed(self._words.read(MOST_WORDS).splitlines()):
            with contextlib.suppress(ValueError, RecursionError):
                value = json.loads(line)
                if isinstance(value, dict):
                    return value
        return {}

    def _failure(self) -> MeshnodeError:
        facts = self._last_words().get("error")
        if isinstance(facts, dict):
            return reported(facts)
        return MeshnodeError(f"the node ended with exit code {self._process.returncode}", fix="see why: meshnode logs")

    def end(self) -> None:
        """End it, by its pid, as Ctrl-C would; by force after a while."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(END_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._words.close()


def _not_in_mesh(error: MeshnodeError) -> MeshnodeError:
    if isinstance(error, ModelNotFound):
        return ModelNotFound(error.detail, fix=f"nobody in the mesh serves it. {error.fix}")
    return error
