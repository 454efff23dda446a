import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.core.effects import Member
from meshnode.core.traversal import (
    HEAD_START_S,
    HIDDEN_HEAD_START_S,
    MOST_CANDIDATES,
    MOST_OF_A_HOST,
    MOST_RELAYS_TRIED,
    NEAR_HEAD_START_S,
    PUBLIC,
    RETRY_S,
    Retries,
    guess_role,
    guess_target,
    head_start_s,
    is_hidden,
    needs_relays,
    network_of,
    relays_for_me,
    relays_to,
    sensible_candidates,
    share_a_network,
)
from meshnode.wire.address import Address
from meshnode.wire.registry import Nat, Role
from meshnode.wire.statements import SHORT_ID_BYTES, Dynamic, Neighbour

HOME = Address("192.168.1.7", 9337)
OFFICE = Address("10.1.2.3", 9337)
OUTSIDE = Address("11.7.1.1", 9337)
ME, TARGET, NEAR, FAR, PLAIN = (bytes((number,)) * 32 for number in range(5))


def member(node: bytes, dynamic: Dynamic | None) -> Member:
    return Member(node, "alive", 1, Role.MEMBER, None, dynamic, None, True, True, None, None, 0.0, 0.0)


def relay(*near: tuple[bytes, float], nat: Nat = Nat.NONE, relay: bool = True) -> Dynamic:
    neighbours = tuple(Neighbour(node[:SHORT_ID_BYTES], round(rtt_s * 1e6)) for node, rtt_s in near)
    return Dynamic(neighbours=neighbours, relay=relay, nat=nat)


# --- networks and candidates ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "network"),
    [
        ("8.8.8.8", PUBLIC),
        ("2a00::1", PUBLIC),
        ("127.0.0.9", "loopback"),
        ("::1", "loopback"),
        ("10.255.0.1", "10.0.0.0/8"),
        ("172.31.0.1", "172.16.0.0/12"),
        ("172.32.0.1", PUBLIC),
        ("192.168.9.9", "192.168.0.0/16"),
        ("100.64.0.1", "100.64.0.0/10"),
        ("fd12:3456:789a:1::1", "fd12:3456:789a::/48"),
        ("169.254.1.1", None),
        ("fe80::1", None),
        ("224.0.0.251", None),
        ("ff02::fb", None),
        ("0.0.0.0", None),
        ("::", None),
        ("255.255.255.255", None),
        ("240.0.0.1", None),
        ("192.0.2.1", None),
        ("2001:db8::1", None),
        ("100::5", None),
        ("example.org", None),
        ("", None),
    ],
)
def test_the_network_of_a_host(host: str, network: str | None) -> None:
    assert network_of(host) == network


def test_private_candidates_only_where_this_node_has_such_a_network() -> None:
    loopback = Address("127.0.0.1", 9337)
    named = [loopback, HOME, OFFICE, OUTSIDE, Address("224.0.0.1", 5), Address("169.254.0.1", 5), Address("100::1", 3)]
    assert sensible_candidates(named, [OUTSIDE]) == []
    assert sensible_candidates(named, []) == [OUTSIDE]
    assert sensible_candidates(named, [Address("10.9.9.9", 1)]) == [OFFICE, OUTSIDE]
    assert sensible_candidates(named, [Address("127.0.0.1", 1)]) == [loopback, OUTSIDE]
    assert sensible_candidates(named, [HOME, OFFICE]) == [OUTSIDE], "its own sockets are nobody else's"


def test_few_ports_of_a_host_and_few_candidates() -> None:
    ports = [Address("11.7.1.1", port) for port in range(1, 30)]
    assert sensible_candidates(ports, []) == ports[:MOST_OF_A_HOST]
    hosts = [Address(f"11.7.{number}.1", 5) for number in range(30)]
    assert sensible_candidates([*hosts[:2], *hosts], []) == hosts[:MOST_CANDIDATES]


@given(st.lists(st.builds(lambda a, p: Address(str(a), p), st.ip_addresses(), st.integers(1, 65535)), max_size=16))
def test_whatever_a_peer_names_nothing_private_is_punched_from_outside(named: list[Address]) -> None:
    kept = sensible_candidates(named, [OUTSIDE])
    assert all(network_of(address.host) == PUBLIC for address in kept)
    assert set(kept) <= set(named) and len(kept) <= MOST_CANDIDATES


# --- who is behind what -----------------------------------------------------------------------------------------------


def test_how_long_a_direct_dial_is_alone() -> None:
    assert head_start_s(relay(), [OUTSIDE], [HOME]) == HEAD_START_S
    assert head_start_s(relay(nat=Nat.CONE), [OUTSIDE], [HOME]) == HIDDEN_HEAD_START_S
    assert head_start_s(relay(nat=Nat.SYMMETRIC), [HOME, OUTSIDE], [HOME]) == NEAR_HEAD_START_S
    assert head_start_s(None, [OFFICE], [HOME]) == HIDDEN_HEAD_START_S
    assert head_start_s(None, [], [HOME]) == HIDDEN_HEAD_START_S
    assert is_hidden(None, [HOME]) and not is_hidden(relay(nat=Nat.UNKNOWN), [HOME, OUTSIDE])
    assert share_a_network([HOME], [Address("192.168.200.1", 1)])
    assert not share_a_network([OUTSIDE], [OUTSIDE]), "the internet is no place to stand side by side"


@pytest.mark.parametrize(
    ("nat", "own", "needed"),
    [
        (Nat.CONE, [HOME], True),
        (Nat.SYMMETRIC, [HOME, OUTSIDE], True),
        (Nat.NONE, [HOME], False),
        (Nat.UNKNOWN, [HOME, OFFICE], True),
        (Nat.UNKNOWN, [HOME, OUTSIDE], False),
    ],
)
def test_who_needs_relays(nat: Nat, own: list[Address], needed: bool) -> None:
    assert needs_relays(nat, own) is needed


def test_ports_are_guessed_only_with_one_symmetric_end() -> None:
    guessing = {(mine, theirs): role for mine in Nat for theirs in Nat if (role := guess_role(mine, theirs))}
    assert guessing == {
        (Nat.SYMMETRIC, Nat.CONE): "opener",
        (Nat.SYMMETRIC, Nat.UNKNOWN): "opener",
        (Nat.CONE, Nat.SYMMETRIC): "prober",
        (Nat.UNKNOWN, Nat.SYMMETRIC): "prober",
    }


def test_ports_are_guessed_only_where_the_relay_sees_the_peer() -> None:
    assert guess_target([HOME, OUTSIDE], Address("11.7.1.1", 4)) == "11.7.1.1"
    assert guess_target([HOME], OUTSIDE) is None
    assert guess_target([OUTSIDE], Address("11.7.1.2", 4)) is None
    assert guess_target([OUTSIDE], None) is None
    assert guess_target([HOME], HOME) is None


# --- which relay ------------------------------------------------------------------------------------------------------


def test_the_shortest_way_over_a_relay_is_taken() -> None:
    members = {
        TARGET: member(TARGET, relay((NEAR, 0.05), (FAR, 0.01))),
        NEAR: member(NEAR, relay()),
        FAR: member(FAR, relay()),
        PLAIN: member(PLAIN, relay(relay=False)),
    }
    linked = {NEAR: 0.01, FAR: 0.02, PLAIN: 0.001, TARGET: 0.001}
    assert relays_to(TARGET, members, linked) == [FAR, NEAR]
    assert relays_to(TARGET, members, linked, avoid=[FAR]) == [NEAR, FAR]
    assert relays_to(TARGET, members, linked | {FAR: 0.2}) == [NEAR, FAR]


def test_a_relay_that_names_the_target_is_as_good_as_one_that_it_names() -> None:
    members = {NEAR: member(NEAR, relay((TARGET, 0.01))), FAR: member(FAR, relay())}
    assert relays_to(TARGET, members, {FAR: None, NEAR: 0.2}) == [NEAR, FAR]


def test_of_whom_nothing_is_known_may_relay_and_is_asked_last() -> None:
    linked = {bytes((number,)) * 32: 0.01 for number in range(10, 20)}
    members = {FAR: member(FAR, relay((TARGET, 0.5)))}
    found = relays_to(TARGET, members, linked | {FAR: 0.5})
    assert found[0] == FAR and len(found) == MOST_RELAYS_TRIED
    assert relays_to(TARGET, {}, {}) == []


def test_places_are_kept_and_taken_with_near_neighbours_without_nat() -> None:
    members = {
        NEAR: member(NEAR, relay(nat=Nat.CONE)),
        FAR: member(FAR, relay()),
        PLAIN: member(PLAIN, relay(relay=False)),
        ME: member(ME, None),
    }
    linked: dict[bytes, float | None] = {NEAR: 0.01, FAR: 0.2, PLAIN: 0.0, ME: None}
    assert relays_for_me(members, {NEAR, FAR}, linked, held=()) == [FAR, NEAR]
    assert relays_for_me(members, {NEAR}, linked, held=()) == [NEAR, FAR]
    assert relays_for_me(members, {NEAR}, linked, held=[FAR]) == [FAR, NEAR]
    assert relays_for_me(members, {NEAR}, linked, held=[FAR], avoid=[FAR]) == [NEAR, FAR]


# --- when again -------------------------------------------------------------------------------------------------------


def test_at_once_then_after_5_s_and_60_s_then_only_when_something_changes() -> None:
    retries = Retries(now=10.0)
    assert retries.due_at("here", 10.0) == 10.0
    retries.failed(11.0)
    assert retries.due_at("here", 11.0) == 11.0 + RETRY_S[0]
    retries.failed(16.0)
    assert retries.due_at("here", 16.0) == 16.0 + RETRY_S[1]
    retries.failed(76.0)
    assert retries.due_at("here", 1000.0) is None
    assert retries.due_at("there", 1000.0) == 1000.0
    assert retries.due_at("there", 1001.0) == 1000.0
    retries.failed(1002.0)
    assert retries.due_at("there", 1003.0) == 1002.0 + RETRY_S[1]


def test_a_peer_that_changes_all_the_time_is_not_looked_for_all_the_time() -> None:
    retries, attempts, now = Retries(0.0), 0, 0.0
    for turn in range(1000):
        now = turn * 0.1
        due_at = retries.due_at(turn, now)
        assert due_at is not None
        if due_at <= now:
            attempts += 1
            retries.failed(now)
    assert attempts <= 1 + now / RETRY_S[0]
