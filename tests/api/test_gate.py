import asyncio

import pytest

from meshnode.api.gate import Gates
from meshnode.core.fair_queue import QueueSnapshot
from meshnode.core.guests import Stranger
from meshnode.errors import PublicPaused, StrangerLimit, TooManyRequests
from tests.api import running
from tests.api.fake_llama import FakeLlamaServer, Received, endless, plain, streaming
from tests.api.raw_http import Connection, Reply, ask, request
from tests.api.running import CHAT, DONE, HELLO, LAST, STREAM, TOKEN, Gateway, served, until

pytestmark = pytest.mark.anyio


class Work:
    """Holds a slot from `begun` until `release`."""

    def __init__(
        self,
        gates: Gates,
        order: list[str],
        name: str,
        *,
        caller: str = "",
        slots: int = 1,
        ahead: bool = False,
        guest: Stranger | None = None,
    ) -> None:
        self.release = asyncio.Event()
        self.begun = asyncio.Event()
        self.task = asyncio.create_task(self._run(gates, order, name, caller or name, slots, ahead, guest))

    async def _run(
        self,
        gates: Gates,
        order: list[str],
        name: str,
        caller: str,
        slots: int,
        ahead: bool,
        guest: Stranger | None,
    ) -> None:
        async with gates.slot("m", slots=slots, caller=caller, ahead=ahead, guest=guest):
            order.append(name)
            self.begun.set()
            await self.release.wait()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_turns_between_callers() -> None:
    gates, order = Gates(capacity=10, timeout_s=5), []
    work = [Work(gates, order, name, caller=name[0]) for name in ("a1", "a2", "a3", "b1", "c1", "b2")]
    await settle()
    assert gates.snapshot("m") == QueueSnapshot(1, 1, 5)
    for item in work:
        item.release.set()
    await asyncio.gather(*(item.task for item in work))
    assert order == ["a1", "a2", "b1", "c1", "a3", "b2"]
    assert gates.snapshot("m") == QueueSnapshot(1, 0, 0)


async def test_the_rest_of_an_answer_goes_ahead_of_all_that_wait() -> None:
    gates, order = Gates(capacity=4, timeout_s=5), []
    names = ("a1", "b1", "c1", "rest1", "rest2", "d1")
    work = {name: Work(gates, order, name, ahead=name.startswith("rest")) for name in names}
    await settle()
    assert gates.snapshot("m") == QueueSnapshot(1, 1, 5)
    for item in work.values():
        item.release.set()
    await asyncio.gather(*(item.task for item in work.values()))
    assert order == ["a1", "rest1", "rest2", "b1", "c1", "d1"]
    assert gates.snapshot("m") == QueueSnapshot(1, 0, 0)
    gates.forget("m")
    assert gates.snapshot("m") == QueueSnapshot(0, 0, 0)


async def test_who_goes_ahead_is_bounded_and_may_leave_like_the_others() -> None:
    gates, order = Gates(capacity=2, timeout_s=5), []
    holder = Work(gates, order, "a")
    waiter = Work(gates, order, "b")
    await settle()
    ahead = [Work(gates, order, f"rest{number}", ahead=True) for number in range(3)]
    await settle()
    with pytest.raises(TooManyRequests):
        await ahead.pop().task
    ahead[0].task.cancel()
    await settle()
    assert gates.snapshot("m") == QueueSnapshot(1, 1, 2)
    holder.release.set()
    await settle()
    ahead[1].task.cancel()  # it holds the slot by now, or is about to
    await asyncio.wait({ahead[1].task})
    await waiter.begun.wait()
    waiter.release.set()
    await waiter.task
    assert gates.snapshot("m") == QueueSnapshot(1, 0, 0)
    free = Work(gates, order, "rest", ahead=True)
    await free.begun.wait()  # with a free slot nobody waits
    free.release.set()
    await free.task
    assert gates.snapshot("m") == QueueSnapshot(1, 0, 0)


async def test_a_full_queue_refuses_at_once_and_waiting_ends() -> None:
    gates, order = Gates(capacity=1, timeout_s=0.05), []
    holder = Work(gates, order, "a")
    waiter = Work(gates, order, "b")
    await settle()
    with pytest.raises(TooManyRequests, match="1 requests run and 1 wait") as caught:
        async with gates.slot("m", slots=1, caller="c"):
            pass
    assert caught.value.retry_after_s == 5
    with pytest.raises(TooManyRequests, match="no slot came free"):
        await waiter.task
    assert gates.snapshot("m") == QueueSnapshot(1, 1, 0)
    holder.release.set()
    await holder.task
    assert order == ["a"]


async def test_leaving_gives_the_place_up_whether_waiting_running_or_just_admitted() -> None:
    gates, order = Gates(capacity=10, timeout_s=5), []
    first, second, third = (Work(gates, order, name) for name in "abc")
    await settle()
    second.task.cancel()
    await settle()
    assert gates.snapshot("m") == QueueSnapshot(1, 1, 1)
    # In one step: `first` ends, which admits `third`, and `third` is cancelled before it runs.
    first.release.set()
    await asyncio.sleep(0)
    third.task.cancel()
    await asyncio.gather(first.task, second.task, third.task, return_exceptions=True)
    assert gates.snapshot("m") == QueueSnapshot(1, 0, 0)
    async with gates.slot("m", slots=1, caller="d"):
        assert gates.snapshot("m").busy == 1


async def test_an_error_inside_frees_the_slot() -> None:
    gates = Gates(capacity=0, timeout_s=5)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            async with gates.slot("m", slots=1, caller="a"):
                raise ZeroDivisionError
    assert gates.snapshot("m").busy == 0


async def test_more_slots_admit_those_who_wait_and_fewer_let_the_running_ones_end() -> None:
    gates, order = Gates(capacity=10, timeout_s=5), []
    work = [Work(gates, order, name) for name in "abc"]
    await settle()
    work.append(Work(gates, order, "d", slots=3))
    await settle()
    assert order == ["a", "b", "c"]
    work.append(Work(gates, order, "e", slots=1))
    await settle()
    assert gates.snapshot("m") == QueueSnapshot(1, 3, 2)
    for item in work:
        item.release.set()
    await asyncio.gather(*(item.task for item in work))
    assert order == ["a", "b", "c", "d", "e"]


async def test_models_do_not_share_slots_and_are_forgotten_when_nobody_is_there() -> None:
    gates = Gates(capacity=0, timeout_s=5)
    async with gates.slot("m", slots=1, caller="a"), gates.slot("n", slots=1, caller="a"):
        gates.forget("m")
        assert gates.snapshot("m").busy == 1
    gates.forget("m")
    gates.forget("never seen")
    assert gates.snapshot("m") == QueueSnapshot(0, 0, 0)
    assert gates.snapshot("n") == QueueSnapshot(1, 0, 0)


# --- strangers ------------------------------------------------------------------------------------------------


def guest(gates: Gates, order: list[str], name: str, slots: int = 1, *, ahead: bool = False) -> Work:
    return Work(gates, order, name, slots=slots, ahead=ahead, guest=Stranger(name[:1].encode(), name[:1]))


async def test_strangers_come_after_all_others_however_long_they_have_waited() -> None:
    gates, order = Gates(capacity=10, timeout_s=5), []
    gates.serve_guests(slots=4, capacity=10)
    work = [guest(gates, order, name, ahead=name == "y1") for name in ("x1", "x2", "y1")]
    await settle()
    work += [Work(gates, order, name) for name in ("a1", "b1")]
    work.append(Work(gates, order, "rest", ahead=True))
    await settle()
    assert (gates.guests(), gates.snapshot("m")) == (QueueSnapshot(4, 1, 2), QueueSnapshot(1, 1, 3))
    for item in work:
        item.release.set()
    await asyncio.gather(*(item.task for item in work))
    assert order == ["x1", "rest", "a1", "b1", "x2", "y1"]
    assert (gates.guests(), gates.snapshot("m")) == (QueueSnapshot(4, 0, 0), QueueSnapshot(1, 0, 0))


async def test_a_stranger_leaves_without_a_trace_whether_waiting_running_or_just_admitted() -> None:
    gates, order = Gates(capacity=10, timeout_s=5), []
    gates.serve_guests(slots=1, capacity=10)
    first, second, third, fourth = (guest(gates, order, name) for name in "abcd")
    await settle()
    second.task.cancel()
    await settle()
    assert gates.guests() == QueueSnapshot(1, 1, 2)
    # In one step: `first` ends, which admits `third`, and `third` is cancelled before it runs.
    first.release.set()
    await asyncio.sleep(0)
    third.task.cancel()
    await fourth.begun.wait()
    fourth.task.cancel()
    await asyncio.gather(*(work.task for work in (first, second, third, fourth)), return_exceptions=True)
    assert (gates.guests(), gates.snapshot("m")) == (QueueSnapshot(1, 0, 0), QueueSnapshot(1, 0, 0))
    gates.forget("m")
    assert gates.snapshot("m") == QueueSnapshot(0, 0, 0)


async def test_strangers_that_wait_are_sent_away_with_the_reason_and_the_others_stay() -> None:
    gates, order = Gates(capacity=10, timeout_s=5), []
    gates.serve_guests(slots=1, capacity=10)
    runs, waits = guest(gates, order, "a"), guest(gates, order, "b")
    await settle()
    gone = guest(gates, order, "c")
    await settle()
    gone.task.cancel()  # and dismissed in the same moment
    gates.dismiss_guests(PublicPaused("now"))
    with pytest.raises(PublicPaused, match="now"):
        await waits.task
    assert gates.guests() == QueueSnapshot(1, 1, 0)
    runs.release.set()
    await asyncio.wait({runs.task, gone.task})
    assert (gates.guests(), gates.snapshot("m")) == (QueueSnapshot(1, 0, 0), QueueSnapshot(1, 0, 0))


async def test_strangers_wait_in_a_line_of_their_own_that_is_bounded() -> None:
    gates, order = Gates(capacity=0, timeout_s=0.05), []
    with pytest.raises(StrangerLimit, match="as many strangers"):
        await guest(gates, order, "a").task  # until it is said otherwise, nobody is served
    gates.serve_guests(slots=1, capacity=1)
    runs, waits = guest(gates, order, "a"), guest(gates, order, "b")
    await settle()
    gates.forget("m")
    with pytest.raises(StrangerLimit):
        await guest(gates, order, "c").task
    with pytest.raises(StrangerLimit, match="no slot came free"):
        await waits.task
    runs.release.set()
    await runs.task
    assert gates.guests() == QueueSnapshot(1, 0, 0)


async def test_more_slots_let_strangers_in() -> None:
    gates, order = Gates(capacity=9, timeout_s=5), []
    gates.serve_guests(slots=1, capacity=9)
    work = [guest(gates, order, name, slots=4) for name in "abcd"]
    await settle()
    assert order == ["a"]
    gates.serve_guests(slots=9, capacity=9)
    await settle()
    assert order == ["a", "b", "c"]  # the last slot is for those who are nearer
    work.append(Work(gates, order, "own", slots=6))
    await settle()
    assert sorted(order) == ["a", "b", "c", "d", "own"]
    for item in work:
        item.release.set()
    await asyncio.gather(*(item.task for item in work))


# --- in front of an engine -------------------------------------------------------------------------------------


async def test_llama_server_never_gets_more_requests_than_it_has_slots(llama: FakeLlamaServer) -> None:
    at_once = most = 0

    async def counted(received: Received) -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await received.head()
        await received.chunk(TOKEN)
        at_once -= 1  # before the end is sent: from then on the gateway may send the next
        await received.chunk(LAST + DONE)
        await received.end()

    llama.script = counted
    async with running.gateway(served(llama, slots=2), capacity=100) as gateway:
        replies = await asyncio.gather(*(ask(gateway.port, CHAT, HELLO) for _ in range(30)))
        assert {reply.status for reply in replies} == {200}
    assert most <= 2


async def test_callers_take_turns(gateway: Gateway, llama: FakeLlamaServer) -> None:
    release = asyncio.Event()

    async def waits(received: Received) -> None:
        await release.wait()
        await streaming([TOKEN, LAST, DONE])(received)

    llama.script = waits
    asked: list[asyncio.Task[Reply]] = []
    for user, key in (("first", "a"), ("a1", "a"), ("a2", "a"), ("a3", "a"), ("b1", "b"), ("c1", "c")):
        before = gateway.gates.snapshot("demo")
        asked.append(
            asyncio.create_task(ask(gateway.port, CHAT, {**HELLO, "user": user}, authorization=f"Bearer {key}"))
        )
        await until(lambda before=before: gateway.gates.snapshot("demo") != before)
    release.set()
    await asyncio.gather(*asked)
    assert [received.json["user"] for received in llama.requests] == ["first", "a1", "b1", "c1", "a2", "a3"]


async def test_a_full_queue_is_429_at_once(llama: FakeLlamaServer) -> None:
    llama.script = endless()
    async with (
        running.gateway(served(llama), capacity=1) as gateway,
        await Connection.open(gateway.port) as one,
        await Connection.open(gateway.port) as two,
    ):
        await one.send(request(CHAT, STREAM))
        await one.head()
        await two.send(request(CHAT, STREAM))
        await until(lambda: gateway.gates.snapshot("demo").waiting == 1)
        begin = asyncio.get_running_loop().time()
        for path in (CHAT, "/v1/messages"):
            reply = await ask(gateway.port, path, HELLO)
            assert (reply.status, reply.error["type"], reply.headers["retry-after"]) == (429, "rate_limit_error", "5")
        assert asyncio.get_running_loop().time() - begin < 0.2
        # What takes no slot is answered all the same.
        llama.script = plain(200, b'{"input_tokens":1}')
        assert (await ask(gateway.port, "/v1/messages/count_tokens", HELLO)).status == 200


async def test_a_request_that_waited_through_a_restart_finds_the_new_address(llama: FakeLlamaServer) -> None:
    llama.script = endless()
    async with (
        FakeLlamaServer.running() as second,
        running.gateway(served(llama)) as gateway,
        await Connection.open(gateway.port) as waiting,
    ):
        async with await Connection.open(gateway.port) as one:
            await one.send(request(CHAT, STREAM))
            await one.head()
            await waiting.send(request(CHAT, STREAM))
            await until(lambda: gateway.gates.snapshot("demo").waiting == 1)
            second.script = endless()
            gateway.models[:] = [served(second)]
        assert (await waiting.head()).status == 200
        assert (len(llama.requests), len(second.requests)) == (1, 1)


async def test_waiting_has_an_end(llama: FakeLlamaServer) -> None:
    llama.script = endless()
    async with running.gateway(served(llama), timeout_s=0.05) as gateway, await Connection.open(gateway.port) as one:
        await one.send(request(CHAT, STREAM))
        await one.head()
        reply = await ask(gateway.port, CHAT, HELLO)
        assert (reply.status, reply.headers["retry-after"]) == (429, "10")
