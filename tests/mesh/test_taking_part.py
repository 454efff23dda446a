from collections import Counter
from pathlib import Path

import pytest

from meshnode.core.tuning import MembershipOptions
from meshnode.mesh.clients import ClientPart
from meshnode.mesh.member import MemberPart
from meshnode.mesh.part import Part
from meshnode.mesh.reach import Reach
from meshnode.mesh.sessions import Sessions
from meshnode.mesh.taking_part import make_part, proven_role, verify_bytes
from meshnode.wire.address import Address
from meshnode.wire.messages import PeerEntry
from meshnode.wire.registry import Role
from meshnode.wire.statements import Demand, Identity, make
from tests.mesh.members import Node, Village

pytestmark = pytest.mark.anyio


async def part_of(node: Node, role: Role) -> Part:
    counters: Counter[str] = Counter()
    sessions = Sessions(
        node.vault,
        None,  # type: ignore[arg-type]
        hello=lambda: None,
        kept=lambda _: None,
        name="",
        software="",
        counters=counters,
    )
    reach = Reach(node.id, node.vault, sessions, lambda: ())
    return await make_part(
        role,
        vault=node.vault,
        identity=node.identity,
        sessions=sessions,
        reach=reach,
        changed=lambda: None,
        counters=counters,
        options=MembershipOptions(),
    )


async def test_each_life_of_a_member_is_a_new_incarnation(tmp_path: Path) -> None:
    node = Village(tmp_path).founder
    incarnations = []
    for _ in range(3):
        part = await part_of(node, Role.MEMBER)
        assert isinstance(part, MemberPart)
        incarnations.append(part.members().members[node.id].incarnation)
        await part.close()
    assert incarnations == sorted(set(incarnations))


async def test_a_member_begins_with_its_address_book(tmp_path: Path) -> None:
    node = Village(tmp_path).founder
    node.vault.remember_peers([PeerEntry(b"p" * 32, (Address("127.0.0.1", 9),))])
    part = await part_of(node, Role.MEMBER)
    assert isinstance(part, MemberPart)
    assert b"p" * 32 in part._machine._overlay._book
    await part.close()


async def test_a_client_has_no_machine_and_no_incarnation(tmp_path: Path) -> None:
    node = Village(tmp_path).founder
    before = node.vault.next_incarnation()
    assert isinstance(await part_of(node, Role.CLIENT), ClientPart)
    assert node.vault.next_incarnation() == before + 1


def test_a_role_is_proven_by_a_certificate_and_by_nothing_else(tmp_path: Path) -> None:
    village = Village(tmp_path)
    member, stranger = village.member("member"), village.stranger("stranger")
    mine = member.vault.credentials
    assert mine is not None
    identity = Identity(mine.certificate)
    proven = make(identity, origin=member.id, incarnation=1, number=1, sign=member.identity.sign)
    assert proven_role(village.founder.vault, proven) is Role.MEMBER
    borrowed = make(identity, origin=stranger.id, incarnation=1, number=1, sign=stranger.identity.sign)
    assert proven_role(village.founder.vault, borrowed) is None
    other = make(Demand(), origin=member.id, incarnation=1, number=1, sign=member.identity.sign)
    assert proven_role(village.founder.vault, other) is None


def test_signatures(tmp_path: Path) -> None:
    node = Village(tmp_path).founder
    assert verify_bytes(node.id, node.identity.sign(b"x"), b"x")
    assert not verify_bytes(node.id, node.identity.sign(b"x"), b"y")
