from meshnode.net.address import Address
from meshnode.net.path import AGAIN_S, BLACK_HOLE_TIMEOUTS, SizeSearch, candidates, detour_candidates
from meshnode.net.udp import Route

V4, V6 = Address("10.0.0.1", 1), Address("2001:db8::1", 1)


def test_sizes_worth_a_try() -> None:
    assert candidates(Route(65536, same_host=True), Address("127.0.0.1", 1)) == [16384, 1452]
    assert candidates(Route(1500, same_host=False), V4) == [1472, 1452]
    assert candidates(Route(1500, same_host=False), V6) == [1452]
    assert candidates(Route(9000, same_host=False), V4) == [8972, 1452]
    assert candidates(Route(1280, same_host=False), V6) == [1232]
    assert candidates(Route(1200, same_host=False), V6) == []
    assert candidates(Route(None, same_host=False), V4) == [1472, 1452]
    assert candidates(Route(65536, same_host=True), V4, 1452) == [1452]


def test_the_largest_that_arrives_is_used() -> None:
    search = SizeSearch([1452, 16384])
    assert (search.size, search.next_probe(0.0)) == (1200, 16384)
    assert search.next_probe(0.0) is None, "one probe at a time"
    assert search.resolve(16384, True)
    assert (search.size, search.next_probe(0.0)) == (16384, None)


def test_after_two_losses_the_next_smaller_one_is_tried() -> None:
    search = SizeSearch([1452, 8972])
    for _ in range(2):
        assert search.next_probe(0.0) == 8972
        assert not search.resolve(8972, False)
    assert search.next_probe(0.0) == 1452
    assert search.resolve(1452, True)
    assert search.size == 1452


def test_a_path_that_carries_nothing_larger() -> None:
    search = SizeSearch([1452])
    while (size := search.next_probe(0.0)) is not None:
        search.resolve(size, False)
    assert search.size == 1200


def test_a_black_hole_and_the_return() -> None:
    search = SizeSearch([1452])
    search.next_probe(0.0)
    search.resolve(1452, True)
    assert not search.timed_out(BLACK_HOLE_TIMEOUTS - 1, 1.0)
    assert search.timed_out(BLACK_HOLE_TIMEOUTS, 1.0)
    assert search.size == 1200
    assert not search.timed_out(BLACK_HOLE_TIMEOUTS, 1.0), "there is nothing left to give up"
    assert search.next_probe(2.0) is None
    assert search.next_probe(1.0 + AGAIN_S) == 1452


def test_a_late_answer_about_another_size_changes_nothing() -> None:
    search = SizeSearch([1452])
    search.next_probe(0.0)
    assert not search.resolve(16384, True)
    assert search.size == 1200


def test_sizes_on_a_detour() -> None:
    here = Route(65536, same_host=True)
    assert detour_candidates(here, Address("127.0.0.1", 1), 9, 16384) == [1443], "whatever the first part carries"
    assert detour_candidates(Route(1500, same_host=False), V4, 9, 16384) == [1443]
    assert detour_candidates(Route(1280, same_host=False), V6, 9, 16384) == [1223]
    assert detour_candidates(Route(1250, same_host=False), V6, 9, 16384) == []
    assert detour_candidates(Route(1500, same_host=False), V4, 9, 1300) == [1291]
    assert detour_candidates(here, V4, 0, 16384) == candidates(here, V4, 16384), "a socket of its own adds nothing"
