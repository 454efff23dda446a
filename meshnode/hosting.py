"""A model that this node hosts over several machines, for as long as it is served: planned, in force, planned anew.

Theory of operation. One task brings up one *generation* after another. A generation is a plan in force: leases and
tunnels (assembly.py) and an engine on top; or an engine alone, where one machine has become enough. It ends when a
worker is lost, when the engine ends, when a worker asks to be replaced, or when the planner knows something better
and nobody waits for an answer. Then the engine goes first, at once: what it was answering is continued by the
gateway as soon as the next generation is ready. A worker that failed is left out for a while. When no plan can be
made the model waits for machines; it is given up only by whoever unloads it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from meshnode.assembly import Assembly, Links, SplitModel
from meshnode.core.placement import SoloPlan
from meshnode.core.split import Decision, SplitPlan, same
from meshnode.engine.commands import SplitOptions
from meshnode.engine.server import LlamaServer
from meshnode.errors import EngineError, MeshnodeError, ModelDoesNotFit, WorkerLost
from meshnode.splitting import describe_split
from meshnode.telemetry import LOG

Result = TypeVar("Result")
Plan = SoloPlan | SplitPlan
State = Literal["loading", "ready", "restarting"]

REVIEW_S = 10.0
"""How often a plan in force is compared with what could be."""
AVOID_S = 60.0
"""How long a worker that failed is left out, as long as there are others."""
RECENT_S = 2.0
"""Where there are no others it is asked again after this time."""
FIRST_TRIES = 3
RETRY_S = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0)
"""Pauses before the next try after failures in a row; the last one repeats."""
ELECTION_S = 4.0
"""A node that nobody contests hosts after two seconds (core/election)."""
GRACE_S = 0.0
"""An engine whose worker is gone has nothing to finish."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostingParts:
    """What a `Hosting` is given.

    `decide(current, ended, without, alone)` plans: beside the plan in force, or after one that has just ended; with
    `alone`, one machine may do where a split was asked for.
    `launch(plan, options)` starts an engine and returns when it answers; without options it is an engine of its own.
    `claim(sha256, stop)` waits until this node is the mesh's host of the model, and gives the term; `stop` is called
    when another one is. `disclaim` ends that, `told(sha256, plan, id, serving)` says how far it is. `quiet` says
    whether nobody waits for an answer. `news` is set when the mesh has changed. `wait` makes a model that fits nowhere
    wait for machines; otherwise it does so for `settle_s`, for members that have yet to say what they have.
    `refusal` is why this machine alone does not serve it: what is said where there is no other.
    """

    name: str
    model: Callable[[], Awaitable[SplitModel]]
    links: Links
    decide: Callable[[SplitPlan | None, SplitPlan | None, frozenset[str], bool], Awaitable[Decision]]
    launch: Callable[[Plan, SplitOptions | None], Awaitable[LlamaServer]]
    claim: Callable[[bytes, Callable[[str], None]], Awaitable[int]]
    disclaim: Callable[[bytes], None]
    told: Callable[[bytes, SplitPlan, bytes, bool], None]
    quiet: Callable[[], bool]
    news: asyncio.Event
    state: Callable[[State, str], None]
    tell: Callable[[str, str], None]
    half: bool
    patched: bool
    wait: bool
    settle_s: float
    here: str
    refusal: ModelDoesNotFit


class Hosting:
    """See the module. `start` once, `stop` once."""

    def __init__(self, parts: HostingParts) -> None:
        self._parts = parts
        self._assembly: Assembly | None = None
        self._server: LlamaServer | None = None
        self._plan: Plan | None = None
        self._model: SplitModel | None = None
        self._avoided: dict[str, float] = {}
        self._over: asyncio.Future[str] | None = None
        self._task: asyncio.Task[None] | None = None
        self._generation = 0
        self._held = False
        self._waiting = asyncio.Event()

    # --- life -----------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Return when the first generation answers. Raises ModelDoesNotFit where nothing can be planned, unless it is
        to wait; else what the last of some tries raised.
        """
        first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._run(first), name=f"host {self._parts.name}")
        try:
            await asyncio.shield(first)
        except BaseException:
            await self.stop()
            raise

    async def stop(self, grace_s: float = 5.0) -> None:
        """End the engine, the tunnels and the leases."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, MeshnodeError):
                await task
        await self._end_generation(grace_s)
        if self._model is not None:
            self._parts.disclaim(self._model.sha256)

    def hold(self) -> None:
        """Plan nothing anew any more: the node is stopping, and its links are about to end."""
        self._held = True

    def engine_ended(self, detail: str) -> None:
        """The engine of this generation is gone. Of one that is being started its start tells."""
        if self._server is not None:
            self._end(f"the engine ended: {detail}")

    async def waiting(self) -> None:
        """Return when the model waits for machines."""
        await self._waiting.wait()

    # --- generations ----------------------------------------------------------------------------------------

    async def _run(self, first: asyncio.Future[None]) -> None:
        failures, began = 0, time.monotonic()
        while True:
            try:
                await self._begin_generation()
            except MeshnodeError as error:
                await self._end_generation(GRACE_S)
                failures = 0 if isinstance(error, ModelDoesNotFit) else failures + 1
                LOG.info("a plan for %s failed: %s", self._parts.name, error.message)
                settling = isinstance(error, ModelDoesNotFit) and time.monotonic() - began < self._parts.settle_s
                if not first.done() and not settling and not self._may_wait(error, failures):
                    first.set_exception(error)
                    return
                await self._pause(error, failures)
                continue
            except Exception as error:
                await self._end_generation(GRACE_S)
                if first.done():
                    raise
                first.set_exception(error)
                return
            failures = 0
            if not first.done():
                first.set_result(None)
            self._parts.state("ready", "")
            reason = await self._until_over()
            LOG.info("the plan for %s ends: %s", self._parts.name, reason)
            self._parts.state("restarting", reason)
            await self._end_generation(GRACE_S)
            if self._held:
                return

    def _may_wait(self, error: MeshnodeError, failures: int) -> bool:
        if isinstance(error, ModelDoesNotFit):
            return self._parts.wait
        if isinstance(error, WorkerLost) and self._parts.wait:
            # It is left out from now on; there may be others, now or later.
            return True
        return failures < FIRST_TRIES and isinstance(error, WorkerLost | EngineError)

    async def _pause(self, error: MeshnodeError, failures: int) -> None:
        """Before the next try: for a while, or until the mesh has changed."""
        parts = self._parts
        if isinstance(error, ModelDoesNotFit):
            parts.state("restarting" if self._generation else "loading", f"waits for machines: {error.detail}")
            if not self._waiting.is_set() and parts.wait:
                parts.tell("waiting", f"{parts.name} waits for machines: {error.detail}")
                self._waiting.set()
            parts.news.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RETRY_S[-1]):
                    await parts.news.wait()
            return
        if isinstance(error, WorkerLost) and self._generation:
            # The planner still counts on machines that do not answer: to callers that is the same wait.
            parts.state("restarting", f"waits for machines: {error.detail}")
        await asyncio.sleep(RETRY_S[min(failures, len(RETRY_S)) - 1])

    async def _begin_generation(self) -> None:
        decision, plan = await self._decide()
        if isinstance(plan, SplitPlan):
            term, waited = await self._claim()
            if waited:
                decision, plan = await self._decide()
        self._over = asyncio.get_running_loop().create_future()
        options: SplitOptions | None = None
        if isinstance(plan, SplitPlan):
            names = {candidate.node: candidate.name for candidate in decision.candidates}
            self._parts.tell("plan", describe_split(self._parts.name, plan, names))
            options = await self._unless_lost(self._assemble(plan, term))
        self._plan = plan
        try:
            await self._unless_lost(self._launch(plan, options))
        except MeshnodeError as error:
            if self._assembly is not None and (node := self._assembly.stingy()):
                self._avoid(node)
                raise WorkerLost("it did not give the memory that it had granted", node=node) from error
            raise
        self._generation += 1
        if self._assembly is not None and self._model is not None and isinstance(plan, SplitPlan):
            self._parts.told(self._model.sha256, plan, self._assembly.plan_id, True)

    async def _claim(self) -> tuple[int, bool]:
        """Wait until this node may host the model: the term, and whether that took long."""
        parts = self._parts
        if self._model is None:
            self._model = await parts.model()
        claim = asyncio.ensure_future(parts.claim(self._model.sha256, self._end))
        try:
            done, _ = await asyncio.wait({claim}, timeout=ELECTION_S)
            if not done:
                parts.state("restarting" if self._generation else "loading", "another node of the mesh hosts it")
                self._waiting.set()
            return await claim, not done
        finally:
            claim.cancel()

    async def _assemble(self, plan: SplitPlan, term: int) -> SplitOptions:
        parts, model = self._parts, self._model
        assert model is not None
        try:
            self._assembly = await Assembly.of(
                plan,
                model,
                parts.links,
                term=term,
                half=parts.half,
                patched=parts.patched,
                lost=self._lost,
                leaving=self._wants_to_leave,
                progress=lambda words: parts.state("loading", words),
            )
        except WorkerLost as error:
            self._avoid(error.node)
            raise
        parts.told(model.sha256, plan, self._assembly.plan_id, False)
        return self._assembly.options

    async def _launch(self, plan: Plan, options: SplitOptions | None) -> None:
        """Start the engine of this generation."""
        self._server = await self._parts.launch(plan, options)

    async def _unless_lost(self, starting: Awaitable[Result]) -> Result:
        """What is being started. Raises WorkerLost as soon as its workers cannot serve it any more."""
        launch, over = asyncio.ensure_future(starting), self._over
        assert over is not None
        try:
            both: set[asyncio.Future[Any]] = {launch, over}
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if over.done():
                raise WorkerLost(over.result())
            return launch.result()
        finally:
            launch.cancel()
            await asyncio.gather(launch, return_exceptions=True)

    async def _decide(self) -> tuple[Decision, Plan]:
        """What to do now. Workers that failed are asked again rather than nobody, and a model that has been served goes
        on alone rather than not at all. Raises ModelDoesNotFit.
        """
        ended = self._plan if isinstance(self._plan, SplitPlan) else None
        avoided, failed = self._without(), self._without(RECENT_S)
        ways = [(avoided, False)] + ([(failed, False)] if failed != avoided else [])
        ways += [(avoided, True)] if self._generation else []
        for without, alone in ways[:-1]:
            decision = await self._parts.decide(None, ended, without, alone)
            with contextlib.suppress(ModelDoesNotFit):
                return decision, self._chosen(decision)
        without, alone = ways[-1]
        decision = await self._parts.decide(None, ended, without, alone)
        return decision, self._chosen(decision)

    def _chosen(self, decision: Decision) -> Plan:
        """The plan that this node can carry out. Raises ModelDoesNotFit."""
        if decision.split is not None and decision.split.host == self._parts.here:
            return decision.split
        if decision.solo is not None and decision.solo[0] == self._parts.here:
            return decision.solo[1]
        if len(decision.candidates) < 2 and not self._parts.wait:
            raise self._parts.refusal
        refusal = decision.refusal
        words = refusal.reason if refusal else "no plan with this node as its host"
        raise ModelDoesNotFit(
            words, fix="add machines: `meshnode invite` prints a token for them; meshnode plan says who is missing"
        )

    async def _end_generation(self, grace_s: float) -> None:
        server, self._server = self._server, None
        assembly, self._assembly = self._assembly, None
        self._over = None
        if server is not None:
            await server.stop(grace_s)
        if assembly is not None:
            await assembly.close()

    # --- while a plan is in force ---------------------------------------------------------------------------

    async def _until_over(self) -> str:
        """Wait until this generation must end; why."""
        over = self._over
        assert over is not None
        before = ""
        while True:
            await asyncio.wait({over}, timeout=REVIEW_S)
            if over.done():
                return over.result()
            # Twice in a row: news of a delay that changes reach this node from one member sooner than from another.
            better = await self._better()
            if better and better == before:
                return better
            before = better

    async def _better(self) -> str:
        """What the planner would do now, if that is something else and this is a good moment; else nothing."""
        plan = self._plan
        if not self._parts.quiet():
            return ""
        if isinstance(plan, SoloPlan):
            decision = await self._parts.decide(None, None, self._without(), False)
            wanted = decision.split is not None and decision.split.host == self._parts.here
            return "other machines are there again" if wanted else ""
        assert plan is not None
        decision = await self._parts.decide(plan, None, self._without(), False)
        if decision.split is not None and decision.split.host == self._parts.here:
            return "" if same(decision.split, plan) else "a better plan is possible"
        if decision.solo is not None and decision.solo[0] == self._parts.here:
            return "this machine can hold it alone now"
        return ""

    def _without(self, since_s: float = AVOID_S) -> frozenset[str]:
        """The workers that have failed within this time."""
        now = time.monotonic()
        self._avoided = {node: at for node, at in self._avoided.items() if now - at < AVOID_S}
        return frozenset(node for node, at in self._avoided.items() if now - at < since_s)

    def _avoid(self, node: str) -> None:
        self._avoided[node] = time.monotonic()

    def _lost(self, node: str, words: str) -> None:
        # Those that are lost after the first were waiting for it.
        if self._over is not None and not self._over.done():
            self._avoid(node)
            self._end(f"{node[:10]}: {words}")

    def _wants_to_leave(self, node: str) -> None:
        self._avoid(node)
        self._end(f"{node[:10]} leaves")

    def _end(self, reason: str) -> None:
        if self._over is not None and not self._over.done():
            self._over.set_result(reason)

    # --- views ----------------------------------------------------------------------------------------------

    @property
    def plan(self) -> Plan | None:
        """What is in force, or was last."""
        return self._plan

    def facts(self) -> dict[str, Any]:
        """For /api/status: how often it was planned, who is left out, and what went through each tunnel."""
        assembly = self._assembly
        return {
            "generation": self._generation,
            "plan": assembly.plan_id.hex() if assembly else None,
            "avoided": sorted(self._without()),
            "tunnels": assembly.counters() if assembly else [],
        }
