"""The composition root: settings -> parts -> one running node, and an orderly end.

Order of start: home folder and its lock, identity, ports (so that a taken one is known at once), runtime file, web
servers (they answer 503 from now on), names of the models, mesh (its models can be asked for from now on), engine,
devices, own models. The end goes the other way. Only the composers (ARCHITECTURE.md) know more
than one room.
"""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import json
import os
import secrets
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

from meshnode import __version__
from meshnode.api.activity import Activity
from meshnode.api.control import Controls
from meshnode.api.events import Events
from meshnode.api.gate import Gates
from meshnode.api.http_server import HttpServer, listen
from meshnode.api.metrics import Gauge, Metrics
from meshnode.api.radius_control import RadiusControl
from meshnode.api.record import Record
from meshnode.company import Alone, Company, CompanyParts
from meshnode.config import Places, Settings
from meshnode.desk import Desk, DeskParts
from meshnode.doors import DoorParts, api_door, console_door, gateway_door
from meshnode.engine.installed import Engine
from meshnode.equipping import Equipping
from meshnode.errors import MeshnodeError, ModelInUse, NoModelServed
from meshnode.hardware import Inventory
from meshnode.home import home_lock, write_runtime_file
from meshnode.identity import Identity, load_or_create, short
from meshnode.journal import node_log
from meshnode.meshing import node_name
from meshnode.offers import mesh_entries
from meshnode.planning import Speeds
from meshnode.service import notify
from meshnode.serving import Serving, Tell
from meshnode.status import gauges, hardware_facts, memory_facts, request_facts
from meshnode.tasks import TaskBoard
from meshnode.telemetry import LOG, ProblemBoard, Report
from meshnode.units import Unit

RECENT_REQUESTS = 50
"""Shown in /api/status; /api/requests has KEPT_REQUESTS."""
KEPT_REQUESTS = 500


class Node:
    """One node. `run` returns when it was told to stop; `stop` may be called from a signal handler."""

    def __init__(self, settings: Settings, places: Places, *, report: Report, tell: Tell, idle: bool = False) -> None:
        """An `idle` node was started to be told what to do: it builds no engine before one is needed."""
        self.settings = settings
        self.places = places
        self.interrupted = False
        self._tasks = TaskBoard(report, self._changed)
        self._tell = tell
        self._started_at = time.time()
        self._state = "starting"
        self._stop = asyncio.Event()
        self._stop_now = asyncio.Event()
        self._cancelled = threading.Event()
        self._token = secrets.token_urlsafe(24)
        self._recent: deque[dict[str, Any]] = deque(maxlen=KEPT_REQUESTS)
        self._served_count = 0
        self._idle = idle
        self._node_id = ""
        self._api_url = self._console_url = ""
        self._events = Events(self.status)
        self._problems = ProblemBoard(self._changed)
        self._gates = Gates(capacity=settings.queue, timeout_s=settings.queue_timeout)
        self._metrics = Metrics(self._gauges)
        self._serving = Serving(
            settings=settings,
            places=places,
            problems=self._problems,
            gates=self._gates,
            report=self._tasks,
            tell=tell,
            changed=self._changed,
            equipped=self._equip,
            task_ended=self._tasks.forget,
        )
        self._company: Company | Alone = Alone(self._serving)
        self._equipping = Equipping(
            settings=settings,
            places=places,
            problems=self._problems,
            tasks=self._tasks,
            tell=tell,
            cancelled=self._cancelled,
            equipped=self._equipped,
        )
        self._activity = Activity(self._events.touch)
        self._radius = RadiusControl(settings.radius, changed=self._changed)
        self._doors = DoorParts(
            settings=settings,
            activity=self._activity,
            radius=self._radius,
            pages_may_widen=settings.api_key is not None,
            answered=lambda *given: self._company.answered(*given),
            gates=self._gates,
            here=self._serving.served,
            models=lambda: self._company.models(),
            stopping=self._stop.is_set,
        )
        self._desk = Desk(
            DeskParts(
                settings=settings,
                places=places,
                serving=self._serving,
                tasks=self._tasks,
                served=lambda: self._company.models(),
                lenders=lambda: self._company.lenders(),
                api_url=lambda: self._api_url,
                changed=self._changed,
            )
        )
        self._loop: asyncio.AbstractEventLoop | None = None

    # --- life -----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Run until stopped. Raises MeshnodeError when the node cannot start or no model can be served."""
        self._loop = asyncio.get_running_loop()
        with home_lock(self.places), node_log(self.settings, self.places, self._problems):
            identity = load_or_create(self.places.home / "node.key")
            self._node_id = self._serving.node = identity.node_id.hex()
            if not self.settings.solo:
                self._company = self._make_company(identity)
            self._tell("node", f'{short(identity.node_id)} "{node_name(self.settings)}"')
            api_sockets = listen(self.settings.port, public=self.settings.listen_all, purpose="the API")
            try:
                console_sockets = listen(self.settings.console, public=False, purpose="console")
            except MeshnodeError:
                for opened in api_sockets:
                    opened.close()
                raise
            self._api_url = f"http://localhost:{api_sockets[0].getsockname()[1]}"
            self._console_url = f"http://localhost:{console_sockets[0].getsockname()[1]}"
            write_runtime_file(self.places, self._runtime_facts())
            try:
                await self._serve(api_sockets, console_sockets)
            finally:
                self.places.runtime_file.unlink(missing_ok=True)

    def stop(self, now: bool = False) -> None:
        """Begin the end: running answers finish first; with `now`, or when called a second time, they are cut."""
        if now or self._stop.is_set():
            self._stop_now.set()
        self._stop.set()
        self._cancelled.set()

    def interrupt(self) -> None:
        """As `stop`; a start that is not through yet counts as `interrupted`, which is not what was asked for."""
        self.interrupted |= self._state in ("starting", "loading")
        self.stop()

    async def _serve(self, api_sockets: list[socket.socket], console_sockets: list[socket.socket]) -> None:
        parts = dataclasses.replace(self._doors, purse=self._company.purse)
        gateway = gateway_door(parts, node=self._node_id, finished=self._finished)
        api = HttpServer(self._company.plain_door(api_door(self._doors, gateway=gateway)))
        console = HttpServer(
            console_door(
                self._doors,
                controls=self._controls(),
                events=self._events,
                metrics=self._metrics,
                gateway=gateway,
            )
        )
        servers = [
            asyncio.create_task(api.serve(api_sockets), name="api"),
            asyncio.create_task(console.serve(console_sockets), name="console"),
        ]
        start = asyncio.create_task(self._bring_up(), name="start")
        stop = asyncio.create_task(self._stop.wait(), name="stop")
        try:
            await asyncio.wait({start, stop, *servers}, return_when=asyncio.FIRST_COMPLETED)
            if start.done() and not start.exception():
                await asyncio.wait({stop, *servers}, return_when=asyncio.FIRST_COMPLETED)
            # Whatever a start says that was stopped half way is not a failure.
            if start.done() and not self._stop.is_set():
                start.result()
            for server in servers:
                if server.done():
                    server.result()
        finally:
            await self._end(start, stop, api, console, servers)

    async def _end(
        self,
        start: asyncio.Task[None],
        stop: asyncio.Task[bool],
        api: HttpServer,
        console: HttpServer,
        servers: list[asyncio.Task[None]],
    ) -> None:
        self._state = "stopping"
        notify.stopping()
        self._cancelled.set()
        self._changed()
        stop.cancel()
        if not start.done():
            start.cancel()
        await self._desk.close()
        await self._equipping.stop()
        busy = sum(self._gates.snapshot(model.id).busy for model in self._serving.served())
        if busy:
            self._tell("stop", f"{busy} answers are being finished; Ctrl-C again cuts them")
        api.stop()
        await self._drain(servers[0])
        api.stop(now=True)
        await self._company.leave(0.0 if self._stop_now.is_set() else self.settings.drain_timeout)
        self._serving.hold()
        await self._company.stop(now=self._stop_now.is_set())
        await self._serving.stop(now=self._stop_now.is_set())
        await self._company.close()
        console.stop(now=True)
        await asyncio.wait([*servers, start], timeout=5)

    async def _drain(self, server: asyncio.Task[None]) -> None:
        cut = asyncio.create_task(self._stop_now.wait())
        await asyncio.wait({server, cut}, timeout=self.settings.drain_timeout, return_when=asyncio.FIRST_COMPLETED)
        cut.cancel()

    async def _bring_up(self) -> None:
        units = [await self._serving.add(name) for name in self.settings.model]
        if not self.settings.solo:
            await self._company.start()
            self._changed()
        if not units:
            await self._now_up()
        if self.settings.client:
            return
        if self._idle and not await self._equipping.is_built():
            return
        await self._equipping.equip()
        if not units:
            return
        self._state = "loading"
        up = asyncio.create_task(self._bring_up_all(units), name="bring up")
        waiting = asyncio.create_task(self._serving.waiting(), name="waiting")
        try:
            # Whoever waits for machines shows them the invite meanwhile.
            await asyncio.wait({up, waiting}, return_when=asyncio.FIRST_COMPLETED)
            if not up.done():
                await self._now_up(ready=False)
                await up
            else:
                up.result()
                await self._now_up()
        finally:
            for task in (up, waiting):
                task.cancel()
            await asyncio.wait({up, waiting})

    async def _bring_up_all(self, units: list[Unit]) -> None:
        failures = []

        async def bring_up(unit: Unit) -> None:
            try:
                await self._serving.bring_up(unit)
            except MeshnodeError as error:
                failures.append(error)
                if len(units) > 1:
                    self._tell("failed", f"{unit.id}: {error.message}. {error.fix}".removesuffix(". "))

        # They take turns in their order, but none waits for one that waits for other machines.
        await asyncio.gather(*(bring_up(unit) for unit in units))
        if failures and len(failures) == len(units):
            raise failures[0]

    async def _now_up(self, *, ready: bool = True) -> None:
        """Say that this node does what it was started for, or all of that but for a model that waits for machines."""
        self._state = "ready"
        leave_to_stay()
        self._changed()
        notify.status(f"{self._api_url}/v1")
        notify.ready()
        LOG.info("node ready", extra={"facts": {"api": self._api_url, "console": self._console_url}})
        facts: dict[str, Any] = {"ready": ready, "api": f"{self._api_url}/v1", "console": self._console_url}
        if (mesh := await self._company.invitation(invite=not self._idle)) is not None:
            facts["mesh"] = mesh
        self._tell("up", json.dumps(facts))

    async def _equip(self) -> None:
        await self._equipping.equip()

    def _equipped(self, engine: Engine, inventory: Inventory, speeds: Speeds) -> None:
        self._serving.equip(engine, inventory, speeds)
        self._company.equip(engine, inventory, speeds)
        self._changed()

    # --- parts ----------------------------------------------------------------------------------------------

    def _make_company(self, identity: Identity) -> Company:
        return Company(
            CompanyParts(
                settings=self.settings,
                places=self.places,
                identity=identity,
                serving=self._serving,
                doors=self._doors,
                gates=self._gates,
                problems=self._problems,
                tell=self._tell,
                changed=self._changed,
                seen=self._events.touch,
                joined=self._joined,
                finished=self._remember,
            )
        )

    def _joined(self) -> None:
        if self._idle and not self.settings.client:
            self._equipping.begin()  # a member lends its memory, as one that was started with --join does

    async def _load(self, model: str) -> dict[str, Any]:
        """A person wants a model here: it stays, also if this node took it on by itself before."""
        try:
            return await self._serving.load(model)
        except ModelInUse:
            unit = await self._serving.adopt(model)
            if unit is None or not self._company.asked_for(unit.id):
                raise
            return {"model": unit.id, "state": unit.state}

    def _controls(self) -> Controls:
        return Controls(
            load=self._load,
            unload=self._serving.unload,
            plan=self._company.plan,
            stop=self.stop,
            token=self._token,
            mesh=self._company.mesh_controls,
            public=self._company.public_controls,
            spending=self._company.spending_control,
            radius=self._radius,
            requests=lambda limit: list(self._recent)[: -limit - 1 : -1],
            **self._desk.controls(),
        )

    def _runtime_facts(self) -> dict[str, Any]:
        return {
            "schema": 1,
            "pid": os.getpid(),
            "version": __version__,
            "node": self._node_id,
            "api": self._api_url,
            "console": self._console_url,
            "token": self._token,
            "started_at": self._started_at,
        }

    # --- what is told ---------------------------------------------------------------------------------------

    def _changed(self) -> None:
        """Something of this node has changed: watchers and peers want to know. Safe from any thread."""
        if self._loop is None:
            return
        if threading.current_thread() is not threading.main_thread():
            self._loop.call_soon_threadsafe(self._changed)
            return
        self._company.touch()
        self._events.touch()

    def _finished(self, record: Record) -> None:
        self._company.finished(record)
        self._remember(record)

    def _remember(self, record: Record) -> None:
        self._served_count += 1
        self._metrics.finished(record)
        facts = request_facts(record, at=time.time(), here=self._node_id)
        self._recent.append(facts)
        LOG.info("request", extra={"facts": {name: value for name, value in facts.items() if name != "at"}})
        self._changed()

    def status(self) -> dict[str, Any]:
        """What /api/status answers; `schema` 1, fields are only added."""
        inventory, engine = self._equipping.inventory, self._equipping.engine
        others = self._company.facts(self._radius())
        leases = others["pool"]["lending"]["leases"] if others["pool"] is not None else []
        models = [*self._serving.entries(), *mesh_entries(self._company.models())]
        return {
            "schema": 1,
            "version": __version__,
            "pid": os.getpid(),
            "state": self._state,
            "ready": any(model["state"] == "ready" for model in models),
            "started_at": round(self._started_at, 3),
            "node": {"id": self._node_id, "short": self._node_id[:10], "name": node_name(self.settings)},
            "api": {
                "url": f"{self._api_url}/v1",
                "listen_all": self.settings.listen_all,
                "key_required": self.settings.api_key is not None,
            },
            "console": {"url": self._console_url},
            "idle": self._idle_facts(models),
            "engine": engine.as_dict() if engine else None,
            "hardware": hardware_facts(inventory) if inventory else None,
            "memory": memory_facts(inventory, self._serving.units(), leases, self.settings),
            **self._desk.facts(),
            "models": models,
            **others,
            "requests": {
                "finished": self._served_count,
                "active": sum(model["busy"] for model in models),
                "waiting": sum(model["waiting"] for model in models),
                **self._activity.facts(),
                "recent": list(self._recent)[-RECENT_REQUESTS:],
            },
            "problems": [problem.as_dict() for problem in self._problems],
        }

    def _idle_facts(self, models: list[dict[str, Any]]) -> dict[str, str] | None:
        """Why nothing can be asked here, and what to do."""
        if models:
            return None
        nothing = NoModelServed()
        reason = f"{nothing.message}; to do: {nothing.fix}"
        if self._idle and not self._equipping.begun:
            reason += "; the first load builds the engine, which takes some minutes, where it was never built"
        return {"reason": reason}

    def _gauges(self) -> Iterator[Gauge]:
        yield from gauges(self._serving.entries(), self._equipping.inventory, sum(1 for _ in self._problems))
        yield from self._company.gauges()


def leave_to_stay() -> None:
    """What is there now, modules for the most part, stays until the end: the collector need not walk through it again.

    A full collection takes some 60 ms otherwise, in the event loop (`python -m bench.console`).
    """
    gc.freeze()


def install_signals(node: Node) -> None:
    """Ctrl-C or a polite kill once: finish and stop. Twice: stop now."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, node.interrupt)
    loop.add_signal_handler(signal.SIGTERM, node.stop)
