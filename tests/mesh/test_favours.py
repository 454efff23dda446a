import asyncio
from collections import Counter
from typing import Any

import pytest

from meshnode.errors import PeerUnreachable
from meshnode.mesh.favours import AT_ONCE, Favours
from meshnode.mesh.session import Session
from meshnode.mesh.sessions import Peer
from meshnode.wire import certificates
from meshnode.wire.messages import Measure, Measured, Prune, Renew, Renewed
from meshnode.wire.registry import Role
from meshnode.wire.values import WireError
from tests.mesh.members import DAY_S, Node, Village

pytestmark = pytest.mark.anyio
OTHER = b"o" * 32


class PeerLink:
    """As much of a link as is looked at here."""

    def __init__(self, node: bytes) -> None:
        self.peer = node


def peer_of(node: Node, role: Role = Role.MEMBER) -> Peer:
    mine = node.vault.credentials
    assert mine is not None
    certificate = certificates.read(mine.certificate)
    session = Session(None, None, certificate, role, "", "")
    return Peer(session, PeerLink(node.id), None)  # type: ignore[arg-type]


class Running:
    """The favours of `node`; what it sends is handed to the Favours in `others`."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.sent: list[tuple[bytes, Any]] = []
        self.counters: Counter[str] = Counter()
        self.renewed = asyncio.Event()
        self.rtt_s: float | None = 0.025
        self.release = asyncio.Event()
        self.release.set()
        self.others: dict[bytes, Running] = {}
        self.favours = Favours(
            node.vault, measure=self.measure, send=self.send, renewed=self.renewed.set, counters=self.counters
        )

    async def measure(self, node: bytes) -> float:
        await self.release.wait()
        if self.rtt_s is None:
            raise PeerUnreachable(node.hex())
        return self.rtt_s

    def send(self, node: bytes, message: Any) -> None:
        self.sent.append((node, message))
        if node in self.others:
            self.others[node].favours.received(peer_of(self.node), message)


@pytest.fixture
def village(tmp_path: Any) -> Village:
    return Village(tmp_path)


def pair(village: Village) -> tuple[Running, Running]:
    founder, member = Running(village.founder), Running(village.member("member"))
    founder.others[member.node.id], member.others[founder.node.id] = member, founder
    return founder, member


async def test_a_measurement_is_asked_for_and_answered(village: Village) -> None:
    founder, member = pair(village)
    assert await founder.favours.measured_by(member.node.id, OTHER) == pytest.approx(0.025)
    assert founder.sent == [(member.node.id, Measure(OTHER))]
    assert member.sent == [(founder.node.id, Measured(OTHER, 25_000))]
    assert member.counters == {"measured_for_others": 1}
    member.rtt_s = None
    assert await founder.favours.measured_by(member.node.id, OTHER) is None
    await founder.favours.close()


async def test_who_does_not_answer_in_time_is_not_waited_for(village: Village) -> None:
    founder, member = pair(village)
    founder.others.clear()
    both = [founder.favours.measured_by(member.node.id, OTHER, 0.02) for _ in range(2)]
    assert await asyncio.gather(*both) == [None, None]
    assert len(founder.sent) == 1
    founder.favours.received(peer_of(member.node), Measured(OTHER, 1))
    assert founder.favours._asked == {}


async def test_nobody_makes_this_node_work_without_bound(village: Village) -> None:
    founder, _ = pair(village)
    founder.release.clear()
    members = [village.member(f"m{number}") for number in range(AT_ONCE + 2)]
    for member in members:
        for _ in range(3):
            founder.favours.received(peer_of(member), Measure(OTHER))
    assert len(founder.favours._busy) == AT_ONCE
    assert founder.counters["favours_refused"] == 3 * len(members) - AT_ONCE
    await founder.favours.close()
    assert founder.favours._busy == {}


async def test_a_client_measures_nothing(village: Village) -> None:
    founder, member = pair(village)
    with pytest.raises(WireError):
        founder.favours.received(peer_of(member.node, Role.CLIENT), Measure(OTHER))


async def test_other_messages_are_for_others(village: Village) -> None:
    founder, member = pair(village)
    assert founder.favours.received(peer_of(member.node), Prune()) is False


async def test_a_renewal(village: Village) -> None:
    founder, member = pair(village)
    before = member.node.vault.credentials
    village.clock.now_s += 70 * DAY_S
    founder.node.vault.renew_own()
    assert member.node.vault.renewal_due
    assert member.favours.ask_for_renewal([peer_of(member.node)]) is False
    assert member.favours.ask_for_renewal([peer_of(member.node), peer_of(founder.node)]) is True
    await asyncio.wait_for(member.renewed.wait(), 5)
    after = member.node.vault.credentials
    assert before is not None and after is not None and after.ends_at > before.ends_at
    assert founder.counters == {"renewals_issued": 1}


async def test_renewals_that_nobody_asked_for_or_that_are_worth_nothing(village: Village) -> None:
    founder, member = pair(village)
    mine = member.node.vault.credentials
    assert mine is not None
    assert member.favours.received(peer_of(founder.node), Renewed(mine.certificate))
    assert member.favours._busy == {}
    member.favours._renewal_from = founder.node.id
    member.favours.received(peer_of(founder.node), Renewed(b"nonsense" * 20))
    await asyncio.gather(*member.favours._busy.values())
    assert member.node.vault.credentials == mine
    founder.favours.received(peer_of(member.node), Renew(b"nonsense" * 20))
    await asyncio.gather(*founder.favours._busy.values())
    assert founder.counters == {"renewals_refused": 1}
    assert not member.renewed.is_set()
