"""What travels on an `inquiry` stream: a stranger asks what the mesh of a node has to offer (protocol/12-public.md).

Asked before admission, so that a node can choose between meshes before it enters one. Claims are proven where they can
be: each statement is signed by the node it speaks of, and the transport has proven who answers.

    asking node                 asked node
    Inquiry        ---->
                   <----        Prospect, FIN
"""

from __future__ import annotations

from dataclasses import dataclass

from meshnode.wire.address import Address
from meshnode.wire.registry import LIMIT_NAME_CHARS, LIMIT_PROSPECT_STATEMENTS, LIMIT_STATEMENT_BYTES, Role
from meshnode.wire.schema import MAX_U16, MAX_U32, Bytes, Flag, ListOf, Text, UInt, Where, member
from meshnode.wire.signed import KEY_BYTES


@dataclass(frozen=True, slots=True)
class Inquiry:
    """What do you offer? `mesh` names the mesh that is meant, empty for whichever it is; `role` is the one in which the
    asking node would come.
    """

    version: int = member(0, UInt(MAX_U16))
    mesh: bytes = member(2, Bytes(0, KEY_BYTES, KEY_BYTES), b"")
    role: int = member(3, UInt(max(Role)), int(Role.MEMBER))


@dataclass(frozen=True, slots=True)
class Prospect:
    """The answer: the mesh, how full it is, and signed statements of nodes worth asking, the answering one's first.

    `open` says that strangers are admitted, `room` that this node would admit the asking one now. `observed` is where
    that one was seen.
    """

    version: int = member(0, UInt(MAX_U16))
    mesh: bytes = member(2, Bytes(KEY_BYTES, KEY_BYTES))
    name: str = member(4, Text(LIMIT_NAME_CHARS), "")
    open: bool = member(6, Flag(), False)
    room: bool = member(8, Flag(), False)
    nodes: int = member(10, UInt(MAX_U32), 0)
    clients: int = member(12, UInt(MAX_U32), 0)
    statements: tuple[bytes, ...] = member(14, ListOf(Bytes(1, LIMIT_STATEMENT_BYTES), LIMIT_PROSPECT_STATEMENTS), ())
    observed: Address | None = member(15, Where(), None)
