"""The two ends of a search, over a link in memory, with punchers that find what the test wants."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from meshnode.core.traversal import MOST_CANDIDATES
from meshnode.mesh import direct_paths
from meshnode.mesh.direct_paths import OFFERS_BURST, DirectPaths, Standing
from meshnode.mesh.message_stream import MessageStream
from meshnode.net.punching import Guess
from meshnode.net.stream import MeshStream, StreamReset
from meshnode.wire.address import Address
from meshnode.wire.frames import HEADER_BYTES, encode_stream_header
from meshnode.wire.registry import LIMIT_CANDIDATES, Nat, Reset, Role, StreamType
from meshnode.wire.traversal import PUNCH_MESSAGES, PunchAnswer, PunchDone, PunchOffer, RelayEnd
from tests.mesh.memory_link import MemoryLink

pytestmark = pytest.mark.anyio
SMALL, LARGE = b"\1" * 32, b"\2" * 32
WAY = Address("11.7.9.9", 4000)
OUTSIDE = {SMALL: Address("11.7.1.1", 9337), LARGE: Address("11.7.2.2", 9337)}
PATIENCE_S = 5.0


class FakePuncher:
    """Finds `way` at once, or nothing after the time it is given is over, which is no time here."""

    def __init__(self, way: Address | None) -> None:
        self.way = way
        self.calls: list[tuple[tuple[Address, ...], bool, float, Guess | None]] = []
        self.nonces: list[bytes] = []
        self.wait: Callable[[], Any] = lambda: asyncio.sleep(0.01)
        self.in_use = False

    async def punch(
        self, nonce: bytes, candidates: Any, *, opens: bool, timeout_s: float, guess: Guess | None
    ) -> Address | None:
        if self.in_use:
            raise ValueError("in use")
        self.nonces.append(nonce)
        self.calls.append((tuple(candidates), opens, timeout_s, guess))
        await self.wait()
        return self.way


class End(MemoryLink):
    """One end: a link that is relayed until it is redirected, and what looks for a direct path."""

    def __init__(self, own: bytes, peer: bytes, *, way: Address | None = None, nat: Nat = Nat.CONE) -> None:
        super().__init__(peer, self.serve)
        self.own = own
        self.path = "relayed"
        self.address = Address("100::1", 3)
        self.puncher = FakePuncher(way)
        self.counters: Counter[str] = Counter()
        self.standing = Standing([OUTSIDE[own]], nat, True)
        self.observed: Address | None = OUTSIDE[peer]
        self.takes = True
        self.seen: list[Address] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.paths = DirectPaths(
            own,
            standing=lambda: self.standing,
            observed=lambda _: self.observed,
            seen=lambda address, _: self.seen.append(address),
            counters=self.counters,
        )
        self.paths.endpoint = self  # type: ignore[assignment]

    async def redirect(self, address: Address) -> bool:
        if self.takes:
            for end in (self, self.other):
                end.path = "direct"  # type: ignore[attr-defined]
            self.address = address
        return self.takes

    def serve(self, stream: MeshStream) -> None:
        async def handle() -> None:
            assert (await stream.read_exactly(HEADER_BYTES))[0] == StreamType.PUNCH
            try:
                await self.paths.asked(stream, b"", Role.MEMBER)
            except OSError:
                stream.reset(Reset.CANCELLED)  # as StreamDispatch does

        self.tasks.append(asyncio.ensure_future(handle()))


def ends(**both: Any) -> tuple[End, End]:
    """The end that asks and the one that is asked."""
    one, other = End(SMALL, LARGE, **both), End(LARGE, SMALL, **both)
    one.other, other.other = other, one
    other._next = 1  # so that both may open streams
    return one, other


async def test_both_punch_what_the_other_names_and_the_asking_end_moves_the_link() -> None:
    one, other = ends(way=WAY)
    assert await one.paths.seek(one) is True  # type: ignore[arg-type]
    assert one.puncher.calls == [((OUTSIDE[LARGE],), True, direct_paths.PUNCH_S, None)]
    assert other.puncher.calls == [((OUTSIDE[SMALL],), False, direct_paths.PUNCH_S, None)]
    assert one.puncher.nonces == other.puncher.nonces and len(one.puncher.nonces[0]) == 16
    assert (one.path, one.address, other.address) == ("direct", WAY, Address("100::1", 3))
    await asyncio.gather(*other.tasks)
    assert (one.counters["punches_found"], other.counters["punches_served"]) == (1, 1)
    assert one.seen == other.seen == [WAY], "each hears where the other one has found it"


async def test_what_only_the_asked_end_has_found_is_used_as_well() -> None:
    one, other = ends()
    other.puncher.way = WAY
    assert await one.paths.seek(one) is True  # type: ignore[arg-type]
    assert (one.path, other.address, one.address) == ("direct", WAY, Address("100::1", 3))


async def test_nothing_found() -> None:
    one, other = ends()
    assert await one.paths.seek(one) is False  # type: ignore[arg-type]
    assert (one.path, one.counters["punches_found"], one.counters["ports_guessed"]) == ("relayed", 0, 0)
    await asyncio.gather(*other.tasks)
    assert not one.paths.is_busy(LARGE) and not other.paths.is_busy(SMALL)


async def test_a_path_that_does_not_last_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct_paths, "MOVED_S", 0.05)
    one, other = ends(way=WAY)
    one.takes = False
    assert await one.paths.seek(one) is False  # type: ignore[arg-type]
    assert other.path == "relayed"


@pytest.mark.parametrize(
    ("nats", "guessed"),
    [
        ((Nat.SYMMETRIC, Nat.CONE), ("opener", "prober")),
        ((Nat.CONE, Nat.SYMMETRIC), ("prober", "opener")),
        ((Nat.SYMMETRIC, Nat.SYMMETRIC), None),
        ((Nat.CONE, Nat.CONE), None),
    ],
)
async def test_ports_are_guessed_where_one_end_is_symmetric(
    nats: tuple[Nat, Nat], guessed: tuple[str, str] | None
) -> None:
    one, other = ends()
    for end, nat in zip((one, other), nats, strict=True):
        end.standing = Standing(end.standing.candidates, nat, True)
    assert await one.paths.seek(one) is False  # type: ignore[arg-type]
    guesses = [end.puncher.calls[0][3] for end in (one, other)]
    if guessed is None:
        assert guesses == [None, None]
    else:
        assert guesses == [Guess(guessed[0], "11.7.2.2"), Guess(guessed[1], "11.7.1.1")]  # type: ignore[arg-type]
        assert one.puncher.calls[0][2] == direct_paths.GUESS_S


@pytest.mark.parametrize("without", ["consent", "observed"])
async def test_no_ports_are_guessed_without_consent_or_where_the_relay_sees_somebody_else(without: str) -> None:
    one, other = ends(nat=Nat.SYMMETRIC)
    other.standing = Standing(other.standing.candidates, Nat.CONE, without != "consent")
    if without == "observed":
        one.observed = Address("11.7.3.3", 9337)
    await one.paths.seek(one)  # type: ignore[arg-type]
    assert one.puncher.calls[0][3] is None
    assert other.puncher.calls[0][3] is None or without == "observed"


async def test_the_end_that_waits_stops_when_the_other_one_is_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct_paths, "LAST_S", 0.02)
    one, other = ends()
    other.puncher.way = WAY
    one.puncher.wait = asyncio.Event().wait
    assert await asyncio.wait_for(one.paths.seek(one), PATIENCE_S) is True  # type: ignore[arg-type]


async def test_the_offer_of_the_smaller_id_counts_when_both_ask_at_once() -> None:
    one, other = ends(way=WAY)
    found = await asyncio.gather(one.paths.seek(one), other.paths.seek(other))  # type: ignore[arg-type]
    assert found == [True, False]
    assert (one.counters["punches_declined"], other.counters["punches_declined"]) == (1, 0)


# --- peers that keep to no rules --------------------------------------------------------------------------------------


def offer(one: End, message: Any) -> MessageStream:
    stream = one.open_stream()
    stream.write(encode_stream_header(StreamType.PUNCH, b""))
    messages = MessageStream(stream, PUNCH_MESSAGES)
    messages.send(message)
    return messages


async def test_hostile_candidates_are_not_punched() -> None:
    """Loopback with the port of an API, machines of a private network, the discard prefix, many of one host."""
    one, other = ends()
    named = [
        Address("127.0.0.1", 9337),
        Address("::1", 9337),
        Address("192.168.1.1", 53),
        Address("10.0.0.1", 161),
        Address("169.254.169.254", 80),
        Address("100::7", 3),
        OUTSIDE[LARGE],
        *(Address("11.7.5.5", port) for port in range(1, 10)),
    ]
    assert len(named) == LIMIT_CANDIDATES
    answer = await (messages := offer(one, PunchOffer(b"n" * 16, tuple(named)))).receive(PATIENCE_S)
    assert isinstance(answer, PunchAnswer) and not answer.busy
    assert isinstance(await messages.receive(PATIENCE_S), PunchDone)
    [(punched, *_)] = other.puncher.calls
    assert punched == tuple(Address("11.7.5.5", port) for port in (1, 2, 3))
    assert len(punched) <= MOST_CANDIDATES and other.counters["candidates_refused"] == 13
    messages.finish(PunchDone())
    await asyncio.gather(*other.tasks)
    assert other.counters["punches_malformed"] == 0


async def test_whoever_asks_endlessly_is_declined() -> None:
    one, other = ends()
    for _ in range(OFFERS_BURST):
        assert await one.paths.seek(one) is False  # type: ignore[arg-type]
        await asyncio.gather(*other.tasks)
    for _ in range(20):
        answer = await offer(one, PunchOffer(b"n" * 16)).receive(PATIENCE_S)
        assert answer == PunchAnswer(busy=True)
    assert len(other.puncher.calls) == OFFERS_BURST and other.counters["punches_declined"] == 20


async def test_one_search_a_peer_at_a_time() -> None:
    one, other = ends()
    hold = asyncio.Event()
    other.puncher.wait = hold.wait
    assert not (await offer(one, PunchOffer(b"a" * 16)).receive(PATIENCE_S)).busy
    assert other.paths.is_busy(SMALL)
    assert (await offer(one, PunchOffer(b"b" * 16)).receive(PATIENCE_S)).busy
    other.paths._serving |= {bytes((number,)) * 32 for number in range(10, 20)}
    other.paths._serving.discard(SMALL)
    assert (await offer(one, PunchOffer(b"c" * 16)).receive(PATIENCE_S)).busy, "too many peers at once"
    hold.set()


async def test_no_search_for_a_link_that_is_direct() -> None:
    one, other = ends()
    other.path = "direct"
    assert (await offer(one, PunchOffer(b"a" * 16)).receive(PATIENCE_S)).busy
    assert other.puncher.calls == []


@pytest.mark.parametrize("said", [PunchDone(), PunchAnswer(), RelayEnd(0)], ids=lambda said: type(said).__name__)
async def test_no_way_to_begin(said: Any) -> None:
    one, other = ends()
    with pytest.raises(StreamReset) as caught:
        await offer(one, said).receive(PATIENCE_S)
    assert caught.value.code == Reset.MALFORMED and other.counters["punches_malformed"] == 1


async def test_no_way_to_go_on() -> None:
    one, other = ends()
    other.puncher.wait = asyncio.Event().wait
    messages = offer(one, PunchOffer(b"a" * 16))
    await messages.receive(PATIENCE_S)
    messages.send(PunchOffer(b"a" * 16))
    with pytest.raises(StreamReset):
        while True:
            assert await messages.receive(PATIENCE_S) is not None
    assert other.counters["punches_malformed"] == 1 and not other.paths.is_busy(SMALL)


async def test_a_nonce_that_is_in_use_elsewhere() -> None:
    one, other = ends()
    other.puncher.in_use = True
    messages = offer(one, PunchOffer(b"a" * 16))
    with pytest.raises(StreamReset):
        while True:
            assert await messages.receive(PATIENCE_S) is not None
    assert not other.paths.is_busy(SMALL)


@pytest.mark.parametrize("said", [PunchDone(), None], ids=["another message", "the end"])
async def test_a_peer_that_does_not_answer_an_offer(said: Any) -> None:
    one, other = ends()

    def serve(stream: MeshStream) -> None:
        messages = MessageStream(stream, PUNCH_MESSAGES)
        messages.finish(said)

    other.opened = serve
    assert await one.paths.seek(one) is False  # type: ignore[arg-type]
    assert one.puncher.calls == [] and not one.paths.is_busy(LARGE)
