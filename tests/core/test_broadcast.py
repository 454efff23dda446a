import random

from meshnode.core.broadcast import DUPLICATES_OF_A_RING, MISSING, REMEMBERED, Broadcast
from meshnode.core.context import Context
from meshnode.core.effects import Send
from meshnode.core.members import Members
from meshnode.core.tuning import MembershipOptions
from meshnode.wire.messages import Graft, IHave, Prune, Statements
from meshnode.wire.statements import Demand
from tests.core.alone import ME, name, say

NEWS = [say(name(99), Demand(), number) for number in range(1, 40)]


def tree(peers: int) -> Broadcast:
    options = MembershipOptions()
    broadcast = Broadcast(Context(ME, options, random.Random(1), Members(ME, options)))
    for index in range(peers):
        broadcast.add(name(index))
    broadcast.clock(10.0)
    return broadcast


def sent(broadcast: Broadcast) -> list[tuple[bytes, object]]:
    broadcast.flush()
    return [(each.peer, each.message) for each in broadcast._context.out.take() if isinstance(each, Send)]


def test_whole_to_the_eager_ids_to_the_lazy() -> None:
    broadcast = tree(6)
    eager, lazy = list(broadcast.eager), list(broadcast.lazy)
    assert (len(eager), len(lazy)) == (3, 3)
    broadcast.spread(NEWS[0], eager[0], urgent=False)
    assert sent(broadcast) == [(peer, Statements((NEWS[0].signed,))) for peer in eager[1:]]
    assert broadcast._context.deadlines.next_at() == 10.0 + MembershipOptions().ihave_s
    broadcast.announce()
    assert sent(broadcast) == [(peer, IHave((NEWS[0].id,))) for peer in lazy]


def test_what_hurries_goes_whole_to_all() -> None:
    broadcast = tree(6)
    broadcast.spread(NEWS[0], name(0), urgent=True)
    assert {peer for peer, _ in sent(broadcast)} == {name(index) for index in range(1, 6)}


def test_one_message_for_what_came_together_shared_by_all_who_get_it() -> None:
    broadcast = tree(3)
    for news in NEWS[:3]:
        broadcast.spread(news, None, urgent=False)
    found = sent(broadcast)
    assert len(found) == 3 and len({id(message) for _, message in found}) == 1
    assert found[0][1] == Statements(tuple(news.signed for news in NEWS[:3]))


def test_who_repeats_itself_is_made_lazy() -> None:
    broadcast = tree(4)
    peer = next(iter(broadcast.eager))
    broadcast.spread(NEWS[0], None, urgent=False)
    sent(broadcast)
    for _ in range(DUPLICATES_OF_A_RING - 1):
        broadcast.duplicates(peer, [NEWS[0].id])
    assert sent(broadcast) == [] and peer in broadcast.eager
    broadcast.duplicates(peer, [NEWS[0].id])
    assert sent(broadcast) == [(peer, Prune())] and peer in broadcast.lazy


def test_repeated_floods_say_nothing_of_the_tree() -> None:
    broadcast = tree(4)
    peer = next(iter(broadcast.eager))
    broadcast.spread(NEWS[0], None, urgent=True)
    for _ in range(10):
        broadcast.duplicates(peer, [NEWS[0].id])
    assert peer in broadcast.eager


def test_who_brings_news_is_eager_and_who_prunes_is_lazy() -> None:
    broadcast = tree(5)
    peer = next(iter(broadcast.lazy))
    broadcast.spread(NEWS[0], peer, urgent=False)
    assert peer in broadcast.eager
    broadcast.pruned(peer)
    broadcast.pruned(name(77))
    assert peer in broadcast.lazy and name(77) not in broadcast.lazy


def test_what_was_announced_and_does_not_come_is_asked_for() -> None:
    broadcast = tree(5)
    first, second = list(broadcast.lazy)[:2]
    broadcast.announced(first, [NEWS[0].id, NEWS[1].id], 0.1, 10.0)
    broadcast.announced(second, [NEWS[0].id], 0.1, 10.0)
    broadcast.spread(NEWS[1], name(0), urgent=False)
    sent(broadcast)
    broadcast.graft_due(10.1)
    assert sent(broadcast) == []
    broadcast.graft_due(12.0)
    assert sent(broadcast) == [(first, Graft((NEWS[0].id,)))] and first in broadcast.eager
    broadcast.graft_due(13.0)
    assert sent(broadcast) == [(second, Graft((NEWS[0].id,)))]
    for at in range(14, 20):
        broadcast.graft_due(float(at))
    assert sent(broadcast) == [] and not broadcast._missing


def test_a_graft_is_served_and_makes_eager() -> None:
    broadcast = tree(5)
    peer = next(iter(broadcast.lazy))
    broadcast.spread(NEWS[0], name(0), urgent=False)
    broadcast.refuse(NEWS[1].id)
    sent(broadcast)
    broadcast.grafted(peer, [NEWS[0].id, NEWS[1].id, b"0" * 10])
    assert sent(broadcast) == [(peer, Statements((NEWS[0].signed,)))] and peer in broadcast.eager


def test_the_last_eager_one_is_replaced() -> None:
    broadcast = tree(5)
    for peer in list(broadcast.eager):
        broadcast.remove(peer)
    assert len(broadcast.eager) == 1 and len(broadcast.lazy) == 1


def test_memory_is_bounded() -> None:
    broadcast = tree(5)
    for number in range(3):
        ids = [bytes([number]) + at.to_bytes(9, "big") for at in range(4096)]
        broadcast.announced(name(0), ids, None, 10.0)
        for each in ids:
            broadcast.refuse(each)
    assert len(broadcast._missing) <= MISSING and len(broadcast._seen) <= REMEMBERED
