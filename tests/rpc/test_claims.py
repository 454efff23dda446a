import asyncio
import random
from typing import Any

import pytest

from meshnode.core.effects import Member
from meshnode.core.election import ElectionOptions, Elections
from meshnode.rpc.claims import Claims
from meshnode.wire.registry import Role
from meshnode.wire.statements import ClaimState, Dynamic, PlanClaim
from tests.net.nodes import LIMIT_S, until

pytestmark = pytest.mark.anyio
MODEL = b"m" * 16
QUICK = ElectionOptions(settle_s=0.05, patience_s=0.2, pause_s=0.02)


def name(number: int) -> bytes:
    return bytes([number]) * 32


def member(number: int, *claims: PlanClaim, state: Any = "alive") -> Member:
    return Member(
        node=name(number),
        state=state,
        incarnation=1,
        role=Role.MEMBER,
        identity=None,
        dynamic=Dynamic(claims=claims),
        demand=None,
        linked=True,
        reachable=True,
        rtt_s=0.01,
        estimated_rtt_s=None,
        since=0.0,
        heard_at=0.0,
    )


def claim(term: int) -> PlanClaim:
    return PlanClaim(b"p" * 16, MODEL, term, ClaimState.SERVING)


class Node:
    """Claims of node 5, with what it was told."""

    def __init__(self) -> None:
        self.published: list[tuple[PlanClaim, ...]] = []
        self.stops: list[tuple[bytes, bytes]] = []
        self.claims = Claims(
            Elections(name(5), random=random.Random(1), options=QUICK),
            changed=lambda: self.published.append(self.claims.mine()),
            stop=lambda model, host: self.stops.append((model, host)),
        )

    def see(self, *members: Member) -> None:
        self.claims.observe({each.node: each for each in members})


async def test_a_claim_is_published_settles_and_ends() -> None:
    node = Node()
    async with asyncio.timeout(LIMIT_S):
        assert await node.claims.claim(MODEL) == 1
        assert await node.claims.claim(MODEL) == 1, "for the next plan of the same host"
    node.claims.advance(MODEL, ClaimState.SERVING, b"p" * 16, (b"w" * 8,))
    assert [[(each.state, each.plan) for each in said] for said in node.published] == [
        [(ClaimState.CLAIMING, bytes(16))],
        [(ClaimState.SERVING, b"p" * 16)],
    ]
    assert node.claims.host(MODEL) == name(5)
    node.claims.disclaim(MODEL)
    assert node.published[-1] == () and node.claims.host(MODEL) is None


async def test_it_waits_for_the_end_of_another_host() -> None:
    node = Node()
    node.see(member(1, claim(3)), member(5, claim(9)))
    waiting = asyncio.create_task(node.claims.claim(MODEL))
    await asyncio.sleep(0.2)
    assert not waiting.done() and node.claims.host(MODEL) == name(1)
    node.see(member(1, claim(3), state="unreachable"))
    await asyncio.sleep(0.1)
    assert node.published == [], "it may come back"
    node.see(member(1, claim(3), state="dead"))
    async with asyncio.timeout(LIMIT_S):
        assert await waiting == 4


async def test_a_better_claim_stops_the_host_which_waits_again() -> None:
    node = Node()
    async with asyncio.timeout(LIMIT_S):
        await node.claims.claim(MODEL)
        node.see(member(7, claim(2)))
        assert node.stops == [(MODEL, name(7))] and node.claims.mine() == ()
        again = asyncio.create_task(node.claims.claim(MODEL))
        await asyncio.sleep(0)
        node.see(member(7))
        assert await again == 3


async def test_a_cancelled_claim_is_given_up() -> None:
    node = Node()
    waiting = asyncio.create_task(node.claims.claim(MODEL))
    await until(lambda: len(node.published) == 1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert node.claims.mine() == ()


async def test_two_wait_for_one_claim() -> None:
    node = Node()
    async with asyncio.timeout(LIMIT_S):
        terms = await asyncio.gather(node.claims.claim(MODEL), node.claims.claim(MODEL + b"the rest of the digest"))
        assert list(terms) == [1, 1]


async def test_closing_gives_everything_up() -> None:
    node = Node()
    waiting = asyncio.create_task(node.claims.claim(MODEL))
    await until(lambda: len(node.published) == 1)
    node.claims.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert node.published[-1] == () and node.claims._timers == {}
