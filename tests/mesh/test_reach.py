import asyncio
import gc
from collections.abc import Sequence
from time import monotonic
from types import SimpleNamespace
from typing import Any

import pytest

from meshnode.errors import PeerRefused, PeerUnreachable, WrongPeer
from meshnode.mesh.reach import Reach
from meshnode.net.link import Link
from meshnode.wire.address import Address
from meshnode.wire.registry import Close, Role
from tests.mesh.neighbourhood import Neighbourhood
from tests.mesh.rogue import Rogue

pytestmark = pytest.mark.anyio
NOBODY = Address("127.0.0.1", 9)


async def test_a_restart_finds_the_mesh_again_without_an_invite(town: Neighbourhood) -> None:
    one, two = await town.members(2)
    await two.stop()
    await one.until(lambda: one.mesh._sessions.get(two.id) is None)
    await two.restart()
    assert two.mesh.state in ("joining", "joined")
    await town.acquainted([one, two])
    assert await two.ask(one) == (200, b"member0:hello")


@pytest.mark.parametrize("role", list(Role))
async def test_a_node_that_is_killed_early_finds_the_mesh_that_it_has_just_joined(
    town: Neighbourhood, role: Role
) -> None:
    one = await town.founder()
    two = await town.joined(one, role)
    await two.until(lambda: [entry.node for entry in two.vault.peers()] == [one.id])
    await two.crash()
    await two.restart()
    assert two.mesh.state in ("joining", "joined")
    await two.until(lambda: two.mesh._sessions.get(one.id))
    assert [entry.node for entry in one.vault.peers()] == ([two.id] if role is Role.MEMBER else [])


async def test_a_mesh_that_was_down_as_a_whole_comes_back(town: Neighbourhood) -> None:
    everybody = await town.members(3)
    ports = [resident.mesh.addresses[0].port for resident in everybody]
    for resident in everybody:
        await resident.stop()
    one, two, three = everybody
    await two.start(ports[1])
    assert two.mesh.state == "joining"
    await asyncio.sleep(0.1)
    await three.start(ports[2])
    await one.start(ports[0])
    await town.acquainted(everybody)


async def test_the_book_knows_who_stays_and_forgets_who_left(town: Neighbourhood) -> None:
    one, two, three = await town.members(3)
    await one.mesh._reach.remember()
    book = {entry.node: entry.addresses for entry in one.vault.peers()}
    assert set(book) == {two.id, three.id}
    assert two.mesh.addresses[0] in book[two.id]
    await two.mesh.leave()
    await one.until(lambda: (seen := one.sees(two)) is None or seen.state == "left")
    await one.mesh._reach.remember()
    assert [entry.node for entry in one.vault.peers()] == [three.id]


async def test_a_wrong_address_does_not_keep_it_from_a_right_one(town: Neighbourhood) -> None:
    one, two = await town.members(2)
    for peer in one.mesh._sessions.peers:
        peer.link.close(Close.DONE)
    await asyncio.sleep(0)
    found = await one.mesh._reach.session(two.id, (NOBODY, one.mesh.addresses[0], *two.mesh.addresses))
    assert found.node == two.id


async def test_why_a_peer_is_not_reached(town: Neighbourhood) -> None:
    one, two = await town.members(2)
    reach = one.mesh._reach
    with pytest.raises(PeerUnreachable, match="no address"):
        await reach.session(b"x" * 32)
    with pytest.raises(PeerUnreachable, match=r"127.0.0.1:9"):
        await reach.session(b"x" * 32, (NOBODY,), 0.2)
    with pytest.raises(WrongPeer):
        await reach.session(b"y" * 32, two.mesh.addresses)
    stranger = await town.resident().start()
    stranger.vault.found("elsewhere")
    await stranger.mesh.enter()
    with pytest.raises(PeerRefused) as caught:
        await stranger.mesh._reach.session(one.id, one.mesh.addresses)
    assert caught.value.close_code == Close.WRONG_MESH


async def test_a_peer_that_takes_the_connection_and_says_nothing_costs_no_more_than_one_that_is_gone(
    town: Neighbourhood,
) -> None:
    one = await town.founder()
    async with Rogue(town.resident()) as mute:
        begun = monotonic()
        for _ in range(2):  # the second finds the link of the first
            with pytest.raises(PeerUnreachable, match=str(mute.endpoint.address.port)):
                await one.mesh._reach.session(mute.resident.id, [mute.endpoint.address], 0.2)
        assert monotonic() - begun < 2.0
        assert one.mesh._endpoint.link(mute.resident.id), "others may wait for it longer"


async def test_a_silent_peer_is_a_candidate_and_gets_a_second_link(town: Neighbourhood) -> None:
    one, two = await town.members(2)
    before = one.mesh._sessions.get(two.id)
    assert before is not None and one.mesh._reach.candidates() == []
    before.link._watch._liveness.silent = True
    assert one.mesh._reach.candidates() == [two.id]
    found = await one.mesh._reach.session(two.id)
    assert found is not before and found.link is not before.link and found is one.mesh._sessions.get(two.id)
    assert await one.ask(two) == (200, b"member1:hello")


async def test_callers_that_want_the_same_peer_share_one_link(town: Neighbourhood) -> None:
    founder = await town.founder()
    host = await town.joined(founder)
    client = await town.joined(founder, Role.CLIENT)
    await client.until(lambda: client.sees(host))
    answers = await asyncio.gather(*(client.ask(host, b"%d" % number) for number in range(10)))
    assert answers == [(200, b"member1:%d" % number) for number in range(10)]
    assert len(client.mesh._sessions.peers) == 2


async def test_loopback_of_others_is_not_dialled_from_elsewhere(town: Neighbourhood) -> None:
    founder = await town.founder()
    reach = founder.mesh._reach
    there = Address("192.0.2.1", 9)
    assert reach._sensible([NOBODY, there]) == [NOBODY, there]
    reach._addresses = lambda: [there]
    assert reach._sensible([NOBODY, there]) == [there]
    assert reach._sensible([NOBODY]) == [NOBODY], "it is all there is"


async def test_candidates_are_those_without_a_session(town: Neighbourhood) -> None:
    one, two, three = await town.members(3)
    assert one.mesh._reach.candidates() == []
    await one.mesh._reach.remember()
    await two.stop()
    await one.until(lambda: one.mesh._reach.candidates() == [two.id])
    assert one.mesh.state == "joined"


# --- ways beside the addresses ----------------------------------------------------------------------------------------


class Relays:
    """Knows a way through somebody else, which takes as long as the test wants."""

    def __init__(self, head_start_s: float | None, link: Link | None) -> None:
        self.wait_s = head_start_s
        self.link = link
        self.asked = 0

    def head_start_s(self, node: bytes, addresses: Sequence[Address]) -> float | None:
        return self.wait_s

    async def reach(self, node: bytes) -> Link:
        self.asked += 1
        if self.link is None:
            raise PeerUnreachable("through a relay")
        return self.link


async def apart(town: Neighbourhood) -> tuple[Reach, bytes, Link]:
    """How one node reaches another one that it is not linked with, and a link that is there all the same."""
    one, two = await town.members(2)
    peer = one.mesh._sessions.get(two.id)
    assert peer is not None
    del one.mesh._sessions._peers[two.id]
    one.mesh._sessions.session_on = lambda link: _given(link)  # type: ignore[method-assign, assignment]
    return one.mesh._reach, two.id, peer.link


async def _given(link: Any) -> Any:
    return link


async def _never(*_: object, **__: object) -> Link:
    return await asyncio.Event().wait()  # type: ignore[return-value]


async def _unreachable(*_: object, **__: object) -> Link:
    raise PeerUnreachable("192.0.2.1:9")


async def _refused(*_: object, **__: object) -> Link:
    raise PeerRefused("no", close_code=Close.NOT_ADMITTED)


async def _wrong(*_: object, **__: object) -> Link:
    raise WrongPeer("another", close_code=Close.WRONG_PEER)


@pytest.mark.parametrize("dial", [_never, _unreachable, _wrong])
async def test_a_relay_is_asked_when_nobody_answers(town: Neighbourhood, dial: Any) -> None:
    reach, node, link = await apart(town)
    reach.endpoint = SimpleNamespace(dial=dial)  # type: ignore[assignment]
    reach.relays = relays = Relays(0.02, link)
    begun = monotonic()
    assert await reach.session(node) is link  # type: ignore[comparison-overlap]
    assert relays.asked == 1
    assert (monotonic() - begun >= 0.02) is (dial is _never), "a failure is not waited for"


@pytest.mark.parametrize(("dial", "error"), [(_refused, PeerRefused), (_unreachable, PeerUnreachable)])
async def test_without_another_way_the_failure_of_the_dial_is_told(
    town: Neighbourhood, dial: Any, error: type[Exception]
) -> None:
    reach, node, link = await apart(town)
    reach.endpoint = SimpleNamespace(dial=dial)  # type: ignore[assignment]
    for relays in (Relays(None, link), Relays(0.0, None)):
        reach.relays = relays
        with pytest.raises(error):
            await reach.session(node)
    assert relays.asked == (dial is _unreachable)


async def test_a_peer_that_refuses_is_not_reached_through_a_relay(town: Neighbourhood) -> None:
    reach, node, link = await apart(town)

    async def dial(*_: object, **__: object) -> Link:
        await asyncio.sleep(0.01)
        raise PeerRefused("no", close_code=Close.NOT_ADMITTED)

    reach.endpoint = SimpleNamespace(dial=dial)  # type: ignore[assignment]
    reach.relays = relays = Relays(1.0, link)
    with pytest.raises(PeerRefused):
        await reach.session(node)
    assert relays.asked == 0


async def test_who_can_relay_may_come_while_nobody_answers(town: Neighbourhood) -> None:
    reach, node, link = await apart(town)
    reach.endpoint = SimpleNamespace(dial=_never)  # type: ignore[assignment]
    reach.relays = relays = Relays(None, link)
    asked = asyncio.ensure_future(reach.session(node))
    await asyncio.sleep(0)
    assert not asked.done() and relays.asked == 0
    relays.wait_s = 0.0
    somebody = SimpleNamespace(node=b"s" * 32, session=SimpleNamespace(addresses=()), role=Role.CLIENT)
    reach.admitted(somebody)  # type: ignore[arg-type]
    assert await asyncio.wait_for(asked, 2) is link  # type: ignore[comparison-overlap]


async def test_a_direct_link_is_taken_and_the_relay_left_alone(town: Neighbourhood) -> None:
    reach, node, link = await apart(town)
    reach.endpoint = SimpleNamespace(dial=lambda *_, **__: _given(link))  # type: ignore[assignment]
    reach.relays = relays = Relays(0.1, None)
    assert await reach.session(node) is link  # type: ignore[comparison-overlap]
    assert relays.asked == 0
    reach.relays = slow = Relays(0.0, link)

    async def dial(*_: object, **__: object) -> Link:
        await asyncio.sleep(0)
        return link

    slow.reach = _never  # type: ignore[method-assign, assignment]
    reach.endpoint = SimpleNamespace(dial=dial)  # type: ignore[assignment]
    assert await reach.session(node) is link  # type: ignore[comparison-overlap]


async def test_what_comes_at_the_same_moment_is_all_looked_at(town: Neighbourhood) -> None:
    """A relay that fails while the direct link comes up leaves nothing behind that nobody has heard of."""
    reach, node, link = await apart(town)
    both = asyncio.Event()

    async def dial(*_: object, **__: object) -> Link:
        await both.wait()
        return link

    async def fail(_: bytes) -> Link:
        await both.wait()
        raise PeerUnreachable("through a relay")

    reach.endpoint = SimpleNamespace(dial=dial)  # type: ignore[assignment]
    reach.relays = relays = Relays(0.0, link)
    relays.reach = fail  # type: ignore[method-assign]
    asyncio.get_running_loop().call_later(0.02, both.set)
    assert await reach.session(node) is link  # type: ignore[comparison-overlap]
    gc.collect()


async def test_callers_that_want_the_same_peer_share_one_way_through_a_relay(town: Neighbourhood) -> None:
    """Two links would come up, and the second would end the first with what has begun there."""
    reach, node, link = await apart(town)
    reach.endpoint = SimpleNamespace(dial=_never)  # type: ignore[assignment]
    reach.relays = relays = Relays(0.01, link)
    given_up = asyncio.ensure_future(reach.session(node))
    found = asyncio.gather(*(reach.session(node) for _ in range(5)))
    await asyncio.sleep(0)
    given_up.cancel()
    assert await found == [link] * 5
    assert relays.asked == 1 and reach._attempts == {}
