from hypothesis import given
from hypothesis import strategies as st

from meshnode.core import reconcile
from meshnode.core.members import Members
from meshnode.core.tuning import MembershipOptions
from meshnode.wire.messages import BUCKETS, Statements, decode_message, encode_message, message_id
from meshnode.wire.registry import LIMIT_STATEMENTS_A_FRAME, Role
from meshnode.wire.statements import Dynamic, Leave, Statement
from tests.core.alone import ME, identity, name, say

POOL = [say(name(index), identity(index)) for index in range(60)]
SOME = st.sets(st.sampled_from(range(60))).map(lambda chosen: [POOL[index] for index in chosen])


@given(SOME, SOME)
def test_three_messages_make_two_sets_one(one: list[Statement], other: list[Statement]) -> None:
    indexes = reconcile.differing(reconcile.digest(one), reconcile.digest(other))
    if not indexes:
        assert {each.id for each in one} == {each.id for each in other}
        return
    lacking, surplus = set(), set()
    for bucket in reconcile.list_buckets(indexes, other):
        more, extra = reconcile.compare(bucket, one)
        lacking |= set(more)
        surplus |= {each.id for each in extra}
    assert lacking == {each.id for each in other} - {each.id for each in one}
    assert surplus == {each.id for each in one} - {each.id for each in other}


def test_a_large_listing_is_cut_between_buckets_and_can_be_encoded() -> None:
    many = [say(name(index), Dynamic(), 1) for index in range(9000)]
    listings = list(reconcile.list_buckets(bytes(range(BUCKETS)), many))
    assert len(listings) == 3
    assert sorted(index for listing in listings for index in listing.indexes) == list(range(BUCKETS))
    for listing in listings:
        assert decode_message(message_id(listing), encode_message(listing)) == listing
    for want in reconcile.wants([each.id for each in many]):
        assert decode_message(message_id(want), encode_message(want)) == want


def test_what_a_listing_claims_outside_of_its_buckets_is_passed_over() -> None:
    wrong = next(each for each in POOL if each.id[0] != POOL[0].id[0])
    bucket = next(reconcile.list_buckets(POOL[0].id[:1], [POOL[0]]))
    forged = type(bucket)(bucket.indexes, bucket.ids + wrong.id)
    assert reconcile.compare(forged, [])[0] == [POOL[0].id]


def test_frames_hold_what_a_message_may() -> None:
    pieces = list(reconcile.frames(POOL * 3))
    assert sum(map(len, pieces)) == 180
    for piece in pieces:
        assert len(piece) <= LIMIT_STATEMENTS_A_FRAME
        assert encode_message(Statements(piece))
    assert list(reconcile.frames([])) == []


def test_shared_is_what_the_living_say_and_what_this_node_says() -> None:
    members = Members(ME, MembershipOptions())
    for index in range(3):
        members.admit(POOL[index], Role.MEMBER, 0.0)
    members.put(say(name(0), Leave(), 2), 0.0)
    members.change(name(1), "dead", 0.0)
    mine = say(ME, identity())
    assert {each.id for each in reconcile.shared(members, [mine])} == {POOL[0].id, POOL[2].id, mine.id}
