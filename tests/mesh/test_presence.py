from pathlib import Path

import pytest

from meshnode.mesh import presence as module
from meshnode.mesh.options import MeshOptions
from meshnode.mesh.presence import Presence
from meshnode.wire.address import Address
from meshnode.wire.registry import LIMIT_CANDIDATES, VERSION, Nat, Role
from tests.mesh.members import Village

pytestmark = pytest.mark.anyio
OPTIONS = MeshOptions(name="box", software="meshnode 1")
SEEN = Address("11.7.100.7", 44)
ONE, TWO = Address("11.8.1.1", 9), Address("11.8.2.1", 9)
"""Where two peers are that tell what they see."""


async def test_who_this_node_is(tmp_path: Path) -> None:
    founder = Village(tmp_path).founder
    mine = founder.vault.credentials
    assert mine is not None
    presence = Presence(founder.vault, Role.MEMBER, OPTIONS)
    presence.bound = Address("127.0.0.1", 5)
    assert await presence.refresh() is True
    assert await presence.refresh() is False
    hello, identity = presence.hello(), presence.identity()
    assert hello is not None and identity is not None
    assert (hello.version, hello.mesh, hello.certificate, hello.invite) == (VERSION, mine.mesh, mine.certificate, b"")
    assert (hello.addresses, hello.name, hello.software) == ((Address("127.0.0.1", 5),), "box", "meshnode 1")
    assert (identity.certificate, identity.addresses, identity.name) == (mine.certificate, hello.addresses, "box")


async def test_in_no_mesh_it_has_nothing_to_say_but_an_invite(tmp_path: Path) -> None:
    stranger = Village(tmp_path).stranger("stranger")
    presence = Presence(stranger.vault, Role.CLIENT, OPTIONS)
    assert presence.hello() is None
    assert presence.identity() is None
    hello = presence.hello(mesh=b"m" * 32, invite=b"token")
    assert hello is not None
    assert (hello.mesh, hello.role, hello.invite, hello.certificate) == (b"m" * 32, Role.CLIENT, b"token", b"")


async def test_what_peers_see_is_named_once_two_agree(tmp_path: Path) -> None:
    presence = Presence(Village(tmp_path).founder.vault, Role.MEMBER, OPTIONS)
    presence.bound = Address("0.0.0.0", 5)
    await presence.refresh()
    presence.seen_at(SEEN, b"a", ONE)
    assert presence.look({b"a"}) is False
    assert SEEN not in presence.addresses and presence.observed == (SEEN,) and presence.nat is Nat.UNKNOWN
    presence.seen_at(SEEN, b"b", TWO)
    assert presence.look({b"a", b"b"}) is True
    assert SEEN in presence.addresses and presence.told_nat is Nat.CONE
    assert presence.look({b"a"}) is False, "what was known stays known"
    assert presence.candidates()[-1] == SEEN or SEEN in presence.addresses


async def test_another_network_is_another_nat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = ["192.168.1.7"]
    monkeypatch.setattr(module, "interface_hosts", lambda: list(hosts))
    presence = Presence(Village(tmp_path).founder.vault, Role.MEMBER, OPTIONS)
    presence.bound = Address("0.0.0.0", 5)
    await presence.refresh()
    presence.seen_at(SEEN, b"a", ONE)
    presence.seen_at(Address(SEEN.host, 45), b"b", TWO)
    assert presence.look({b"a", b"b"}) is True
    assert presence.nat is Nat.SYMMETRIC and presence.addresses == (Address("192.168.1.7", 5),)
    assert set(presence.candidates()) == {Address("192.168.1.7", 5), SEEN, Address(SEEN.host, 45)}
    hosts[0] = "10.0.0.7"
    assert await presence.refresh() is True
    assert presence.nat is Nat.UNKNOWN
    presence.seen_at(Address("10.0.0.7", 5), b"a", Address("10.0.0.1", 9))
    presence.look({b"a"})
    assert presence.nat is Nat.NONE


async def test_what_the_router_forwards_is_named_and_makes_the_nat_as_good_as_none(tmp_path: Path) -> None:
    mapped = [SEEN, Address("0.0.0.0", 5), Address("100::1", 3)]
    presence = Presence(Village(tmp_path).founder.vault, Role.MEMBER, MeshOptions(mapped=lambda: mapped))
    presence.bound = Address("0.0.0.0", 5)
    assert await presence.refresh() is True
    assert presence.mapped == (SEEN,) and SEEN in presence.addresses and presence.candidates()[0] == SEEN
    assert (presence.nat, presence.told_nat) == (Nat.UNKNOWN, Nat.NONE)
    mapped.clear()
    assert presence.look(set()) is True
    assert SEEN not in presence.addresses and presence.told_nat is Nat.UNKNOWN


async def test_nobody_can_have_it_name_what_is_no_address(tmp_path: Path) -> None:
    presence = Presence(Village(tmp_path).founder.vault, Role.MEMBER, OPTIONS)
    presence.bound = Address("0.0.0.0", 5)
    for host in ("224.0.0.1", "0.0.0.0", "169.254.1.1", "100::1", "255.255.255.255"):
        presence.seen_at(Address(host, 9), b"a", ONE)
        presence.seen_at(Address(host, 9), b"b", TWO)
    presence.look({b"a", b"b"})
    assert presence.observed == ()
    for number in range(40):
        presence.seen_at(Address("11.7.1.1", 1000 + number), bytes((number,)), Address(f"11.8.{number}.1", 9))
    presence.look({bytes((number,)) for number in range(40)})
    assert len(presence.candidates()) == LIMIT_CANDIDATES


async def test_given_addresses_are_the_only_ones(tmp_path: Path) -> None:
    presence = Presence(Village(tmp_path).founder.vault, Role.MEMBER, MeshOptions(advertise=(SEEN,)))
    presence.bound = Address("0.0.0.0", 5)
    await presence.refresh()
    assert presence.addresses == (SEEN,)
    assert presence.told_nat is Nat.NONE, "where the owner says that it is, it can be dialled"
