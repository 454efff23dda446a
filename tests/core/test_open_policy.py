"""Who is let into an open mesh: crowds, rates, bans, and what gossip may claim."""

from __future__ import annotations

import pytest

from meshnode.core.open_policy import OpenLimits, OpenPolicy, Prefix, PrefixRates, prefix_of
from meshnode.wire.address import Address
from meshnode.wire.registry import LIMIT_PUBLIC_IDENTITIES_A_PREFIX, Close, Role

HERE = Address("127.0.0.1", 9338)


def node(number: int) -> bytes:
    return number.to_bytes(32, "big")


def at(number: int, network: str = "8.8.8") -> Address:
    return Address(f"{network}.{number % 256}", 1000 + number)


def let_in(policy: OpenPolicy, number: int, address: Address, role: Role = Role.MEMBER) -> str:
    """What happens to one that comes: empty, or what is counted."""
    refusal = policy.attempt(address, 0.0) or policy.judge(node(number), address, role)
    if refusal is None:
        policy.entered(node(number), address, role)
    return "" if refusal is None else refusal.counter


@pytest.mark.parametrize(
    ("address", "prefix"),
    [
        (Address("8.8.8.8", 1), Prefix("8.8.8.0/24", False)),
        (Address("2600:1:2:3456::1", 1), Prefix("2600:1:2:3400::/56", False)),
        (Address("127.0.0.9", 1), Prefix("127.0.0.0/24", True)),
        (Address("192.168.3.4", 1), Prefix("192.168.3.0/24", True)),
        (Address("100.64.1.1", 1), Prefix("100.64.1.0/24", True)),
        (Address("100::7", 1), Prefix("100::/56", True)),
        (Address("fd00::1", 1), Prefix("fd00::/56", True)),
    ],
)
def test_prefixes(address: Address, prefix: Prefix) -> None:
    assert prefix_of(address) == prefix


def test_of_a_thousand_identities_of_one_network_four_come_in() -> None:
    policy = OpenPolicy(OpenLimits(attempts=2000))
    outcomes = [let_in(policy, number, at(number)) for number in range(1000)]
    assert outcomes.count("") == LIMIT_PUBLIC_IDENTITIES_A_PREFIX == 4
    assert outcomes.count("open_prefix_full") == 996
    # Whoever is in comes again, over another link as well; others have networks of their own.
    assert let_in(policy, 0, at(0)) == ""
    assert let_in(policy, 2000, at(1, "9.9.9")) == ""


def test_with_the_rates_of_a_node_the_crowd_is_not_even_judged() -> None:
    policy = OpenPolicy()
    outcomes = [let_in(policy, number, at(number)) for number in range(1000)]
    assert outcomes.count("") == 4
    assert outcomes.count("open_too_often") == 1000 - OpenLimits().attempts
    assert policy.attempt(at(1), 1.0) is not None
    assert policy.attempt(at(1), 10.0) is None, "the rate comes back with time"


def test_a_place_is_free_again_when_its_last_link_is_gone() -> None:
    policy = OpenPolicy()
    for number in range(4):
        assert let_in(policy, number, at(number)) == ""
    policy.entered(node(0), at(0), Role.MEMBER)
    policy.left(node(0))
    assert let_in(policy, 9, at(9)) == "open_prefix_full"
    policy.left(node(0))
    assert let_in(policy, 9, at(9)) == ""
    policy.left(node(77))
    assert policy.count(Role.MEMBER) == 4


def test_networks_that_are_not_global_have_a_wider_bound() -> None:
    policy = OpenPolicy()
    outcomes = [let_in(policy, number, HERE) for number in range(100)]
    assert outcomes.count("") == OpenLimits().near_identities == 64
    assert outcomes.count("open_prefix_full") == 36


def test_clients_and_members_have_bounds_of_their_own() -> None:
    policy = OpenPolicy(OpenLimits(clients=2, members=3))
    addresses = [Address(f"8.{number}.1.1", 1) for number in range(10)]
    assert [let_in(policy, n, addresses[n], Role.CLIENT) for n in range(3)] == ["", "", "open_clients_full"]
    assert not policy.room(Role.CLIENT) and policy.room(Role.MEMBER)
    members = [let_in(policy, n, addresses[n]) for n in range(3, 7)]
    assert members == ["", "", "", "open_members_full"]
    assert (policy.count(Role.CLIENT), policy.count(Role.MEMBER)) == (2, 3)
    refusal = policy.judge(node(99), Address("9.9.9.9", 1), Role.CLIENT)
    assert refusal is not None and refusal.code == Close.NO_ROOM


def test_who_is_known_is_counted_and_not_refused() -> None:
    policy = OpenPolicy(known=lambda found: found == node(50))
    for number in range(5):
        let_in(policy, number, at(number))
    assert let_in(policy, 50, at(50)) == ""
    assert let_in(policy, 51, at(51)) == "open_prefix_full"


# --- bans -----------------------------------------------------------------------------------------------------


def test_a_network_that_offends_thrice_is_kept_out_for_a_while() -> None:
    policy = OpenPolicy()
    policy.offended(at(1), 0.0)
    policy.offended(at(2), 1.0)
    assert policy.attempt(at(3), 2.0) is None
    policy.offended(at(3), 2.0)
    refusal = policy.attempt(at(4), 3.0)
    assert refusal is not None and (refusal.code, refusal.counter) == (Close.BANNED, "open_banned")
    assert policy.attempt(at(4, "9.9.9"), 3.0) is None
    assert policy.attempt(at(4), 2.0 + OpenLimits().ban_s + 1) is None


def test_offences_far_apart_are_no_pattern_and_a_home_network_is_not_kept_out() -> None:
    policy = OpenPolicy()
    for number in range(5):
        policy.offended(at(1), number * (OpenLimits().ban_s + 1))
        policy.offended(HERE, 0.0)
    assert policy.attempt(at(1), 5 * (OpenLimits().ban_s + 1)) is None
    assert policy.attempt(HERE, 1.0) is None


# --- gossip ---------------------------------------------------------------------------------------------------


def test_of_a_crowd_that_is_only_told_of_four_count() -> None:
    policy = OpenPolicy()
    believed = [policy.heard(node(number), [at(number)]) for number in range(1000)]
    assert sum(believed) == 4
    assert let_in(policy, 2000, at(200)) == "open_prefix_full", "told of or linked, a network has four places"


def test_naming_many_networks_helps_nobody() -> None:
    policy = OpenPolicy()
    for number in range(4):
        assert policy.heard(node(number), [at(number)])
    assert not policy.heard(node(9), [at(9), Address("9.9.9.9", 1)])
    assert not policy.heard(node(9), [HERE, at(9)])
    assert policy.heard(node(9), [HERE]), "who names no global address counts where it says it is"


def test_who_is_linked_is_believed_wherever_it_says_it_is() -> None:
    policy = OpenPolicy()
    for number in range(4):
        policy.heard(node(number), [at(number)])
    assert let_in(policy, 9, Address("9.9.9.9", 1)) == ""
    assert policy.heard(node(9), [at(9)])


def test_who_is_gone_from_the_gossip_gives_its_place_back() -> None:
    policy = OpenPolicy()
    for number in range(4):
        policy.heard(node(number), [at(number)])
    policy.retain({node(number) for number in range(3)})
    assert policy.heard(node(7), [at(7)])
    assert not policy.heard(node(8), [at(8)])
    # One that has moved leaves its old network.
    assert policy.heard(node(7), [Address("9.9.9.9", 1)])
    assert policy.heard(node(8), [at(8)])


def test_what_is_heard_of_is_bounded() -> None:
    policy = OpenPolicy(OpenLimits(heard=10))
    believed = [policy.heard(node(number), [Address(f"8.{number}.1.1", 1)]) for number in range(20)]
    assert sum(believed) == 10
    assert policy.heard(node(3), [Address("8.3.1.1", 1)])
    policy.retain(())
    assert policy.heard(node(15), [])


def test_rates_are_kept_for_a_bounded_number_of_networks() -> None:
    rates = PrefixRates(per_s=0.1, burst=1, near_per_s=1.0, near_burst=3)
    first = Prefix("8.8.8.0/24", False)
    assert rates.take(first, 0.0) and not rates.take(first, 0.0)
    assert [rates.take(Prefix("10.0.0.0/24", True), 0.0) for _ in range(4)] == [True, True, True, False]
    for number in range(5000):
        rates.take(Prefix(str(number), False), 0.0)
    assert rates.take(first, 0.0), "forgotten, so that the table cannot grow"
