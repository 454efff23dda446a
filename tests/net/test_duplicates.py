from dataclasses import dataclass

from meshnode.identity import NodeId
from meshnode.net.duplicates import TOGETHER_S, LinkTable

SMALL, LARGE = NodeId(b"\1" * 32), NodeId(b"\2" * 32)


@dataclass(eq=False)
class Fake:
    peer: NodeId
    dialled: bool
    opened_at: float = 0.0
    silent: bool = False
    superseded: bool = False


def table(own: NodeId, *links: Fake) -> LinkTable[Fake]:
    made: LinkTable[Fake] = LinkTable(own)
    for link in links:
        made.add(link)
    return made


def test_both_ends_keep_the_link_of_the_smaller_dialler_in_whatever_order() -> None:
    for own, peer in ((SMALL, LARGE), (LARGE, SMALL)):
        mine, theirs = Fake(peer, dialled=True), Fake(peer, dialled=False)
        wanted = mine if own < peer else theirs
        for order in ((mine, theirs), (theirs, mine)):
            assert list(table(own, *order).kept()) == [wanted]
            assert [link.superseded for link in (mine, theirs)] == [link is not wanted for link in (mine, theirs)]


def test_a_second_link_with_the_same_dialler_replaces_the_first() -> None:
    old, new = Fake(SMALL, dialled=False), Fake(SMALL, dialled=False, opened_at=0.1)
    assert list(table(LARGE, old, new).kept()) == [new]
    assert old.superseded and not new.superseded


def test_a_peer_that_dials_much_later_has_forgotten_the_old_link() -> None:
    old, new = Fake(LARGE, dialled=True), Fake(LARGE, dialled=False, opened_at=TOGETHER_S + 1)
    assert list(table(SMALL, old, new).kept()) == [new]


def test_a_silent_link_gives_way() -> None:
    old, new = Fake(LARGE, dialled=True, silent=True), Fake(LARGE, dialled=False, opened_at=1.0)
    assert list(table(SMALL, old, new).kept()) == [new]


def test_when_the_kept_one_ends_the_other_is_kept() -> None:
    first, second = Fake(SMALL, dialled=True), Fake(SMALL, dialled=True)
    links = table(LARGE, first, second)
    links.remove(second)
    assert list(links.kept()) == [first] and not first.superseded
    links.remove(first)
    links.remove(first)
    assert links == {}


def test_peers_do_not_concern_each_other() -> None:
    one, other = Fake(SMALL, dialled=True), Fake(LARGE, dialled=True)
    assert list(table(NodeId(b"\3" * 32), one, other).kept()) == [one, other]
