from meshnode.core import reconcile
from meshnode.core.events import PeerDown, PeerUp, Received
from meshnode.wire.messages import BUCKETS, Bucket, Digest, ProbeAck, Statements, Want
from meshnode.wire.registry import Close
from meshnode.wire.statements import Dynamic
from tests.core.alone import ME, Alone, identity, monitored_by, name, say

NOTHING = reconcile.digest([])


def test_a_node_that_comes_asks_the_first_it_meets() -> None:
    alone = Alone()
    alone.give(PeerUp(name(0), 0.01))
    assert [peer for peer, _ in alone.sent(Digest)] == [name(0)]
    alone.give(PeerUp(name(1), 0.01))
    assert alone.sent(Digest) == []


def test_it_gets_everything_and_gives_what_the_other_lacks() -> None:
    alone = Alone()
    alone.give(PeerUp(name(0), 0.01))
    theirs = [say(name(index), identity(index)) for index in range(20)]
    effects = []
    for bucket in reconcile.list_buckets(bytes(range(BUCKETS)), theirs):
        effects += alone.give(Received(name(0), bucket))
    (want,) = [message for _, message in alone.sent(Want, effects)]
    assert set(want.ids) == {each.id for each in theirs}
    alone.hear(name(0), *theirs)
    assert len(alone.machine.snapshot().members) == 21


def test_who_asks_gets_a_listing_then_what_it_wants_in_pieces() -> None:
    alone = Alone()
    peer = alone.meet(1)[0]
    for index in range(1, 90):
        alone.hear(peer, say(name(index), identity(index)), say(name(index), monitored_by(ME), 2))
        alone.now += 0.2
    effects = alone.give(Received(peer, NOTHING))
    listings = [message for _, message in alone.sent(Bucket, effects)]
    ids = [listing.ids[at : at + 10] for listing in listings for at in range(0, len(listing.ids), 10)]
    assert len(ids) >= 180
    effects = alone.give(Received(peer, Want(tuple(ids)))) + alone.wait(0.05)
    pieces = [message.statements for to, message in alone.sent(Statements, effects) if to == peer]
    assert {signed for piece in pieces for signed in piece} >= {
        each.signed for each in alone.machine._shared() if each.id in ids
    }
    assert all(len(piece) <= 48 for piece in pieces)


def test_equal_digests_are_answered_with_silence() -> None:
    alone = Alone()
    peer = alone.meet(1)[0]
    effects = alone.give(Received(peer, reconcile.digest(alone.machine._shared())))
    assert alone.sent(Bucket, effects) == []


def test_half_a_minute_later_it_looks_again() -> None:
    alone = Alone()
    peer = alone.meet(1)[0]
    alone.give(Received(peer, Bucket(b"\0", b"")))
    times = []
    for _ in range(400):
        times += [alone.now for _ in alone.sent(Digest, alone.wait(0.3))]
        alone.give(Received(peer, ProbeAck(0)))
    assert 3 <= len(times) <= 7


def test_a_listing_that_was_not_asked_for_is_counted() -> None:
    alone = Alone()
    alone.meet(2)
    effects = alone.give(Received(name(1), Bucket(b"\0", b"\0" * 10)))
    assert alone.counts["messages_unexpected"] == 1 and alone.sent(Want, effects) == []


def test_half_an_id_breaks_the_rules() -> None:
    alone = Alone()
    alone.meet(1)
    alone.give(Received(name(0), Bucket(b"\0", b"\0" * 15)))
    assert alone.closed() == {name(0): Close.PROTOCOL_ERROR}


def test_digests_are_answered_at_a_bounded_rate() -> None:
    alone = Alone()
    alone.meet(1)
    answered = sum(bool(alone.sent(Bucket, alone.give(Received(name(0), NOTHING)))) for _ in range(50))
    assert answered <= 4 and alone.counts["digests_over_budget"] >= 46


def test_what_is_wanted_twice_does_not_pile_up_and_goes_with_the_link() -> None:
    alone = Alone()
    alone.meet(1)
    for _ in range(200):
        alone.machine._sync.want(name(0), [bytes([at % 256]) * 10 for at in range(1000)], alone.now)
    assert len(alone.machine._sync._sending[name(0)]) <= alone.machine._options.most_statements
    alone.give(PeerDown(name(0)))
    assert not alone.machine._sync._sending


def test_who_speaks_of_strangers_is_asked() -> None:
    alone = Alone()
    peer = alone.meet(1)[0]
    alone.give(Received(peer, Bucket(b"\0", b"")))
    alone.hear(peer, say(name(70), Dynamic(), 4))
    assert [to for to, _ in alone.sent(Digest, alone.wait(1.5))] == [peer]
