"""Inquiries: a stranger asks what an open mesh has to offer, before it enters (protocol/12-public.md).

    Inquiries   the side that is asked: one answer a stream, and only so many from one network
    ask         the side that asks, from a socket and with a key of its own: nothing is learned of who wants to know

What comes back is judged here: whoever answers has proven its key, each statement is signed by the node it is about,
and each of these nodes is a member of the mesh by its own word. Claims without such a statement are passed on as that.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic, time
from typing import Protocol

from meshnode.core.open_policy import PrefixRates, prefix_of
from meshnode.errors import PeerRefused, PeerUnreachable
from meshnode.identity import Identity, NodeId, verify
from meshnode.mesh.message_stream import MessageStream
from meshnode.mesh.stranger import VISIT_S, visit
from meshnode.mesh.vault import Vault
from meshnode.mesh.views import Shown, choose
from meshnode.net.address import is_virtual
from meshnode.net.stream import MeshStream, StreamReset
from meshnode.wire import open_meshes, statements
from meshnode.wire.address import Address
from meshnode.wire.frames import encode_stream_header
from meshnode.wire.inquiry import Inquiry, Prospect
from meshnode.wire.registry import (
    CLOSE_TEXTS,
    LIMIT_FRAME_BYTES,
    LIMIT_PROSPECT_STATEMENTS,
    VERSION,
    Close,
    MessageId,
    Reset,
    Role,
    StreamType,
)
from meshnode.wire.statements import Dynamic, Statement
from meshnode.wire.values import WireError

QUESTION_S = 3.0
QUESTION_BYTES = 128
ANSWERS_A_SECOND = 1.0
ANSWERS_AT_ONCE = 8
NEAR_ANSWERS_A_SECOND = 50.0
NEAR_ANSWERS_AT_ONCE = 200


# --- the side that is asked -------------------------------------------------------------------------------------------


class Offered(Protocol):
    """What is needed of mesh.Mesh."""

    def shown(self) -> list[Shown]: ...


class Inquiries:
    """Serves `inquiry` streams for an open mesh. `attach` it to the Mesh; before that, nobody gets an answer.

    `counters` gets: inquiries_answered, inquiries_too_often, inquiries_refused, inquiries_malformed.
    """

    def __init__(self, vault: Vault, node: bytes, counters: Counter[str]) -> None:
        self._vault = vault
        self._node = node
        self._counters = counters
        self._mesh: Offered | None = None
        self._rates = PrefixRates(
            per_s=ANSWERS_A_SECOND,
            burst=ANSWERS_AT_ONCE,
            near_per_s=NEAR_ANSWERS_A_SECOND,
            near_burst=NEAR_ANSWERS_AT_ONCE,
        )

    def attach(self, mesh: Offered) -> None:
        """The mesh that is asked about."""
        self._mesh = mesh

    async def serve(self, stream: MeshStream, header: bytes, role: Role | None) -> None:
        """One stream (mesh.streams.StreamHandler)."""
        address = Address.of(stream.link.address.host, stream.link.address.port)
        if not self._rates.take(prefix_of(address), monotonic()):
            self._refuse(stream, "inquiries_too_often", Reset.OVERLOAD)
            return
        messages = MessageStream(stream, {MessageId.INQUIRY: Inquiry}, frame_bytes=QUESTION_BYTES)
        try:
            question = await messages.receive(QUESTION_S)
        except (WireError, TimeoutError):
            self._refuse(stream, "inquiries_malformed", Reset.MALFORMED)
            return
        answer = None if question is None else self._answer(question, stream.link.peer, address)
        if answer is None:
            self._refuse(stream, "inquiries_refused", Reset.REFUSED)
            return
        messages.finish(answer)
        self._counters["inquiries_answered"] += 1

    def _answer(self, question: Inquiry, peer: bytes, address: Address) -> Prospect | None:
        mine, policy = self._vault.credentials, self._vault.policy
        if mine is None or policy is None or self._mesh is None or mine.role is not Role.MEMBER:
            return None
        if question.version != VERSION or (question.mesh and question.mesh != mine.mesh):
            return None
        role = Role.CLIENT if question.role == Role.CLIENT else Role.MEMBER
        shown = self._mesh.shown()
        return Prospect(
            version=VERSION,
            mesh=mine.mesh,
            name=mine.mesh_name,
            open=True,
            room=policy.judge(peer, address, role) is None,
            nodes=len(shown),
            clients=policy.count(Role.CLIENT),
            statements=_told(self._node, shown),
            observed=None if is_virtual(address) else address,
        )

    def _refuse(self, stream: MeshStream, counter: str, code: Reset) -> None:
        self._counters[counter] += 1
        stream.reset(code)


def _told(node: bytes, shown: Sequence[Shown]) -> tuple[bytes, ...]:
    """Statements of this node first, then of the hosts that a client would be shown."""
    own = [each for each in shown if each.node == node]
    found = [signed for each in own for signed in (each.identity.signed, *_dynamic(each))]
    found += choose(each for each in shown if each.node != node).statements
    return tuple(found[:LIMIT_PROSPECT_STATEMENTS])


def _dynamic(shown: Shown) -> tuple[bytes, ...]:
    return () if shown.dynamic is None else (shown.dynamic.signed,)


# --- the side that asks ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Stated:
    """A member of the mesh by its own signed word, and what it says that it has."""

    node: bytes
    addresses: tuple[Address, ...]
    dynamic: Dynamic | None


@dataclass(frozen=True, slots=True)
class Answered:
    """What `node`, whose key is proven, has answered from `address`: its claims, and what others have signed.

    `rtt_s` is the round trip to it, in seconds.
    """

    node: bytes
    address: Address
    prospect: Prospect
    rtt_s: float
    stated: tuple[Stated, ...]


async def ask(
    identity: Identity,
    addresses: Sequence[Address],
    *,
    expected: bytes | None = None,
    mesh: bytes = b"",
    role: Role = Role.MEMBER,
    host: str = "::",
    timeout_s: float = VISIT_S,
) -> Answered:
    """Ask whoever is at these addresses (`expected`, if given) about its mesh (`mesh`, if given).

    `host` is where the socket is bound. Raises PeerUnreachable; PeerRefused for one that has no open mesh to offer,
    or that answers with what is malformed or forged; WrongPeer.
    """
    targets = [address for address in addresses if not is_virtual(address)]
    wanted = None if expected is None else NodeId(expected)
    try:
        async with asyncio.timeout(timeout_s):
            async with visit(identity, targets, host=host, expected=wanted, timeout_s=timeout_s) as link:
                stream = link.open_stream()
                stream.write(encode_stream_header(StreamType.INQUIRY, b""))
                messages = MessageStream(stream, {MessageId.PROSPECT: Prospect}, frame_bytes=LIMIT_FRAME_BYTES)
                messages.finish(Inquiry(VERSION, mesh, role))
                prospect = await messages.receive()
                rtt_s = link.rtt_s or await link.echo()
                found = Address.of(link.address.host, link.address.port)
                return _judged(link.peer, found, prospect, rtt_s, mesh)
    except TimeoutError:
        raise PeerUnreachable(", ".join(map(str, targets))) from None
    except StreamReset as reset:
        if reset.code == Reset.OVERLOAD:
            raise PeerRefused("it is asked too often", close_code=Close.FLOOD) from None
        raise PeerRefused("it has no open mesh to offer", close_code=Close.NOT_ADMITTED) from None
    except WireError as error:
        raise PeerRefused(error.reason, close_code=error.code) from None
    except OSError as reason:
        code = getattr(reason, "code", 0)
        if code in CLOSE_TEXTS and code != Close.DONE:
            raise PeerRefused(CLOSE_TEXTS[code], close_code=code) from None
        raise PeerUnreachable(str(reason)) from None


def _judged(node: bytes, address: Address, prospect: Prospect | None, rtt_s: float, mesh: bytes) -> Answered:
    if prospect is None:
        raise WireError("an inquiry without an answer")
    if prospect.version != VERSION:
        raise WireError(f"version {prospect.version} of the protocol", Close.BAD_VERSION)
    if mesh and prospect.mesh != mesh:
        raise WireError("it belongs to another mesh", Close.WRONG_MESH)
    if not prospect.open or not _is_named(prospect):
        raise WireError("it has no open mesh to offer", Close.NOT_ADMITTED)
    return Answered(node, address, prospect, rtt_s, _stated(prospect))


def _is_named(prospect: Prospect) -> bool:
    """Whether the id is that of the name."""
    try:
        return open_meshes.open_mesh_id(prospect.name) == prospect.mesh
    except ValueError:
        return False


def _stated(prospect: Prospect) -> tuple[Stated, ...]:
    """Of each node its newest identity that holds, and what else it says. Raises WireError for what is forged."""
    identities: dict[bytes, Statement] = {}
    dynamics: dict[bytes, Statement] = {}
    for signed in prospect.statements:
        statement = statements.read(signed)
        if not statements.is_genuine(statement, verify):
            raise WireError("it shows a forged statement")
        known = identities if isinstance(statement.body, statements.Identity) else dynamics
        if known is dynamics and not isinstance(statement.body, Dynamic):
            continue
        if statement.origin not in known or statement.order > known[statement.origin].order:
            known[statement.origin] = statement
    now_s = time()
    found = []
    for node, identity in identities.items():
        try:
            checked = open_meshes.check_self_issued(
                identity.body.certificate, mesh=prospect.mesh, node=node, now_s=now_s, verify=verify
            )
        except WireError:
            continue  # of another mesh, or over: it counts for nothing
        if checked.role == Role.MEMBER:
            dynamic = dynamics.get(node)
            current = dynamic is not None and dynamic.incarnation >= identity.incarnation
            found.append(Stated(node, identity.body.addresses, dynamic.body if dynamic and current else None))
    return tuple(found)
