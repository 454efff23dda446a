"""What all parts of the membership machine share: who this node is, the table, the deadlines, and the way out."""

from __future__ import annotations

from dataclasses import dataclass, field

from meshnode.core.deadlines import Deadlines
from meshnode.core.effects import MemberChanged, Outbox
from meshnode.core.members import Members
from meshnode.core.randomness import Randomness
from meshnode.core.tuning import MembershipOptions
from meshnode.wire.statements import SHORT_ID_BYTES


@dataclass(slots=True)
class Context:
    """One machine's. `linked` are the members with a live link."""

    node: bytes
    options: MembershipOptions
    random: Randomness
    members: Members
    out: Outbox = field(default_factory=Outbox)
    deadlines: Deadlines = field(default_factory=Deadlines)
    linked: set[bytes] = field(default_factory=set)

    @property
    def short(self) -> bytes:
        """The first bytes of the own id, as they stand in lists of monitors."""
        return self.node[:SHORT_ID_BYTES]

    @property
    def size(self) -> int:
        """How many members there are, this node among them, as far as it knows."""
        return self.members.present + 1

    def changed(self, node: bytes) -> None:
        """Tell that the view of a member is another one."""
        record = self.members.get(node)
        if record is not None:
            self.out.add(MemberChanged(node, record.state))
