"""From credentials to the part that a node plays: a member with its machine, or a client."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from time import monotonic

from meshnode.core.membership import Membership, MembershipOptions
from meshnode.identity import Identity, NodeId, verify
from meshnode.mesh.clients import ClientPart
from meshnode.mesh.member import MemberPart
from meshnode.mesh.part import Part
from meshnode.mesh.reach import Reach
from meshnode.mesh.sessions import Sessions
from meshnode.mesh.vault import Vault
from meshnode.wire import statements
from meshnode.wire.registry import Role
from meshnode.wire.statements import Statement
from meshnode.wire.values import WireError


async def make_part(
    role: Role,
    *,
    vault: Vault,
    identity: Identity,
    sessions: Sessions,
    reach: Reach,
    changed: Callable[[], None],
    counters: Counter[str],
    options: MembershipOptions,
) -> Part:
    """The part of a node in the mesh of the vault. A member begins a new incarnation, which is on the disk when this
    returns. Raises StateError, HomeNotWritable.
    """

    def admit(statement: Statement) -> Role | None:
        return proven_role(vault, statement)

    node = identity.node_id
    if role is Role.CLIENT:
        return ClientPart(
            node=node,
            admit=admit,
            verify=verify_bytes,
            sessions=sessions,
            returned=reach.found,
            changed=changed,
            counters=counters,
        )
    machine = Membership(
        node=node,
        incarnation=await asyncio.to_thread(vault.next_incarnation),
        sign=identity.sign,
        verify=verify_bytes,
        admit=admit,
        random=random.Random(),
        now=monotonic(),
        options=options,
    )
    return MemberPart(
        machine,
        node=node,
        vault=vault,
        sessions=sessions,
        reach=reach.session,
        changed=changed,
        counters=counters,
        known=vault.peers(),
    )


def proven_role(vault: Vault, statement: Statement) -> Role | None:
    """Whether an identity statement proves a membership of this mesh, and as what.

    In an open mesh, where it proves next to nothing, the policy of this node has to agree.
    """
    if not isinstance(statement.body, statements.Identity):
        return None
    try:
        role = Role(vault.admit(statement.body.certificate, statement.origin).role)
    except WireError:
        return None
    if vault.policy is not None and not vault.policy.heard(statement.origin, statement.body.addresses):
        return None
    return role


def verify_bytes(key: bytes, signature: bytes, message: bytes) -> bool:
    """`identity.verify` as wire.signed.Verify."""
    return verify(NodeId(key), signature, message)
