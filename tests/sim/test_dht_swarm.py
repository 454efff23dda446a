"""What the hash table must reach, in simulation, with fixed seeds. Ten thousand nodes: `python -m bench.dht`."""

from __future__ import annotations

import pytest

from meshnode.core.dht_table import A_PREFIX_IN_THE_TABLE
from meshnode.wire.address import Address
from meshnode.wire.dht import DhtFound, DhtPeer, Provider, model_key, write_provider
from meshnode.wire.registry import LIMIT_DHT_RECORDS
from tests.sim.dht_swarm import MESH, Node, Outcome, Swarm, churn, crowd, found, searches, settled, signature


def offered(swarm: Swarm, models: int, each: int = 3) -> list[bytes]:
    """So many models, each offered by so many nodes, and a minute for it."""
    contents = [swarm.chance.randbytes(16) for _ in range(models)]
    nodes = swarm.chance.sample(swarm.alive, models * each)
    for number, node in enumerate(nodes):
        swarm.offer(node, contents[number // each])
    swarm.run(30)
    return contents


def within_bounds(swarm: Swarm, outcomes: list[Outcome]) -> None:
    ended = [outcome for outcome in outcomes if outcome.providers is not None]
    assert len(ended) >= 0.98 * len(outcomes), "a search ends, unless its node leaves"
    assert max(outcome.asked for outcome in ended) <= 60
    assert max(outcome.ended_at - outcome.began_at for outcome in ended) <= 5.0
    for node in swarm.alive:
        assert len(node.machine.records) <= node.machine.records._most
        assert len(node.machine._questions) <= 200


def test_a_fifth_of_the_nodes_leaves_in_an_hour_and_as_many_come() -> None:
    swarm = Swarm(31)
    settled(swarm, 500)
    contents = offered(swarm, 20)
    churn(swarm, 0.2, 700)
    outcomes = searches(swarm, contents, 300, 700)
    swarm.run(710)
    assert found(outcomes) >= 0.99, swarm.seed
    within_bounds(swarm, outcomes)


def test_half_of_the_nodes_vanish_at_once() -> None:
    swarm = Swarm(32)
    settled(swarm, 200)
    contents = offered(swarm, 10)
    for node in swarm.chance.sample(swarm.alive, 100):
        swarm.leave(node)
    outcomes = searches(swarm, contents, 100, 1)
    swarm.run(10)
    assert found(outcomes) >= 0.95, "the records are at eight nodes"
    swarm.run(700)
    again = searches(swarm, contents, 100, 10)
    swarm.run(20)
    assert found(again) >= 0.99, "offers have been said again"
    within_bounds(swarm, [*outcomes, *again])


@pytest.mark.parametrize("first", [False, True])
def test_a_thousand_sybils_of_one_network_around_a_key(first: bool) -> None:
    swarm = Swarm(33)
    settled(swarm, 300)
    honest = list(swarm.alive)
    content = swarm.chance.randbytes(16)
    if not first:
        swarm.offer(honest[7], content)
        swarm.run(10)
    rogues = {rogue.name for rogue in crowd(swarm, model_key(content), 1000)}
    if first:
        swarm.offer(honest[7], content)
    swarm.run(10)
    outcomes = [swarm.search(node, content) for node in swarm.chance.sample(honest, 100)]
    swarm.run(10)
    assert all(outcome.found for outcome in outcomes), swarm.seed
    within_bounds(swarm, outcomes)
    for node in honest:
        assert sum(contact.node in rogues for contact in node.machine.table) <= A_PREFIX_IN_THE_TABLE
    kept = sum(bool(node.machine.records.get(model_key(content), swarm.clock())) for node in honest)
    assert kept >= 6, "two of eight places at most are lost to one network"


def test_a_mesh_that_grows_from_one() -> None:
    swarm = Swarm(34, wire=True)
    first = swarm.add()
    content = swarm.chance.randbytes(16)
    swarm.offer(first, content)
    for _ in range(60):
        swarm.run(2)
        swarm.add(know=(first,))
    swarm.run(700)
    outcomes = [swarm.search(node, content) for node in swarm.alive if node is not first]
    swarm.run(10)
    assert all(outcome.found for outcome in outcomes), swarm.seed
    assert min(len(node.machine.table) for node in swarm.alive) >= 20


def test_client_only_nodes_find_and_are_in_no_table() -> None:
    swarm = Swarm(35)
    settled(swarm, 100)
    contents = offered(swarm, 5)
    clients = [swarm.add(serves=False) for _ in range(50)]
    swarm.run(60)
    outcomes = [swarm.search(client, contents[number % 5]) for number, client in enumerate(clients)]
    swarm.run(10)
    assert all(outcome.found for outcome in outcomes)
    names = {client.name for client in clients}
    assert not any(contact.node in names for node in swarm.alive for contact in node.machine.table)
    assert not any(len(client.machine.records) or client.counted["dht_finds"] for client in clients)


def poison(swarm: Swarm, key: bytes) -> list[bytes]:
    """Records that no honest node tells: forged, for another key, of another mesh, for a million years."""
    node = b"v" * 32
    good = Provider(key, node, MESH, int(swarm.clock()) + 600)
    bad = [
        Provider(b"x" * 32, node, MESH, good.expires_at),
        Provider(key, node, b"x" * 32, good.expires_at),
        Provider(key, node, MESH, good.expires_at + 10**6 * 31_557_600),
    ]
    sealed = [write_provider(each, lambda message: signature(node, message)) for each in bad]
    return [*sealed, write_provider(good, lambda message: signature(b"w" * 32, message))]


def test_a_third_of_the_nodes_is_hostile() -> None:
    """They lie in every way that there is, from networks of their own."""
    swarm = Swarm(36)
    settled(swarm, 300)
    contents = offered(swarm, 10)
    inside = (Address("127.0.0.1", 22), Address("10.0.0.1", 80))

    def lie(rogue: Node, asked: object) -> DhtFound | None:
        made_up = [DhtPeer(swarm.chance.randbytes(32), (swarm.random_address(),)) for _ in range(10)]
        house = [DhtPeer(swarm.chance.randbytes(32), inside)]
        circle = [DhtPeer(rogue.name, (rogue.address,))] * 5
        records = swarm.chance.choices(poison(swarm, model_key(swarm.chance.choice(contents))), k=2)
        kind = swarm.chance.randrange(4)
        return [
            None,
            DhtFound((*made_up, *house, *circle), (), b"t" * 16),
            DhtFound(tuple(made_up), tuple(records), b"t" * 16),
            DhtFound((), tuple(records * (LIMIT_DHT_RECORDS // 2)), b""),
        ][kind]

    rogues = swarm.chance.sample([node for node in swarm.alive if not node.offers], 100)
    for rogue in rogues:
        rogue.answer = lie
    honest = [node for node in swarm.alive if node.answer is None]
    outcomes = [swarm.search(node, swarm.chance.choice(contents)) for node in honest]
    swarm.run(10)
    assert found(outcomes) >= 0.99, swarm.seed
    within_bounds(swarm, outcomes)
    for outcome in outcomes:
        assert outcome.providers is not None
        assert {provider.node for provider in outcome.providers} <= {node.name for node in honest if node.offers}
    counted = sum((node.counted for node in honest), start=type(honest[0].counted)())
    for what in ("wrong_key", "wrong_mesh", "future", "forged"):
        assert counted[f"dht_records_{what}"] > 0, what
    assert counted["dht_addresses_refused"] > 0 and counted["dht_hostile"] > 0


def test_the_same_seed_is_the_same_run() -> None:
    sums = []
    for _ in range(2):
        swarm = Swarm(37)
        settled(swarm, 60)
        contents = offered(swarm, 5)
        churn(swarm, 0.5, 300)
        outcomes = searches(swarm, contents, 30, 300)
        swarm.run(310)
        sums.append((swarm.events, swarm.questions, [outcome.ended_at for outcome in outcomes]))
    assert sums[0] == sums[1]
