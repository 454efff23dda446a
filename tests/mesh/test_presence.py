from pathlib import Path

import pytest

from meshnode.mesh.options import MeshOptions
from meshnode.mesh.presence import Presence
from meshnode.wire.address import Address
from meshnode.wire.registry import VERSION, Role
from tests.mesh.members import Village

pytestmark = pytest.mark.anyio
OPTIONS = MeshOptions(name="box", software="meshnode 1")
SEEN = Address("198.51.100.7", 44)


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
    presence.seen_at(SEEN, by=b"a")
    await presence.refresh()
    assert SEEN not in presence.addresses
    presence.seen_at(SEEN, by=b"b")
    assert await presence.refresh() is True
    assert SEEN in presence.addresses


async def test_given_addresses_are_the_only_ones(tmp_path: Path) -> None:
    presence = Presence(Village(tmp_path).founder.vault, Role.MEMBER, MeshOptions(advertise=(SEEN,)))
    presence.bound = Address("0.0.0.0", 5)
    await presence.refresh()
    assert presence.addresses == (SEEN,)
