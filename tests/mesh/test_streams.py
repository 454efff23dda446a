import asyncio
from collections import Counter

import pytest

from meshnode.mesh.streams import StreamBudget, StreamDispatch, StreamHandler, StreamLimits
from meshnode.net.stream import MeshStream, StreamReset
from meshnode.wire.frames import encode_stream_header
from meshnode.wire.registry import LIMIT_STREAM_HEADER_BYTES, MAY_OPEN, Close, Reset, Role, StreamType
from tests.mesh.memory_link import code_of, memory_links

pytestmark = pytest.mark.anyio
LIMITS = StreamLimits()


class Running:
    """A dispatch behind a link in memory, whose handlers note what reaches them and echo one read."""

    def __init__(self, role: Role | None = Role.MEMBER, limits: StreamLimits = LIMITS) -> None:
        self.role = role
        self.admitted = asyncio.Event()
        self.admitted.set()
        self.seen: list[tuple[StreamType, bytes, Role | None]] = []
        self.offences: list[Close] = []
        self.counters: Counter[str] = Counter()
        self.dispatch = StreamDispatch(
            {kind: self.handler(kind) for kind in StreamType if kind is not StreamType.BULK},
            admission=self.admission,
            offend=lambda _, code: self.offences.append(code),
            counters=self.counters,
            limits=limits,
        )
        self.link, self.far = memory_links(self.dispatch.opened)

    async def admission(self, link: object) -> Role | None:
        assert link is self.far
        await self.admitted.wait()
        return self.role

    def handler(self, kind: StreamType) -> StreamHandler:
        async def handle(stream: MeshStream, header: bytes, role: Role | None) -> None:
            self.seen.append((kind, header, role))
            stream.write(await stream.read(100))
            stream.write_eof()

        return handle

    def open(self, kind: int, header: bytes = b"", data: bytes = b"") -> MeshStream:
        stream = self.link.open_stream()
        stream.write(encode_stream_header(kind, header) + data)
        return stream


async def test_a_stream_goes_to_the_handler_of_its_type() -> None:
    running = Running()
    stream = running.open(StreamType.HTTP, b"head", b"hello")
    assert await stream.read(100) == b"hello"
    assert running.seen == [(StreamType.HTTP, b"head", Role.MEMBER)]
    assert running.counters == {"streams_opened": 1}


async def test_a_header_may_come_byte_by_byte() -> None:
    running = Running()
    stream = running.link.open_stream()
    for byte in encode_stream_header(StreamType.HTTP, b"head") + b"x":
        stream.write(bytes((byte,)))
        await asyncio.sleep(0)
    assert await stream.read(100) == b"x"
    assert running.seen[0][1] == b"head"


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize("kind", [StreamType.HTTP, StreamType.RPC])
async def test_the_table_of_the_registry_holds(kind: StreamType, role: Role) -> None:
    running = Running(role)
    stream = running.open(kind, data=b"x")
    if role in MAY_OPEN[kind]:
        assert await stream.read(100) == b"x"
    else:
        assert await code_of(stream) == Reset.REFUSED
        assert (running.seen, running.counters["streams_not_allowed"]) == ([], 1)


@pytest.mark.parametrize("kind", [StreamType.CONTROL, StreamType.PAIR])
async def test_before_admission_only_what_leads_to_it_is_served(kind: StreamType) -> None:
    running = Running(role=None)
    assert await running.open(kind, data=b"x").read(100) == b"x"
    assert running.seen == [(kind, b"", None)]
    assert await code_of(running.open(StreamType.HTTP)) == Reset.REFUSED


async def test_a_stream_that_comes_before_the_end_of_its_admission_waits() -> None:
    running = Running()
    running.admitted.clear()
    stream = running.open(StreamType.HTTP, data=b"x")
    await asyncio.sleep(0.01)
    assert running.seen == []
    running.admitted.set()
    assert await stream.read(100) == b"x"


async def test_what_nobody_serves_is_refused() -> None:
    running = Running()
    assert await code_of(running.open(StreamType.BULK)) == Reset.REFUSED


@pytest.mark.parametrize("kind", [1, 3, 77, 200])
async def test_an_unknown_type_ends_the_stream_alone(kind: int) -> None:
    running = Running()
    assert await code_of(running.open(kind)) == Reset.UNKNOWN_TYPE
    assert await running.open(StreamType.HTTP, data=b"x").read(100) == b"x"
    assert running.counters["streams_unknown"] == 1


async def test_headers_that_are_none() -> None:
    running = Running(limits=StreamLimits(header_s=0.02))
    whole = encode_stream_header(StreamType.HTTP, b"head")
    large = bytes((StreamType.HTTP,)) + (LIMIT_STREAM_HEADER_BYTES + 1).to_bytes(4, "big")
    for data, end, code in [
        (whole[:3], True, Reset.MALFORMED),
        (whole[:-1], True, Reset.MALFORMED),
        (large, False, Reset.MALFORMED),
        (whole[:3], False, Reset.TOO_SLOW),
        (whole[:-1], False, Reset.TOO_SLOW),
        (b"", True, Reset.MALFORMED),
    ]:
        stream = running.link.open_stream()
        stream.write(data)
        if end:
            stream.write_eof()
        assert await code_of(stream) == code
    assert running.seen == []
    assert running.counters == {"streams_opened": 6, "streams_malformed": 4, "streams_too_slow": 2}


async def test_too_many_streams_at_once_are_refused_and_the_peer_in_the_end() -> None:
    running = Running(limits=StreamLimits(rate_per_s=1, burst=10, most_refused=50))
    streams = [running.open(StreamType.HTTP, data=b"x") for _ in range(70)]
    answers = await asyncio.gather(*(stream.read(10) for stream in streams), return_exceptions=True)
    assert answers[:10] == [b"x"] * 10
    assert all(isinstance(answer, StreamReset) and answer.code == Reset.OVERLOAD for answer in answers[10:])
    assert running.offences and set(running.offences) == {Close.FLOOD}
    assert running.counters["streams_overload"] == 60


@pytest.mark.parametrize(("opened_a_second", "flood"), [(500, False), (1000, False), (1020, False), (5000, True)])
def test_who_opens_more_than_it_may_is_a_flood_in_the_end(opened_a_second: int, flood: bool) -> None:
    """Also when the bucket fills again meanwhile, so that one of every few streams is let through."""
    limits = StreamLimits(burst=100)
    budget = StreamBudget(limits, now=0.0)
    taken = refused = floods = 0
    for number in range(60 * opened_a_second):
        now = number / opened_a_second
        if budget.take(now):
            taken += 1
        else:
            refused += 1
            floods += budget.is_flood(now)
    assert abs(taken - min(60 * opened_a_second, limits.burst + 60 * limits.rate_per_s)) <= 2
    assert bool(floods) is flood
    if flood:
        assert refused - floods <= limits.most_refused + 60 * limits.forgiven_per_s + 1


async def test_half_open_streams_have_a_bound_of_their_own() -> None:
    running = Running(limits=StreamLimits(half_open=3))
    for _ in range(3):
        running.link.open_stream().write(b"\x02")
        await asyncio.sleep(0.01)
    assert await code_of(running.open(StreamType.HTTP)) == Reset.OVERLOAD


async def test_other_links_are_not_affected_by_a_flood() -> None:
    running = Running(limits=StreamLimits(rate_per_s=1, burst=3))
    for _ in range(20):
        running.open(StreamType.HTTP, data=b"x")
    await asyncio.sleep(0.01)
    near, running.far = memory_links(running.dispatch.opened)
    running.link = near
    assert await running.open(StreamType.HTTP, data=b"x").read(10) == b"x"


async def test_a_handler_that_fails_ends_its_stream(caplog: pytest.LogCaptureFixture) -> None:
    running = Running()

    async def fail(stream: MeshStream, header: bytes, role: Role | None) -> None:
        raise RuntimeError("no")

    running.dispatch._handlers[StreamType.HTTP] = fail
    assert await code_of(running.open(StreamType.HTTP)) == Reset.UPSTREAM_BROKEN
    assert "a HTTP stream of a peer failed" in caplog.text


async def test_the_end() -> None:
    running = Running()
    stream = running.open(StreamType.HTTP)
    await asyncio.sleep(0.01)
    await running.dispatch.close()
    assert await code_of(stream) == Reset.UPSTREAM_BROKEN
    running.dispatch.forget(running.far)  # type: ignore[arg-type]
    running.dispatch.forget(running.far)  # type: ignore[arg-type]
