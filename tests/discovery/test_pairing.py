"""Pairing over streams in memory, against honest and hostile ends; the last test is over real connections."""

import asyncio
import random
import threading
from collections.abc import Coroutine
from typing import Any

import pytest

from meshnode.discovery import pairing
from meshnode.discovery.pairing import (
    CLOSED_S,
    CODE_LIFE_S,
    EXPORTER_BYTES,
    EXPORTER_LABEL,
    MESSAGE_BYTES,
    Code,
    Pairing,
    PairingRefused,
    new_code,
    parse_code,
)
from meshnode.discovery.words import WORDS
from meshnode.net.link import Link
from meshnode.net.stream import LinkLost
from meshnode.wire.frames import FrameReader, encode_frame
from meshnode.wire.messages import PairAccept, PairConfirm, PairOffer, decode_message, encode_message, message_id
from meshnode.wire.registry import Close, MessageId
from tests.net.nodes import linked

pytestmark = pytest.mark.anyio

HOST, GUEST = b"h" * 32, b"g" * 32
EXPORTER = b"e" * EXPORTER_BYTES
INVITE = b"an invite of the host"
GUESTS_INVITE = b"an invite of the guest"
LIMIT_S = 10.0
NO_ELEMENT = b"S" + b"\xff" * 32
SMALL_ORDER = b"S\1" + bytes(31)
"""The neutral element: a secret made with it would be known to everybody."""


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class MemoryStream:
    """One end of a stream; what it writes is kept, and closing the connection breaks the other end."""

    def __init__(self) -> None:
        self.inbound = asyncio.StreamReader()
        self.other: MemoryStream
        self.sent = b""

    async def read_exactly(self, n: int) -> bytes:
        return await self.inbound.readexactly(n)

    def write(self, data: bytes) -> None:
        self.sent += data
        self.other.inbound.feed_data(data)

    def write_eof(self) -> None:
        self.other.inbound.feed_eof()

    def close(self, code: int) -> None:
        """Close the connection with this code."""
        self.other.inbound.set_exception(LinkLost("closed", code))

    @property
    def messages(self) -> list[str]:
        """What was sent."""
        return [MessageId(number).name for number, _ in FrameReader().feed(self.sent)]


def streams() -> tuple[MemoryStream, MemoryStream]:
    one, other = MemoryStream(), MemoryStream()
    one.other, other.other = other, one
    return one, other


Outcome = bytes | None | PairingRefused


async def outcome(stream: MemoryStream, run: Coroutine[Any, Any, bytes | None]) -> Outcome:
    """As a node does it: a refusal closes the connection."""
    try:
        async with asyncio.timeout(LIMIT_S):
            return await run
    except PairingRefused as error:
        stream.close(error.close_code)
        return error


def refusal(found: Outcome) -> tuple[Close, str]:
    assert isinstance(found, PairingRefused), found
    return found.close_code, found.detail


class Ends:
    """A host that shows a code, and a guest."""

    def __init__(self, *, invite: bytes | None = INVITE, guests_invite: bytes | None = GUESTS_INVITE) -> None:
        self.clock = Clock()
        self.host = Pairing(HOST, clock=self.clock, draw=random.Random(1).randrange)
        self.guest = Pairing(GUEST, clock=self.clock)
        self.invite = invite
        self.guests_invite = guests_invite
        self.code = self.host.open().code
        self.at_host, self.at_guest = streams()

    def hosting(self, *, peer: bytes = GUEST, exporter: bytes = EXPORTER) -> Coroutine[Any, Any, Outcome]:
        run = self.host.host(self.at_host, peer=peer, exporter=exporter, invite=lambda: self.invite)
        return outcome(self.at_host, run)

    def visiting(
        self, code: Code | None = None, *, peer: bytes = HOST, exporter: bytes = EXPORTER, node: bytes | None = None
    ) -> Coroutine[Any, Any, Outcome]:
        run = self.guest.guest(
            self.at_guest,
            code or self.code,
            peer=peer,
            exporter=exporter,
            invite=lambda: self.guests_invite,
            node=node,
        )
        return outcome(self.at_guest, run)

    async def pair(self, code: Code | None = None) -> tuple[Outcome, Outcome]:
        """One try, over a fresh connection: what the host gets, and the guest."""
        self.at_host, self.at_guest = streams()
        at_host, at_guest = await asyncio.gather(self.hosting(), self.visiting(code))
        return at_host, at_guest

    @property
    def wrong(self) -> Code:
        """With the right number, and one wrong word."""
        word = next(word for word in WORDS if word not in self.code.words)
        return Code(self.code.nameplate, (self.code.words[0], word))


class Rogue:
    """An end that sends what it likes."""

    def __init__(self, stream: MemoryStream) -> None:
        self.stream = stream

    def send(self, message: PairOffer | PairConfirm | PairAccept) -> None:
        self.stream.write(encode_frame(message_id(message), encode_message(message)))

    async def receive(self) -> Any:
        size = int.from_bytes(await self.stream.read_exactly(4), "big")
        frame = await self.stream.read_exactly(size)
        return decode_message(int.from_bytes(frame[:2], "big"), frame[2:])


# --- codes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["7-amber-falcon", "7 amber falcon", " 7  AMBER-Falcon\n", "07-amber-falcon", "-7--amber -falcon-"]
)
def test_codes_as_people_type_them(text: str) -> None:
    code = parse_code(text)
    assert code == Code(7, ("amber", "falcon"))
    assert str(code) == "7-amber-falcon"


NO_CODES = ["", "7", "7-amber", "amber-falcon-7", "7-amber-falcon-raft", "0-amber-falcon", "100-amber-falcon"]
ODD_CODES = ["٧-amber-falcon", "7.0-amber-falcon", "9" * 99 + "-amber-falcon", "7_amber_falcon", "\0" * 1000]


@pytest.mark.parametrize("text", NO_CODES + ODD_CODES)
def test_what_is_no_code(text: str) -> None:
    with pytest.raises(PairingRefused, match="a number and two words"):
        parse_code(text)


def test_a_slip_is_named_and_costs_nothing() -> None:
    with pytest.raises(PairingRefused, match="'falkon'") as caught:
        parse_code("7-amber-falkon")
    assert caught.value.fix == "did you mean 'falcon'?"
    with pytest.raises(PairingRefused, match="'xxxxx'") as caught:
        parse_code("7-xxxxx-falcon")
    assert "did you mean" not in caught.value.fix


def test_new_codes_are_drawn_from_all() -> None:
    codes = [new_code(random.Random(seed).randrange) for seed in range(3000)]
    assert {code.nameplate for code in codes} == set(range(1, 100))
    assert {word for code in codes for word in code.words} == set(WORDS)
    assert all(parse_code(str(code)) == code for code in codes[:100])
    assert new_code(lambda n: n - 1) == Code(99, (WORDS[-1], WORDS[-1]))


def test_one_code_at_a_time_and_for_two_minutes() -> None:
    clock = Clock()
    host = Pairing(HOST, clock=clock)
    assert host.shown is None
    first = host.open()
    second = host.open()
    assert host.shown is second is not first
    assert second.expires_at == clock.now + CODE_LIFE_S
    clock.now += CODE_LIFE_S - 0.1
    assert host.shown is second
    clock.now += 0.1
    assert host.shown is None
    host.open()
    host.close()
    assert host.shown is None


# --- the exchange -------------------------------------------------------------------------------------------------


async def test_the_guest_gets_the_invite_of_the_host() -> None:
    ends = Ends()
    assert await ends.pair() == (None, INVITE)
    assert ends.at_guest.messages == ["PAIR_OFFER", "PAIR_CONFIRM"]
    assert ends.at_host.messages == ["PAIR_OFFER", "PAIR_CONFIRM", "PAIR_ACCEPT"]


async def test_a_host_that_may_not_invite_gets_the_invite_of_the_guest() -> None:
    ends = Ends(invite=None)
    assert await ends.pair() == (GUESTS_INVITE, None)
    assert ends.at_guest.messages == ["PAIR_OFFER", "PAIR_CONFIRM", "PAIR_ACCEPT"]


async def test_if_neither_may_invite_both_are_told() -> None:
    ends = Ends(invite=None, guests_invite=None)
    for found in await ends.pair():
        assert refusal(found) == (Close.PAIRING_FAILED, "neither of the two may invite the other")
        assert isinstance(found, PairingRefused) and "--may-invite" in found.fix


async def test_a_guest_that_visits_with_another_key() -> None:
    ends = Ends()
    visitor = b"v" * 32
    found = await asyncio.gather(ends.hosting(peer=visitor), ends.visiting(node=visitor))
    assert found == [None, INVITE]


async def test_what_takes_long_runs_in_a_thread() -> None:
    threads: list[threading.Thread] = []
    ends = Ends()

    def invite() -> bytes:
        threads.append(threading.current_thread())
        return INVITE

    run = ends.host.host(ends.at_host, peer=GUEST, exporter=EXPORTER, invite=invite)
    assert await asyncio.gather(run, ends.visiting()) == [None, INVITE]
    assert threads[0] is not threading.main_thread()


async def test_a_wrong_code_is_refused_on_both_sides() -> None:
    ends = Ends()
    for found in await ends.pair(ends.wrong):
        assert refusal(found) == (Close.PAIRING_FAILED, "the code is wrong")
    assert ends.at_host.messages == ["PAIR_OFFER"], "no proof of the host, which could be used to guess"
    assert ends.host.shown is None, "one try"


@pytest.mark.parametrize("word", [0, 1])
async def test_each_word_counts(word: int) -> None:
    ends = Ends()
    words = list(ends.code.words)
    words[word] = next(each for each in WORDS if each != words[word])
    at_host, at_guest = await ends.pair(Code(ends.code.nameplate, (words[0], words[1])))
    assert refusal(at_host) == refusal(at_guest) == (Close.PAIRING_FAILED, "the code is wrong")


async def test_another_number_is_no_try() -> None:
    ends = Ends()
    shown = ends.host.shown
    other = Code(ends.code.nameplate % 99 + 1, ends.code.words)
    for _ in range(5):
        at_host, at_guest = await ends.pair(other)
        assert refusal(at_host)[0] == refusal(at_guest)[0] == Close.PAIRING_CLOSED
    assert ends.host.shown is shown
    assert await ends.pair() == (None, INVITE)


async def test_without_a_code_nobody_is_let_in() -> None:
    ends = Ends()
    ends.clock.now += CODE_LIFE_S
    at_host, at_guest = await ends.pair()
    assert refusal(at_host)[0] == refusal(at_guest)[0] == Close.PAIRING_CLOSED
    assert ends.at_host.messages == []


async def test_a_code_is_spent_after_one_try() -> None:
    ends = Ends()
    assert await ends.pair() == (None, INVITE)
    _, at_guest = await ends.pair()
    assert refusal(at_guest)[1] == "this code has been tried already"
    assert ends.at_guest.messages == []
    ends.clock.now += CODE_LIFE_S
    at_host, at_guest = await ends.pair()
    assert refusal(at_host)[0] == refusal(at_guest)[0] == Close.PAIRING_CLOSED, "the guest may, the host does not"


async def test_a_code_is_spent_before_it_is_answered() -> None:
    """Two guests at once: one try."""
    ends = Ends()
    second, at_second = streams()
    other = Pairing(b"o" * 32, clock=ends.clock)
    found = await asyncio.gather(
        ends.hosting(),
        ends.visiting(),
        outcome(second, ends.host.host(second, peer=b"o" * 32, exporter=EXPORTER, invite=lambda: INVITE)),
        outcome(at_second, other.guest(at_second, ends.code, peer=HOST, exporter=EXPORTER, invite=lambda: None)),
    )
    assert sorted(str(isinstance(each, PairingRefused)) for each in found) == ["False", "False", "True", "True"]


async def test_a_guest_tries_a_code_at_one_machine_only() -> None:
    """Two machines answer to it at once: the one that could not be the host gets no proof to guess from."""
    ends = Ends()
    stream, at_rogue = streams()
    rogue = Rogue(at_rogue)
    run = ends.guest.guest(stream, ends.code, peer=b"r" * 32, exporter=EXPORTER, invite=lambda: None)
    second = asyncio.create_task(outcome(stream, run))
    message = (await rogue.receive()).message
    assert await ends.pair() == (None, INVITE)
    rogue.send(PairOffer(message, ends.code.nameplate))
    assert refusal(await second)[1] == "this code has been tried already"
    assert stream.messages == ["PAIR_OFFER"]


# --- someone in the middle ----------------------------------------------------------------------------------------


async def test_two_connections_have_two_keys() -> None:
    """Who passes on all messages as they are has two connections, and so two exporters."""
    ends = Ends()
    found = await asyncio.gather(ends.hosting(), ends.visiting(exporter=b"x" * EXPORTER_BYTES))
    assert [refusal(each)[0] for each in found] == [Close.PAIRING_FAILED] * 2
    assert ends.at_host.messages == ["PAIR_OFFER"]


async def test_a_proof_is_of_one_node_to_another() -> None:
    ends = Ends()
    found = await asyncio.gather(ends.hosting(peer=b"m" * 32), ends.visiting())
    assert [refusal(each)[0] for each in found] == [Close.PAIRING_FAILED] * 2


async def test_a_host_that_sends_the_proof_back() -> None:
    ends = Ends()
    rogue = Rogue(ends.at_host)
    visiting = asyncio.create_task(ends.visiting())
    offer = await rogue.receive()
    honest = pairing._Secret(ends.wrong)
    await honest.start()
    rogue.send(PairOffer(honest.message, offer.nameplate))
    rogue.send(await rogue.receive())
    assert refusal(await visiting) == (Close.PAIRING_FAILED, "the code is wrong")
    assert ends.at_guest.messages == ["PAIR_OFFER", "PAIR_CONFIRM"], "no invite"


# --- what breaks the rules ----------------------------------------------------------------------------------------

BAD_OFFERS = {
    "no element": NO_ELEMENT,
    "of small order": SMALL_ORDER,
    "no side": b"A" + b"\x58" + b"\x66" * 31,
    "short": b"S",
    "long": b"S" + bytes(63),
}


@pytest.mark.parametrize("message", BAD_OFFERS.values(), ids=BAD_OFFERS)
async def test_a_message_that_is_no_element(message: bytes) -> None:
    ends = Ends()
    Rogue(ends.at_guest).send(PairOffer(message, ends.code.nameplate))
    assert refusal(await ends.hosting())[0] == Close.PROTOCOL_ERROR
    assert ends.host.shown is None
    ends = Ends()
    Rogue(ends.at_host).send(PairOffer(message, ends.code.nameplate))
    assert refusal(await ends.visiting())[0] == Close.PROTOCOL_ERROR
    assert ends.at_guest.messages == ["PAIR_OFFER"]


async def test_the_own_message_sent_back_to_the_guest() -> None:
    ends = Ends()
    rogue = Rogue(ends.at_host)
    visiting = asyncio.create_task(ends.visiting())
    rogue.send(await rogue.receive())
    assert refusal(await visiting)[0] == Close.PROTOCOL_ERROR


OFFER = encode_frame(MessageId.PAIR_OFFER, encode_message(PairOffer(b"S" + bytes(32), 1)))
BROKEN = {
    "a length that is too large": (MESSAGE_BYTES + 1).to_bytes(4, "big") + bytes(MESSAGE_BYTES + 1),
    "a length that is enormous": b"\xff\xff\xff\xff",
    "a length below that of the id": b"\0\0\0\1\0",
    "another message": encode_frame(MessageId.PAIR_CONFIRM, encode_message(PairConfirm(bytes(32)))),
    "a message of the mesh": encode_frame(MessageId.HELLO, b"\x80"),
    "a message that nobody knows": encode_frame(0xFFFE, b"\x80"),
    "a body that is none": encode_frame(MessageId.PAIR_OFFER, b"\xc1"),
    "no body": encode_frame(MessageId.PAIR_OFFER, b""),
    "more than a body": encode_frame(MessageId.PAIR_OFFER, encode_message(PairOffer(b"S", 1)) + b"\0"),
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("at_host", [True, False], ids=["host", "guest"])
async def test_a_first_message_that_cannot_be_read(data: bytes, at_host: bool) -> None:
    """That is no try: nothing was learnt from it, and the code stays."""
    ends = Ends()
    (ends.at_guest if at_host else ends.at_host).write(data)
    found = await (ends.hosting() if at_host else ends.visiting())
    assert refusal(found)[0] == Close.PROTOCOL_ERROR
    assert ends.host.shown is not None
    assert await ends.pair() == (None, INVITE)


@pytest.mark.parametrize("size", range(0, len(OFFER), 7))
@pytest.mark.parametrize("at_host", [True, False], ids=["host", "guest"])
async def test_half_a_frame(size: int, at_host: bool) -> None:
    ends = Ends()
    sender = ends.at_guest if at_host else ends.at_host
    sender.write(OFFER[:size])
    sender.write_eof()
    found = await (ends.hosting() if at_host else ends.visiting())
    assert refusal(found) == (Close.PAIRING_FAILED, "the other machine has ended it half way")
    assert ends.host.shown is not None


async def offered(ends: Ends, rogue: Rogue) -> asyncio.Task[Outcome]:
    """A guest that has sent an offer which is in order, and has the host's."""
    hosting = asyncio.create_task(ends.hosting())
    honest = pairing._Secret(ends.wrong)
    await honest.start()
    rogue.send(PairOffer(honest.message, ends.code.nameplate))
    await rogue.receive()
    return hosting


async def test_a_guest_that_leaves_out_its_proof() -> None:
    ends = Ends()
    rogue = Rogue(ends.at_guest)
    hosting = await offered(ends, rogue)
    rogue.send(PairAccept(b"join me"))
    assert refusal(await hosting)[0] == Close.PROTOCOL_ERROR
    assert ends.at_host.messages == ["PAIR_OFFER"]


async def test_an_invite_that_is_cut_off() -> None:
    """The proofs were right: that is no failed try."""
    ends = Ends(invite=None)
    hosting = asyncio.create_task(ends.hosting())
    rogue = Rogue(ends.at_guest)
    honest = pairing._Secret(ends.code)
    await honest.start()
    rogue.send(PairOffer(honest.message, ends.code.nameplate))
    await honest.finish((await rogue.receive()).message, GUEST, HOST, EXPORTER)
    rogue.send(PairConfirm(honest.proof(GUEST)))
    await rogue.receive()
    ends.at_guest.write(b"\0\0")
    ends.at_guest.write_eof()
    assert refusal(await hosting) == (Close.PAIRING_FAILED, "the other machine has ended it half way")
    assert ends.host._failures == 0


# --- time, and lost connections -----------------------------------------------------------------------------------


@pytest.mark.parametrize("at_stake", [False, True])
async def test_a_guest_that_says_no_more(monkeypatch: pytest.MonkeyPatch, at_stake: bool) -> None:
    monkeypatch.setattr(pairing, "EXCHANGE_S", 0.3)
    ends = Ends()
    hosting = await offered(ends, Rogue(ends.at_guest)) if at_stake else asyncio.create_task(ends.hosting())
    assert "longer than" in refusal(await hosting)[1]
    assert (ends.host.shown is None) == at_stake
    assert ends.host._failures == at_stake


async def test_a_host_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairing, "EXCHANGE_S", 0.1)
    ends = Ends()
    assert "longer than" in refusal(await ends.visiting())[1]
    assert await ends.pair() == (None, INVITE), "nothing was tried"


async def test_a_connection_that_is_lost() -> None:
    ends = Ends()
    ends.at_host.close(0)
    assert refusal(await ends.visiting()) == (Close.PAIRING_FAILED, "the connection to the other machine was lost")
    ends = Ends()
    hosting = await offered(ends, Rogue(ends.at_guest))
    ends.at_guest.close(0)
    assert refusal(await hosting)[1] == "the connection to the other machine was lost"
    assert ends.host._failures == 1, "so could every guess be hidden"


async def test_who_is_cancelled_leaves_no_code_behind() -> None:
    ends = Ends()
    hosting = await offered(ends, Rogue(ends.at_guest))
    hosting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await hosting
    assert (ends.host.shown, ends.host._failures) == (None, 1)


# --- three failures -----------------------------------------------------------------------------------------------


async def test_three_failures_close_pairing_for_ten_minutes_on_both_sides() -> None:
    ends = Ends()
    for number in range(3):
        if number:
            ends.code = ends.host.open().code
        await ends.pair(ends.wrong)
    with pytest.raises(PairingRefused, match="closed after 3 failures") as caught:
        ends.host.open()
    assert caught.value.close_code == Close.PAIRING_CLOSED
    assert "wait 10 min" in caught.value.fix
    _, at_guest = await ends.pair()
    assert refusal(at_guest) == (Close.PAIRING_CLOSED, "pairing is closed after 3 failures")
    assert ends.at_guest.messages == [], "not even asked"
    ends.clock.now += CLOSED_S - 1
    with pytest.raises(PairingRefused, match="closed"):
        ends.host.open()
    ends.clock.now += 1
    ends.code = ends.host.open().code
    assert await ends.pair() == (None, INVITE)


async def test_a_success_forgives_failures() -> None:
    ends = Ends()
    for _ in range(3):
        await ends.pair(ends.wrong)
        ends.code = ends.host.open().code
        await ends.pair(ends.wrong)
        ends.code = ends.host.open().code
        assert await ends.pair() == (None, INVITE)
        ends.code = ends.host.open().code


def test_the_third_failure_takes_back_the_code_that_is_shown() -> None:
    host = Pairing(HOST, clock=Clock())
    host.open()
    for _ in range(3):
        host.failed()
    assert host.shown is None


# --- over QUIC ----------------------------------------------------------------------------------------------------


async def over_quic(typed: bool = True, invite: bytes | None = INVITE) -> list[Outcome | BaseException]:
    """What the host gets and the guest, over a connection of net/ that each of them closes when it refuses."""
    async with linked() as (one, other, there, here):
        host, guest = Pairing(other.node_id), Pairing(one.node_id)
        code = host.open().code
        wrong = Code(code.nameplate, (code.words[1], "zodiac"))

        async def ended(link: Link, run: Coroutine[Any, Any, bytes | None]) -> bytes | None:
            try:
                return await run
            except PairingRefused as error:
                link.close(error.close_code)
                raise

        def keys(link: Link) -> dict[str, bytes]:
            return {"peer": link.peer, "exporter": link.exporter(EXPORTER_LABEL, EXPORTER_BYTES)}

        stream = there.open_stream()
        visiting = guest.guest(stream, code if typed else wrong, **keys(there), invite=lambda: None)
        task = asyncio.create_task(ended(there, visiting))
        hosting = host.host(await other.stream(), **keys(here), invite=lambda: invite)
        return await asyncio.gather(ended(here, hosting), task, return_exceptions=True)


async def test_over_a_real_connection() -> None:
    assert await over_quic() == [None, INVITE]


async def test_both_hear_why_it_failed() -> None:
    for found in await over_quic(typed=False):
        assert isinstance(found, PairingRefused) and found.detail == "the code is wrong"
    for found in await over_quic(invite=None):
        assert isinstance(found, PairingRefused) and found.detail == "neither of the two may invite the other"
