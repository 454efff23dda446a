import pytest

from meshnode.rpc.facts import DeviceFacts, WorkerFacts
from meshnode.rpc.work import LeaseLimits, LeaseRefusal, ended, granted, refused
from meshnode.wire.messages import decode_message, encode_message, message_id
from meshnode.wire.registry import LEASE_TEXTS, LIMIT_LEASE_TEXT_CHARS, LIMIT_MEMORY_BYTES_MAX, LeaseCode
from meshnode.wire.splits import NO_LIMIT_BYTES, LentDevice
from tests.rpc.lease_room import HELLO, FakeWork

pytestmark = pytest.mark.anyio


def travels(message: object) -> bool:
    return bool(decode_message(message_id(message), encode_message(message)) == message)


@pytest.mark.parametrize("code", list(LeaseCode))
def test_every_code_has_words(code: LeaseCode) -> None:
    assert ended(code).text == refused(LeaseRefusal(code)).text == str(LeaseRefusal(code)) == LEASE_TEXTS[code]
    assert travels(ended(code)) and travels(refused(LeaseRefusal(code)))


def test_whatever_an_engine_says_can_be_sent() -> None:
    words = "ended\x1b[2J with\n" + "x" * 500
    refusal = LeaseRefusal(LeaseCode.NO_MEMORY, words, free_bytes=1 << 60, retry_after_s=1 << 40)
    for message in (ended(LeaseCode.CRASHED, words), refused(refusal)):
        assert travels(message) and len(message.text) <= LIMIT_LEASE_TEXT_CHARS
    assert refused(refusal).free_bytes == LIMIT_MEMORY_BYTES_MAX
    assert refused(LeaseRefusal(LeaseCode.NO_MEMORY, free_bytes=-5)).free_bytes == 0


async def test_what_an_rpc_server_says_is_bounded() -> None:
    work = FakeWork()
    most = (1 << 64) - 1
    work.facts = WorkerFacts(HELLO, (DeviceFacts(32, most, most, most),))
    message = granted(work)
    assert travels(message)
    assert message.devices == (LentDevice(32, NO_LIMIT_BYTES, LIMIT_MEMORY_BYTES_MAX, LIMIT_MEMORY_BYTES_MAX),)


def test_the_caps_are_those_of_the_protocol() -> None:
    limits = LeaseLimits()
    assert (limits.leases_a_host, limits.leases, limits.asks_burst, limits.asks_per_s) == (2, 4, 10, 1 / 2)
    assert (limits.ask_s, limits.grant_s, limits.prepare_pause_s, limits.idle_s) == (10, 60, 600, 1800)
    assert (limits.tunnels, limits.pushes) == (8, 4)
