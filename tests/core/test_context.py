import random

from meshnode.core.context import Context
from meshnode.core.effects import MemberChanged
from meshnode.core.members import Members
from meshnode.core.tuning import MembershipOptions
from meshnode.wire.registry import Role
from tests.core.alone import ME, identity, name, say


def test_changes_are_told_of_known_members_only() -> None:
    context = Context(ME, MembershipOptions(), random.Random(1), Members(ME, MembershipOptions()))
    assert context.size == 1 and context.short == ME[:8]
    context.members.admit(say(name(1), identity(1)), Role.MEMBER, 1.0)
    assert context.size == 2
    context.changed(name(1))
    context.changed(name(2))
    assert context.out.take() == [MemberChanged(name(1), "alive")]
