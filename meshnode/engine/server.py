"""Keeps one llama-server alive: start, readiness, restarts with growing pauses, a limit to them, and an orderly stop.

Readiness is asked for, never waited out: `/health` is polled in growing steps, and the end of the child ends the wait
at once. A llama-server that stops before it was ever ready is told apart from one that crashes later: the first is
the user's to mend and raised from `start`, the second is restarted. An engine that hangs still answers `/health`;
`probe` is the question it cannot answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import secrets
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from meshnode.engine import client
from meshnode.engine.address import AddressBook
from meshnode.engine.commands import Address, ServerOptions, server_argv, split_environment
from meshnode.engine.diagnosis import (
    address_was_taken,
    explain_load_failure,
    is_permanent,
    last_error,
    redact,
    worker_went_away,
)
from meshnode.engine.process import BoundedLog, Child, Exit, child_environment
from meshnode.errors import EngineCrashed, EngineStartTimeout, MeshnodeError
from meshnode.telemetry import LOG, ProblemBoard

State = Literal["starting", "loading", "ready", "restarting", "failed", "stopped"]

POLL_FIRST_S = 0.01
POLL_LAST_S = 0.25
ADDRESS_TRIES = 5
_PROBLEMS = ("engine-restarting", "engine-crash-loop", "model-load-failed")


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """When to start again. Pauses double from `first_s` to `longest_s`, each shortened by up to half at random.

    A llama-server that was ready for `stable_s` has paid for its earlier crashes; `limit` crashes without that in
    between end the attempts. Four: the first is often one bad request, and 0.25 + 0.5 + 1 s is soon over.
    """

    first_s: float = 0.25
    longest_s: float = 30.0
    stable_s: float = 120.0
    limit: int = 4

    def delay_s(self, crashes: int, rng: random.Random) -> float:
        """The pause after the `crashes`-th crash in a row, in seconds."""
        return min(self.longest_s, self.first_s * 2.0 ** (crashes - 1)) * rng.uniform(0.5, 1.0)


def start_limit_s(model_bytes: int) -> float:
    """How long a start may take: a minute, and the time that a slow disk (20 MB/s) needs for the model."""
    return 60.0 + model_bytes / 20e6


@dataclass(frozen=True, slots=True)
class EngineProperties:
    """What a ready llama-server says about itself in `/props`: context in tokens per slot, slots, and abilities."""

    context: int
    slots: int
    chat_capabilities: frozenset[str] = frozenset()
    modalities: frozenset[str] = frozenset()
    build: str = ""


@dataclass(frozen=True, slots=True)
class ServerSnapshot:
    """What is known of one llama-server. `since` is wall time of the last change of state, in seconds.

    `load_s` is how long the last start took until ready, `crashes` how many came in a row, `restarts` how many
    there were in all, `detail` the reason for the state in words.
    """

    alias: str
    state: State
    since: float
    pid: int | None = None
    address: Address | None = None
    restarts: int = 0
    crashes: int = 0
    load_s: float | None = None
    detail: str = ""
    properties: EngineProperties | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerParts:
    """What a `LlamaServer` is given besides its options.

    `run_dir` is a folder for its socket, used by nothing else. `environ` is the node's environment, of which only
    an allow-list is passed on. `log_file` takes the output of all starts.
    """

    binary: Path
    run_dir: Path
    environ: Mapping[str, str]
    problems: ProblemBoard
    log_file: Path | None = None
    model_bytes: int = 0
    policy: RestartPolicy = field(default_factory=RestartPolicy)
    rng: random.Random = field(default_factory=random.Random)
    unix: bool = True
    on_change: Callable[[ServerSnapshot], None] = lambda _: None


class LlamaServer:
    """One supervised llama-server. `start` once, `stop` once; `address` and `api_key` change with every restart."""

    def __init__(self, options: ServerOptions, parts: ServerParts) -> None:
        self.options = options
        self.api_key = ""
        self.log = BoundedLog()
        self._parts = parts
        self._book = AddressBook(parts.run_dir, unix=parts.unix)
        self._child: Child | None = None
        self._address: Address | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._snapshot = ServerSnapshot(options.alias, "stopped", time.time())

    @property
    def address(self) -> Address | None:
        """Where it listens now; None while nothing does."""
        return self._snapshot.address

    def snapshot(self) -> ServerSnapshot:
        """What is known of it now."""
        return self._snapshot

    async def start(self) -> None:
        """Start llama-server and return when it can answer; afterwards it is restarted whenever it ends.

        With `split` it is not restarted: its workers are part of a plan, so it becomes "failed", and whoever made the
        plan makes another. Raises ModelFileInvalid, ModelDoesNotFit, EngineIncompatible, WorkerLost (`split`: a worker
        is not there) or EngineCrashed when it ended instead, and
        EngineStartTimeout when it did not become ready in time. Nothing runs then, nor after a cancellation.
        """
        assert self._supervisor is None, "start() is called once"
        try:
            await self._launch()
        except BaseException as error:
            self._change("failed", detail=error.message if isinstance(error, MeshnodeError) else "", **_NOWHERE)
            self._book.close()
            raise
        self._supervisor = asyncio.create_task(self._supervise(), name=f"supervise {self.options.alias}")

    async def stop(self, grace_s: float = 5.0) -> None:
        """Stop the supervision and llama-server: politely, and after `grace_s` seconds by force.

        The snapshot says "stopped" from the beginning, so that no request is sent there any more.
        """
        self._change("stopped", detail="", **_NOWHERE)
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.wait({self._supervisor})
        await self._discard_child(grace_s)
        for code in _PROBLEMS:
            self._parts.problems.clear(code, self.options.alias)
        self._book.close()

    async def request(self, method: str, path: str, *, body: bytes = b"", deadline_s: float = 5.0) -> tuple[int, bytes]:
        """Status and body of one request to this llama-server. Raises OSError (TimeoutError when it takes too long)."""
        if self.address is None:
            raise ConnectionRefusedError("the engine is not running")
        return await client.request(self.address, method, path, api_key=self.api_key, body=body, deadline_s=deadline_s)

    async def probe(self, deadline_s: float = 10.0) -> bool:
        """Whether it still computes: the smallest job of its kind, under a deadline in seconds.

        TRAP: it takes a slot, so ask only while one is free; behind busy slots a healthy engine would wait too, and
        the slot it takes loses its cached prompt.
        """
        path, job = _PROBES[self.options.mode]
        try:
            status, _ = await self.request("POST", path, body=json.dumps(job).encode(), deadline_s=deadline_s)
        except OSError:
            return False
        return status == 200

    async def _supervise(self) -> None:
        crashes = 0
        while self._child is not None:
            ready_at = time.monotonic()
            end = await self._child.wait()
            reason = end.words
            if said := last_error(self.log.tail()):
                reason = f"{reason}: {said}"
            if self.options.split is not None:
                lost = worker_went_away(self.log.tail(), end)
                await self._end_split("the worker went away" if lost else reason)
                return
            stable = time.monotonic() - ready_at >= self._parts.policy.stable_s
            crashes = 1 if stable else crashes + 1
            while await self._pause(crashes, reason):
                try:
                    await self._launch()
                    break
                except MeshnodeError as error:
                    if is_permanent(error):
                        self._give_up_on(error)
                        return
                    crashes, reason = crashes + 1, error.detail
            self._parts.problems.clear("engine-restarting", self.options.alias)

    async def _pause(self, crashes: int, reason: str) -> bool:
        """Wait before the next start; False when there have been too many."""
        alias, policy, problems = self.options.alias, self._parts.policy, self._parts.problems
        _log(logging.WARNING, "engine ended", alias, reason=reason, crashes=crashes)
        restarting = crashes < policy.limit
        detail = reason if restarting else f"it stopped {crashes} times in a row: {reason}"
        self._change("restarting" if restarting else "failed", detail=detail, crashes=crashes, **_NOWHERE)
        await self._discard_child(0)
        if not restarting:
            last_line = last_error(self.log.tail()) or reason
            problems.put("engine-crash-loop", alias, model=alias, crashes=str(crashes), last_line=last_line)
            return False
        delay_s = policy.delay_s(crashes, self._parts.rng)
        problems.put("engine-restarting", alias, model=alias, reason=reason, delay_s=f"{delay_s:.1f}")
        await asyncio.sleep(delay_s)
        self._change("restarting", restarts=self._snapshot.restarts + 1)
        return True

    async def _end_split(self, reason: str) -> None:
        _log(logging.WARNING, "engine of a split ended", self.options.alias, reason=reason)
        self._change("failed", detail=reason, **_NOWHERE)
        await self._discard_child(0)

    def _give_up_on(self, error: MeshnodeError) -> None:
        """The model of a restart cannot be loaded any more (removed, damaged): another try would change nothing."""
        alias, problems = self.options.alias, self._parts.problems
        problems.clear("engine-restarting", alias)
        problems.put("model-load-failed", alias, model=alias, reason=error.message, fix=error.fix)
        self._change("failed", detail=error.message, **_NOWHERE)

    async def _launch(self) -> None:
        """Start one llama-server and wait until it is ready. Raises as `start` does, with nothing left running."""
        for attempt in range(1, ADDRESS_TRIES + 1):
            try:
                child = await self._spawn()
                end = await self._until_ready(child)
            except OSError as error:
                raise EngineCrashed(f"it could not be started: {error}") from error
            finally:
                # Not ready, whether it ended, an exception passes through or this task is cancelled.
                if self._snapshot.state != "ready":
                    await self._discard_child(0)
            if end is None:
                load_s = self._snapshot.load_s or 0.0
                _log(logging.INFO, "engine ready", self.options.alias, pid=child.pid, load_s=round(load_s, 3))
                return
            tail = self.log.tail()
            if attempt == ADDRESS_TRIES or not address_was_taken(tail):
                raise explain_load_failure(tail, end, self.options.model)

    async def _spawn(self) -> Child:
        self._address = address = self._book.fresh()
        self.api_key = secrets.token_urlsafe(32)
        extra = {"LLAMA_API_KEY": self.api_key, **split_environment(self.options)}
        env = child_environment(self._parts.environ, extra)
        argv = server_argv(self._parts.binary, self.options, address)
        # A log of its own for each start, so that an old crash is not taken for the reason of a new one.
        self.log = BoundedLog(self._parts.log_file, redact=self._kept)
        if self.log.error:
            path, _, reason = self.log.error.partition(": ")
            self._parts.problems.put("state-not-written", path, path=path, reason=reason)
        self._child = await Child.start(argv, env=env, log=self.log)
        self._change("starting", address=address, pid=self._child.pid)
        return self._child

    def _kept(self, line: str) -> str:
        """What the log keeps of a line: all of it while there can be no request yet."""
        return line if self._snapshot.state in ("starting", "loading") else redact(line)

    async def _until_ready(self, child: Child) -> Exit | None:
        """None once it is ready, its end if that came first. Raises EngineStartTimeout."""
        started_at, interval_s = time.monotonic(), POLL_FIRST_S
        limit_s = start_limit_s(self._parts.model_bytes)
        ended = asyncio.ensure_future(child.wait())
        try:
            while time.monotonic() - started_at < limit_s:
                await asyncio.wait({ended}, timeout=interval_s)
                interval_s = min(POLL_LAST_S, interval_s * 1.5)
                asking = asyncio.create_task(self._ask_if_ready())
                try:
                    await asyncio.wait({ended, asking}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    asking.cancel()
                if ended.done():
                    return ended.result()
                if properties := asking.result():
                    load_s = time.monotonic() - started_at
                    self._change("ready", detail="", properties=properties, load_s=load_s)
                    return None
        finally:
            ended.cancel()
        raise EngineStartTimeout(f"{self.options.alias} was not ready within {limit_s:.0f} s")

    async def _ask_if_ready(self) -> EngineProperties | None:
        try:
            status, _ = await self.request("GET", "/health")
            if status == 503 and self._snapshot.state == "starting":
                self._change("loading")
            if status != 200:
                return None
            # /health needs no key, so whoever took the port could have answered it; /props tells that it is ours.
            status, body = await self.request("GET", "/props")
        except OSError:
            return None
        return read_properties(body) if status == 200 else None

    async def _discard_child(self, grace_s: float) -> None:
        child, self._child = self._child, None
        address, self._address = self._address, None
        try:
            if child is not None:
                await child.stop(grace_s)
        finally:
            if child is not None:
                # Whoever lost the patience to wait for a polite end meant: now.
                child.signal(signal.SIGKILL)
            if address is not None:
                self._book.release(address)

    def _change(self, state: State, **facts: Any) -> None:
        before = self._snapshot
        since = before.since if state == before.state else time.time()
        self._snapshot = replace(before, state=state, since=since, **facts)
        if self._snapshot == before:
            return
        try:
            self._parts.on_change(self._snapshot)
        except Exception:
            # The listener's trouble must not end the supervision.
            LOG.exception("a listener of engine states failed")


# What is true of a llama-server that does not run.
_NOWHERE: dict[str, Any] = {"address": None, "pid": None, "properties": None}

_PROBES: dict[str, tuple[str, dict[str, object]]] = {
    "chat": ("/completion", {"prompt": "a", "n_predict": 1, "temperature": 0, "cache_prompt": False}),
    "embedding": ("/v1/embeddings", {"input": "a"}),
    "rerank": ("/v1/rerank", {"query": "a", "documents": ["a"]}),
}


def read_properties(body: bytes) -> EngineProperties | None:
    """The body of `/props`; None if it is not what the pinned llama-server sends."""
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
        props = json.loads(body)
        return EngineProperties(
            context=int(props["default_generation_settings"]["n_ctx"]),
            slots=int(props["total_slots"]),
            chat_capabilities=frozenset(name for name, yes in props.get("chat_template_caps", {}).items() if yes),
            modalities=frozenset(name for name, yes in props.get("modalities", {}).items() if yes),
            build=str(props.get("build_info", "")),
        )
    return None


def _log(level: int, text: str, alias: str, **facts: object) -> None:
    LOG.log(level, text, extra={"facts": {"model": alias, **facts}})
