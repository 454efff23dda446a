"""Who is let into a real node, and who is not: one clear close code each, and a clear sentence from the command."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import pytest

from meshnode.errors import InviteInvalid, PeerRefused, WrongPeer
from meshnode.mesh.session import greet
from meshnode.wire import invites
from meshnode.wire.frames import LENGTH_BYTES
from meshnode.wire.messages import Hello, Probe, encode_message
from meshnode.wire.registry import (
    VERSION,
    Close,
    MessageId,
    Role,
    StreamType,
)
from tests.conftest import StartNode
from tests.e2e.meshes import SMALL
from tests.e2e.victims import Victim, a_victim, unharmed
from tests.lab.rogue_peer import RoguePeer, new_identity, rogue, what_it_says

pytestmark = [pytest.mark.engine, pytest.mark.anyio]


@pytest.fixture(scope="module")
def node(start_shared_node: StartNode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    with a_victim(start_shared_node, tmp_path_factory.mktemp("nice")) as node:
        yield node


@pytest.fixture
def victim(node: Victim) -> Iterator[Victim]:
    """The node, of which this must be true again after every test: see victims.unharmed."""
    with unharmed(node):
        yield node


# --- who may come in ------------------------------------------------------------------------------------------------


def flipped(token: str, at: int) -> str:
    signed = bytearray(invites.to_bytes(token))
    signed[at] ^= 1
    return invites.to_text(bytes(signed))


def resigned(victim: Victim, **changes: Any) -> str:
    """An invite of the node with something changed, signed by the node itself."""
    return invites.write(replace(what_it_says(victim.token), **changes), victim.identity.sign)


def expired_invite(victim: Victim) -> tuple[str, Close]:
    return resigned(victim, expires_at=int(time.time()) - 1), Close.INVITE_EXPIRED


def revoked_invite(victim: Victim) -> tuple[str, Close]:
    token = victim.invite()
    victim.control("/api/invite/revoke", {"id": what_it_says(token).id.hex()})
    return token, Close.INVITE_REVOKED


def forged_invite(victim: Victim) -> tuple[str, Close]:
    """Signed by another key, in the name of the node."""
    return invites.write(what_it_says(victim.token), new_identity().sign), Close.INVITE_INVALID


def invented_invite(victim: Victim) -> tuple[str, Close]:
    """Signed in due form, and not in the ledger."""
    return resigned(victim, id=bytes(8)), Close.INVITE_INVALID


def invite_to_another_mesh(victim: Victim) -> tuple[str, Close]:
    return resigned(victim, mesh=new_identity().node_id), Close.WRONG_MESH


def invite_for_clients(victim: Victim) -> tuple[str, Close]:
    return victim.invite(role="client"), Close.ROLE_REFUSED


REFUSED = [
    expired_invite,
    revoked_invite,
    forged_invite,
    invented_invite,
    invite_to_another_mesh,
    invite_for_clients,
]


@pytest.mark.parametrize("made", REFUSED, ids=lambda made: made.__name__)
async def test_invites_that_admit_nobody(victim: Victim, tmp_path: Path, made: Any) -> None:
    before = victim.counter("admissions_refused")
    token, code = await asyncio.to_thread(made, victim)
    invite = await asyncio.to_thread(what_it_says, victim.token)
    async with rogue(tmp_path) as peer:
        await peer.dial(victim.token)
        mesh = invite.mesh if code != Close.WRONG_MESH else new_identity().node_id
        with pytest.raises((PeerRefused, InviteInvalid)):
            await _greet_with(peer, token, mesh)
        assert await peer.was_closed() == code
        await victim.until_counted("admissions_refused", before + 1)


async def _greet_with(peer: RoguePeer, token: str, mesh: bytes) -> None:
    hello = Hello(VERSION, mesh, Role.MEMBER, invite=invites.to_bytes(token))
    await greet(peer.link, peer.vault, hello=hello, mesh_name="home")


async def test_invite_that_is_used_up(victim: Victim, tmp_path: Path) -> None:
    token = victim.invite(uses=1)
    async with rogue(tmp_path) as first, rogue(tmp_path) as second:
        await first.join(token)
        with pytest.raises(InviteInvalid):
            await second.join(token)
        assert await second.was_closed() == Close.INVITE_USED and first.is_in


async def test_certificate_of_somebody_else(victim: Victim, tmp_path: Path) -> None:
    """A stolen certificate is worth nothing without its key."""
    async with rogue(tmp_path) as owner, rogue(tmp_path) as thief:
        await owner.join(victim.token)
        assert owner.vault.credentials is not None
        with pytest.raises(PeerRefused):
            await thief.join(victim.token, invite=b"", certificate=owner.vault.credentials.certificate)
        assert await thief.was_closed() == Close.NOT_ADMITTED


async def test_key_that_is_not_the_issuers(victim: Victim, tmp_path: Path) -> None:
    """Whoever answers at the address of an invite must have the key of its issuer: the joiner leaves by itself."""
    async with rogue(tmp_path) as peer:
        with pytest.raises(WrongPeer) as caught:
            await peer.endpoint.dial(what_it_says(victim.token).addresses, expected=new_identity().node_id)
        assert caught.value.close_code == Close.WRONG_PEER


async def test_greetings_that_are_none(victim: Victim, tmp_path: Path) -> None:
    """Another version, another message, garbage: one clear code each."""
    hello = {0: VERSION, 2: bytes(32), 4: 1}
    frames = [
        ((MessageId.HELLO, msgpack.packb({**hello, 0: VERSION + 1})), Close.BAD_VERSION),
        ((MessageId.HELLO, msgpack.packb(hello)), Close.WRONG_MESH),
        ((MessageId.HELLO, b"\xc1"), Close.PROTOCOL_ERROR),
        ((MessageId.PROBE, encode_message(Probe(1))), Close.PROTOCOL_ERROR),
    ]
    for (number, body), code in frames:
        async with rogue(tmp_path) as peer:
            await peer.dial(victim.token)
            size = (2 + len(body)).to_bytes(LENGTH_BYTES, "big")
            peer.open(StreamType.CONTROL, size + number.to_bytes(2, "big") + body)
            assert await peer.was_closed() == code


def wrong_issuer(victim: Victim) -> tuple[str, Close]:
    """At the node's address, but of another key."""
    other = new_identity()
    said = replace(what_it_says(victim.token), issuer=other.node_id)
    return invites.write(said, other.sign), Close.WRONG_PEER


def used_invite(victim: Victim) -> tuple[str, Close]:
    """Another one came with it."""
    token = victim.invite(uses=1)

    async def use() -> None:
        with tempfile.TemporaryDirectory() as folder:
            async with rogue(Path(folder)) as peer:
                await peer.join(token)

    asyncio.run(use())
    return token, Close.INVITE_USED


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (used_invite, "used up"),
        (expired_invite, "expired"),
        (revoked_invite, "revoked"),
        (forged_invite, "forged"),
        (wrong_issuer, "meant"),
    ],
    ids=["used up", "expired", "revoked", "forged", "wrong key"],
)
def test_command_says_why_it_was_refused(victim: Victim, start_node: StartNode, made: Any, words: str) -> None:
    token, _ = made(victim)
    refused = start_node("--join", token, wait=False, environment=SMALL)
    out, err = refused.process.communicate(timeout=30)
    assert refused.process.returncode == 5, (out, err)
    assert words in out + err and "Traceback" not in out + err
    assert token not in out + err
    left = [file for file in refused.home.rglob("*") if file.is_file() and token.encode() in file.read_bytes()]
    assert left == [], "the token was written down"
