"""The life of a hosted split: generations of plans, with workers and engines that are fakes and named so."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any, cast

import pytest

from meshnode import hosting
from meshnode.assembly import Links, SplitModel
from meshnode.core.placement import Refusal, SoloPlan
from meshnode.core.split import Candidate, Decision, SplitPlan, Stage
from meshnode.engine.commands import SplitOptions
from meshnode.engine.server import LlamaServer
from meshnode.errors import EngineCrashed, ModelDoesNotFit, WorkerLost
from meshnode.hosting import Hosting, HostingParts

HERE = "aa" * 32
NEAR, FAR = "bb" * 32, "cc" * 32
SOLO = SoloPlan(2048, 1, "f16", 0, (), (), 0)


def stage(node: str, layers: int = 4) -> Stage:
    return Stage(node, "CPU", 0, 2, layers, 1 << 20, 1 << 18, 1 << 16, 1 << 24, 0.01, 0.002)


def split_over(*nodes: str) -> SplitPlan:
    return SplitPlan(
        host=HERE,
        host_layers=2,
        host_bytes=1 << 20,
        local_devices=(),
        stages=tuple(stage(node) for node in nodes),
        context=2048,
        parallel=1,
        kv_type="f16",
        gpu_layers=4 * len(nodes) + 1,
        tensor_split=(4,) * (len(nodes) - 1) + (5,),
        output_on_host=True,
        predicted_tokens_per_s=5.0,
    )


def decided(plan: SplitPlan | SoloPlan | None) -> Decision:
    known = tuple(Candidate(node, node[:2], 0.001, 1 << 30, None, "worker", "") for node in (NEAR, FAR))
    match plan:
        case SplitPlan():
            return Decision(None, plan, known, None)
        case SoloPlan():
            return Decision((HERE, plan), None, known, None)
    return Decision(None, None, known, Refusal(2 << 30, 1 << 30, "no other member can take layers"))


class FakeAssembly:
    """Stands for leases and tunnels; what happens to the workers is told to it by the test."""

    refusing: set[str] = set()
    misers: set[str] = set()
    made: list[FakeAssembly] = []

    def __init__(self, plan: SplitPlan, lost: Callable[[str, str], None], leaving: Callable[[str], None]) -> None:
        self.plan, self.lost, self.leaving = plan, lost, leaving
        self.plan_id = bytes([len(self.made)]) * 16
        self.options = SplitOptions(("127.0.0.1:1",), "", push=True, output_on_host=True)
        self.closed = False

    @classmethod
    async def of(cls, plan: SplitPlan, model: SplitModel, links: Links, **named: Any) -> FakeAssembly:
        for name in plan.workers:
            if name in cls.refusing:
                raise WorkerLost("it refuses", node=name)
        made = cls(plan, named["lost"], named["leaving"])
        cls.made.append(made)
        return made

    async def close(self) -> None:
        self.closed = True

    def counters(self) -> list[dict[str, int]]:
        return []

    def stingy(self) -> str:
        return next((node for node in self.plan.workers if node in self.misers), "")


class FakeServer:
    """Stands for an engine."""

    stopped = False

    async def stop(self, grace_s: float) -> None:
        self.stopped = True


@dataclass
class Scene:
    """A hosting with everything around it, to be steered by a test."""

    plan: SplitPlan | SoloPlan | None = None
    without: list[frozenset[str]] = field(default_factory=list)
    states: list[tuple[str, str]] = field(default_factory=list)
    launched: list[object] = field(default_factory=list)
    servers: list[FakeServer] = field(default_factory=list)
    claims: list[bytes] = field(default_factory=list)
    disclaimed: list[bytes] = field(default_factory=list)
    quiet: bool = False
    looks: int = 0
    wait: bool = False
    crashes: int = 0
    choose: Callable[[frozenset[str]], SplitPlan | SoloPlan | None] | None = None
    hosting: Hosting = None  # type: ignore[assignment]
    news: asyncio.Event = field(default_factory=asyncio.Event)
    ready: asyncio.Event = field(default_factory=asyncio.Event)

    def make(self) -> Hosting:
        async def decide(
            current: SplitPlan | None, ended: SplitPlan | None, without: frozenset[str], alone: bool
        ) -> Decision:
            self.without.append(without)
            return decided(self.choose(without) if self.choose else self.plan)

        async def launch(plan: SplitPlan | SoloPlan, options: SplitOptions | None) -> LlamaServer:
            if self.crashes:
                self.crashes -= 1
                raise EngineCrashed("a worker went away")
            self.launched.append((plan, options))
            self.servers.append(FakeServer())
            return cast(LlamaServer, self.servers[-1])

        async def claim(sha256: bytes, stop: Callable[[str], None]) -> int:
            self.claims.append(sha256)
            return 1

        async def model() -> SplitModel:
            return SplitModel(name="m", sha256=b"s" * 32, size_bytes=1, manifest=b"", references=cast(Any, None))

        self.hosting = Hosting(
            HostingParts(
                name="m",
                model=model,
                links=Links(open_stream=cast(Any, None), rtt_s=lambda node: 0.001, rpc_version=1),
                decide=decide,
                launch=launch,
                claim=claim,
                disclaim=self.disclaimed.append,
                told=lambda sha256, plan, plan_id, serving: None,
                quiet=self._is_quiet,
                news=self.news,
                state=self._state,
                tell=lambda label, words: None,
                half=False,
                patched=True,
                wait=self.wait,
                settle_s=0.0,
                here=HERE,
                refusal=ModelDoesNotFit("0.4 GiB short"),
            )
        )
        return self.hosting

    def _state(self, state: str, detail: str) -> None:
        self.states.append((state, detail))
        if state == "ready":
            self.ready.set()

    def _is_quiet(self) -> bool:
        self.looks += 1
        return self.quiet

    async def until_ready(self) -> None:
        """The next time that an engine answers."""
        async with asyncio.timeout(5):
            await self.ready.wait()
        self.ready.clear()


@pytest.fixture(autouse=True)
def fake_assemblies(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeAssembly.made, FakeAssembly.refusing, FakeAssembly.misers = [], set(), set()
    monkeypatch.setattr(hosting, "Assembly", FakeAssembly)
    monkeypatch.setattr(hosting, "REVIEW_S", 0.01)


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(10):
            await test()

    asyncio.run(bounded())


def test_a_plan_comes_up_with_an_engine_and_goes_down_in_order() -> None:
    async def test() -> None:
        scene = Scene(plan=split_over(NEAR, FAR))
        host = scene.make()
        await host.start()
        await scene.until_ready()
        assert scene.claims == [b"s" * 32] and len(FakeAssembly.made) == 1
        assert scene.launched == [(scene.plan, FakeAssembly.made[0].options)]
        assert host.facts()["generation"] == 1 and host.plan == scene.plan
        await host.stop()
        assert scene.servers[0].stopped and FakeAssembly.made[0].closed and scene.disclaimed == [b"s" * 32]

    run(test)


def test_a_lost_worker_is_left_out_of_the_next_plan() -> None:
    async def test() -> None:
        scene = Scene(choose=lambda without: split_over(NEAR) if FAR in without else split_over(FAR))
        host = scene.make()
        await host.start()
        await scene.until_ready()
        FakeAssembly.made[0].lost(FAR, "nothing is heard of it")
        await scene.until_ready()
        assert [made.plan.workers for made in FakeAssembly.made] == [(FAR,), (NEAR,)]
        assert FakeAssembly.made[0].closed and scene.servers[0].stopped and not scene.servers[1].stopped
        assert ("restarting", f"{FAR[:10]}: nothing is heard of it") in scene.states
        await host.stop()

    run(test)


def test_those_that_are_lost_after_the_first_are_not_blamed() -> None:
    async def test() -> None:
        scene = Scene(choose=lambda without: split_over(NEAR, FAR) if not without else split_over(NEAR))
        host = scene.make()
        await host.start()
        await scene.until_ready()
        FakeAssembly.made[0].lost(FAR, "its rpc-server has ended")
        FakeAssembly.made[0].lost(NEAR, "the connection to the worker of stage 2 is lost")
        await scene.until_ready()
        assert scene.without[-1] == {FAR} and FakeAssembly.made[1].plan.workers == (NEAR,)
        await host.stop()

    run(test)


def test_where_there_is_no_other_a_worker_that_failed_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosting, "RECENT_S", 0.1)
    monkeypatch.setattr(hosting, "RETRY_S", (0.0, 0.02))

    async def test() -> None:
        scene = Scene(choose=lambda without: None if without else split_over(NEAR), wait=True)
        host = scene.make()
        await host.start()
        await scene.until_ready()
        FakeAssembly.made[0].lost(NEAR, "its rpc-server has ended")
        await scene.until_ready()
        assert [made.plan.workers for made in FakeAssembly.made] == [(NEAR,), (NEAR,)]
        assert {NEAR} in scene.without and scene.without[-1] == set()
        await host.stop()

    run(test)


def test_a_worker_that_refuses_is_left_out_at_once() -> None:
    async def test() -> None:
        FakeAssembly.refusing = {FAR}
        scene = Scene(choose=lambda without: split_over(NEAR) if FAR in without else split_over(FAR))
        host = scene.make()
        await host.start()
        assert [made.plan.workers for made in FakeAssembly.made] == [(NEAR,)]
        await host.stop()

    run(test)


def test_a_worker_that_does_not_give_what_it_granted_is_left_out() -> None:
    async def test() -> None:
        FakeAssembly.misers = {FAR}
        scene = Scene(choose=lambda without: split_over(NEAR) if FAR in without else split_over(FAR), crashes=1)
        host = scene.make()
        await host.start()
        assert [made.plan.workers for made in FakeAssembly.made] == [(FAR,), (NEAR,)]
        await host.stop()

    run(test)


def test_bad_workers_do_not_end_a_model_that_waits_for_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other comes and refuses, more often than a start is tried otherwise."""
    monkeypatch.setattr(hosting, "RETRY_S", (0.0, 0.01))

    async def test() -> None:
        bad = [f"{number:02x}" * 32 for number in range(2 * hosting.FIRST_TRIES)]
        FakeAssembly.refusing = set(bad)

        def choose(without: frozenset[str]) -> SplitPlan | None:
            left = [node for node in bad if node not in without]
            return split_over(left[0]) if left else None

        scene = Scene(choose=choose, wait=True)
        host = scene.make()
        start = asyncio.create_task(host.start())
        await host.waiting()
        assert not start.done() and scene.without[-1] == frozenset(bad)
        scene.choose, scene.plan = None, split_over(NEAR)
        scene.news.set()
        await start
        assert FakeAssembly.made[-1].plan.workers == (NEAR,)
        await host.stop()

    run(test)


def test_while_the_only_workers_refuse_the_model_is_said_to_wait_for_machines() -> None:
    async def test() -> None:
        scene = Scene(plan=split_over(FAR), wait=True)
        host = scene.make()
        await host.start()
        await scene.until_ready()
        FakeAssembly.refusing = {FAR}
        FakeAssembly.made[0].lost(FAR, "nothing is heard of it")
        while not scene.states[-1][1].startswith("waits for machines: "):
            await asyncio.sleep(0.005)
        assert scene.states[-1][0] == "restarting"
        await host.stop()

    run(test)


def test_one_machine_is_enough_again_when_its_workers_are_gone() -> None:
    async def test() -> None:
        scene = Scene(choose=lambda without: SOLO if NEAR in without else split_over(NEAR))
        host = scene.make()
        await host.start()
        await scene.until_ready()
        FakeAssembly.made[0].leaving(NEAR)
        await scene.until_ready()
        assert scene.launched[1] == (SOLO, None) and host.plan == SOLO
        await host.stop()

    run(test)


def test_an_engine_that_ends_is_started_anew() -> None:
    async def test() -> None:
        scene = Scene(plan=split_over(NEAR))
        host = scene.make()
        await host.start()
        await scene.until_ready()
        host.engine_ended("signal 6")
        await scene.until_ready()
        assert len(scene.launched) == 2 and FakeAssembly.made[0].closed
        await host.stop()

    run(test)


def test_a_better_plan_waits_for_a_quiet_moment() -> None:
    async def test() -> None:
        scene = Scene(plan=split_over(NEAR))
        host = scene.make()
        await host.start()
        await scene.until_ready()
        scene.plan = split_over(FAR)
        seen, asked = scene.looks, len(scene.without)
        while scene.looks < seen + 3:
            await asyncio.sleep(0.005)
        assert len(FakeAssembly.made) == 1 and len(scene.without) == asked
        scene.quiet = True
        await scene.until_ready()
        assert FakeAssembly.made[1].plan.workers == (FAR,)
        await host.stop()

    run(test)


def test_a_plan_that_differs_in_words_alone_restarts_nothing() -> None:
    async def test() -> None:
        scene = Scene(plan=split_over(NEAR), quiet=True)
        host = scene.make()
        await host.start()
        await scene.until_ready()
        scene.plan = replace(split_over(NEAR), predicted_tokens_per_s=6.0, reason="other words")
        asked = len(scene.without)
        while len(scene.without) < asked + 3:
            await asyncio.sleep(0.01)
        assert len(FakeAssembly.made) == 1
        await host.stop()

    run(test)


def test_where_nothing_fits_the_start_fails_in_words() -> None:
    async def test() -> None:
        scene = Scene(plan=None)
        host = scene.make()
        with pytest.raises(ModelDoesNotFit, match="no other member can take layers"):
            await host.start()

    run(test)


def test_where_there_is_no_other_machine_the_start_says_what_this_one_lacks() -> None:
    async def test() -> None:
        host = Scene(plan=None).make()
        parts = host._parts

        async def nobody(*asked: object) -> Decision:
            return replace(decided(None), candidates=decided(None).candidates[:1])

        host._parts = replace(parts, decide=nobody)
        with pytest.raises(ModelDoesNotFit, match="0.4 GiB short"):
            await host.start()

    run(test)


def test_a_model_that_may_wait_comes_up_when_machines_come() -> None:
    async def test() -> None:
        scene = Scene(plan=None, wait=True)
        host = scene.make()
        start = asyncio.create_task(host.start())
        await host.waiting()
        assert not start.done() and "waits for machines" in scene.states[-1][1]
        scene.plan = split_over(NEAR)
        scene.news.set()
        await start
        assert len(scene.launched) == 1
        await host.stop()

    run(test)


def test_an_engine_that_never_comes_up_ends_the_start() -> None:
    async def test() -> None:
        scene = Scene(plan=split_over(NEAR), crashes=99)
        host = scene.make()
        with pytest.raises(EngineCrashed):
            await host.start()
        assert all(made.closed for made in FakeAssembly.made) and len(FakeAssembly.made) == hosting.FIRST_TRIES

    run(test)


def test_a_worker_that_is_lost_while_the_engine_loads_ends_the_load() -> None:
    async def test() -> None:
        scene = Scene(choose=lambda without: split_over(NEAR) if FAR in without else split_over(FAR))
        host = scene.make()
        loading: asyncio.Future[LlamaServer] = asyncio.get_running_loop().create_future()
        parts = host._parts

        async def slow_launch(plan: SplitPlan | SoloPlan, options: SplitOptions | None) -> LlamaServer:
            if isinstance(plan, SplitPlan) and plan.workers == (FAR,):
                FakeAssembly.made[0].lost(FAR, "gone")
                return await loading
            return await parts.launch(plan, options)

        host._parts = replace(parts, launch=slow_launch)
        await host.start()
        assert loading.cancelled() and FakeAssembly.made[-1].plan.workers == (NEAR,)
        await host.stop()

    run(test)
