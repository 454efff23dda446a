import time

import pytest

from meshnode.mesh.upkeep import IDLE_S, Upkeep
from meshnode.wire.registry import LIMIT_CERTIFICATE_TTL_S, Role
from meshnode.wire.statements import Dynamic
from tests.mesh.neighbourhood import Neighbourhood, Resident, offer

pytestmark = pytest.mark.anyio


def upkeep_of(resident: Resident, later_s: float = 0.0) -> Upkeep:
    """That of a running node, with a clock that may be ahead."""
    mesh = resident.mesh
    assert mesh._part is not None
    upkeep = mesh._upkeep(mesh._part)
    upkeep._clock = lambda: time.time() + later_s
    return upkeep


async def test_round_trips_are_handed_on(town: Neighbourhood) -> None:
    one, two = await town.members(2)
    await one.mesh.ping(two.id, 1)
    upkeep_of(one).sample()
    seen = one.sees(two)
    assert seen is not None and seen.rtt_s is not None and seen.rtt_s > 0


async def test_a_round_writes_the_book_and_keeps_what_is_needed(town: Neighbourhood) -> None:
    one, two = await town.members(2)
    for peer in one.mesh._sessions.peers:
        peer.used_at -= 2 * IDLE_S
    await upkeep_of(one).round()
    assert [entry.node for entry in one.vault.peers()] == [two.id]
    assert one.mesh._sessions.get(two.id) is not None


async def test_new_addresses_are_told(town: Neighbourhood) -> None:
    one, two = await town.members(2)
    before = one.mesh.addresses
    one.mesh._presence.bound = two.mesh.addresses[0]
    await upkeep_of(one).round()
    assert one.mesh.addresses != before
    await two.until(lambda: (seen := two.sees(one)) and seen.identity.addresses == one.mesh.addresses)


async def test_a_link_that_a_client_made_for_one_request_ends_when_it_is_idle(town: Neighbourhood) -> None:
    members = await town.members(5)
    for member in members:
        member.mesh.publish(Dynamic(models=(offer(member.name),)))  # a View names only a few that serve nothing
    client = await town.joined(members[0], Role.CLIENT)
    for member in members:
        await client.until(lambda member=member: client.sees(member))
        await client.ask(member)
    part = client.mesh._part
    assert part is not None
    hosts = [member.id for member in members if not part.needs(member.id)]
    assert hosts
    await upkeep_of(client).round()
    assert all(client.mesh._sessions.get(host) for host in hosts)
    for peer in client.mesh._sessions.peers:
        peer.used_at -= 2 * IDLE_S
    await upkeep_of(client).round()
    await client.until(lambda: {peer.node for peer in client.mesh._sessions.peers} & set(hosts) == set())
    assert client.mesh.counters["links_idle"] == len(hosts)
    assert (await client.ask(next(member for member in members if member.id in hosts)))[0] == 200


async def test_a_membership_that_has_expired_ends_the_link(town: Neighbourhood) -> None:
    one, two = await town.members(2)
    before = one.mesh._sessions.get(two.id)
    await upkeep_of(one, later_s=LIMIT_CERTIFICATE_TTL_S + 3600).round()
    assert one.mesh.counters["links_expired"] == 1
    await one.until(lambda: one.mesh._sessions.get(two.id) is not before)


async def test_a_founder_renews_itself_and_others_ask(town: Neighbourhood, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = await town.members(2)
    mine = two.vault.credentials
    later_s = LIMIT_CERTIFICATE_TTL_S - 86_400
    for resident in (one, two):
        monkeypatch.setattr(resident.vault, "_clock", lambda: time.time() + later_s)
    await upkeep_of(one).round()
    await upkeep_of(two).round()
    await two.until(lambda: two.vault.credentials != mine)
    renewed = two.vault.credentials
    assert mine is not None and renewed is not None and renewed.ends_at > mine.ends_at
    await one.until(lambda: (seen := one.sees(two)) and seen.identity.certificate == renewed.certificate)
