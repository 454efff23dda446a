import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.mesh.views import (
    HOSTS_A_MODEL,
    MOST_SUBSCRIBERS,
    SPARE_NODES,
    VIEW_BYTES,
    ClientView,
    Shown,
    Subscribers,
    choose,
)
from meshnode.wire.messages import View
from meshnode.wire.registry import LIMIT_VIEW_STATEMENTS, Role
from meshnode.wire.statements import Demand, Dynamic, Identity, ModelState, Offer, Statement, make, read
from meshnode.wire.values import WireError


def node(number: int) -> bytes:
    return number.to_bytes(32, "big")


def sign_as(origin: bytes) -> object:
    return lambda message: origin + bytes(32)


def verify(key: bytes, signature: bytes, message: bytes) -> bool:
    return signature == key + bytes(32)


def statement(origin: bytes, body: object, incarnation: int = 1, number: int = 1) -> Statement:
    return make(body, origin=origin, incarnation=incarnation, number=number, sign=sign_as(origin))  # type: ignore[arg-type]


def offer(name: str, **more: int) -> Offer:
    values = {"state": ModelState.READY, "context": 4096, "slots": 4} | more
    return Offer(name=name, content_hash=bytes(16), **values)


def identity(origin: bytes, name: str = "n", incarnation: int = 1, number: int = 1) -> Statement:
    return statement(origin, Identity(b"c" * 100, name=name), incarnation, number)


def shown(number: int, *offers: Offer, rtt_s: float = 0.01) -> Shown:
    origin = node(number)
    dynamic = statement(origin, Dynamic(models=offers)) if offers else None
    return Shown(origin, identity(origin), dynamic, rtt_s)


def origins(view: View) -> list[bytes]:
    return list(dict.fromkeys(read(signed).origin for signed in view.statements))


# --- the side of the member -----------------------------------------------------------------------------------


def test_for_each_model_the_best_hosts_are_shown() -> None:
    members = [shown(number, offer("a"), rtt_s=number / 1000) for number in range(1, 10)]
    members += [shown(20, offer("b"), rtt_s=5.0), shown(21, rtt_s=1.0), shown(22, rtt_s=0.5)]
    found = origins(choose(members))
    assert found[:2] == [node(1), node(20)]
    assert found[2:5] == [node(2), node(3), node(4)]
    assert set(found[5:]) == {node(5), node(6), node(7), node(8)}, "a few others, the near ones first"
    assert len(found) == HOSTS_A_MODEL + 1 + SPARE_NODES


def test_ready_hosts_with_a_free_slot_come_first() -> None:
    members = [
        shown(1, offer("a", state=ModelState.LOADING)),
        shown(2, offer("a", busy=4)),
        shown(3, offer("a"), rtt_s=0.2),
        shown(4, offer("a"), rtt_s=0.1),
    ]
    assert origins(choose(members)) == [node(4), node(3), node(2), node(1)]


def test_a_view_keeps_to_its_limits() -> None:
    many = [shown(number, offer(f"model-{number}")) for number in range(1, 100)]
    view = choose(many)
    assert len(view.statements) == LIMIT_VIEW_STATEMENTS
    large = [shown(number, *(offer(f"model-{number}-{n}" + "x" * 40) for n in range(9))) for number in range(1, 100)]
    view = choose(large)
    assert sum(map(len, view.statements)) <= VIEW_BYTES
    assert len(view.statements) > LIMIT_VIEW_STATEMENTS // 2
    assert choose([]) == View(())


def test_a_view_does_not_depend_on_the_order_of_members() -> None:
    members = [shown(number, offer(f"m{number % 5}"), rtt_s=number % 3) for number in range(1, 30)]
    mixed = members[:]
    random.Random(4).shuffle(mixed)
    assert set(choose(members).statements) == set(choose(mixed).statements)


def test_subscribers_are_told_at_once_and_then_of_changes() -> None:
    subscribers = Subscribers()
    views = [View((b"1",)), View((b"2",))]
    assert subscribers.due(lambda: pytest.fail("nobody asked"), 0.0) == []
    subscribers.subscribe(node(1), 2)
    assert subscribers.due(lambda: views[0], 10.0) == [(node(1), views[0])]
    assert subscribers.due(lambda: views[1], 11.0) == []
    assert subscribers.due(lambda: views[0], 12.5) == []
    assert subscribers.due(lambda: views[1], 12.6) == [(node(1), views[1])]
    subscribers.subscribe(node(2), 0)
    assert subscribers.due(lambda: views[1], 13.0) == [(node(2), views[1])]
    subscribers.gone(node(2))
    subscribers.gone(node(2))
    assert len(subscribers) == 1


def test_there_is_room_for_so_many_subscribers() -> None:
    subscribers = Subscribers()
    for number in range(MOST_SUBSCRIBERS):
        subscribers.subscribe(node(number), 1)
    assert subscribers.subscribe(node(0), 2) is True
    assert subscribers.subscribe(node(999), 1) is False


# --- the side of the client -----------------------------------------------------------------------------------


def client(refused: frozenset[bytes] = frozenset()) -> ClientView:
    return ClientView(admit=lambda found: None if found.origin in refused else Role.MEMBER, verify=verify)


def view_of(*statements: Statement) -> View:
    return View(tuple(each.signed for each in statements))


def test_a_client_knows_what_its_access_nodes_show() -> None:
    seen = client()
    one = view_of(identity(node(1), "one"), statement(node(1), Dynamic(models=(offer("a"),))))
    assert seen.received(b"x", one) is True
    assert seen.received(b"x", one) is False
    assert seen.received(b"y", view_of(identity(node(1), "one"), identity(node(2), "two"))) is True
    found = {each.node: each for each in seen.nodes(seen.access_nodes)}
    assert found[node(1)].identity.name == "one"
    assert found[node(1)].access == (b"x", b"y")
    assert found[node(1)].dynamic is not None and found[node(1)].dynamic.models[0].name == "a"
    assert found[node(2)].dynamic is None
    assert seen.access_nodes == (b"x", b"y")
    seen.lost(b"y")
    assert [each.node for each in seen.nodes(seen.access_nodes)] == [node(1)]
    seen.received(b"x", View(()))
    assert seen.nodes(seen.access_nodes) == []


def test_the_newest_statement_counts_whoever_tells_it() -> None:
    seen = client()
    seen.received(b"x", view_of(identity(node(1), "new", 2, 1)))
    seen.received(b"y", view_of(identity(node(1), "old", 1, 9)))
    [found] = seen.nodes(seen.access_nodes)
    assert (found.identity.name, found.incarnation) == ("new", 2)


def test_what_a_node_said_before_its_restart_is_over() -> None:
    seen = client()
    seen.received(b"x", view_of(identity(node(1), "n", 2), statement(node(1), Dynamic(models=(offer("a"),)), 1, 5)))
    assert seen.nodes(seen.access_nodes)[0].dynamic is None


def test_a_forged_statement_is_an_offence() -> None:
    seen = client()
    genuine = identity(node(1))
    forged = b"\1" + genuine.signed[1:]
    with pytest.raises(WireError):
        seen.received(b"x", View((forged,)))
    with pytest.raises(WireError):
        seen.received(b"x", View((b"nonsense",)))
    assert seen.nodes(seen.access_nodes) == []


def test_who_is_no_member_is_not_shown() -> None:
    seen = client(frozenset({node(2)}))
    seen.received(b"x", view_of(identity(node(1)), identity(node(2)), statement(node(3), Dynamic())))
    assert [each.node for each in seen.nodes(seen.access_nodes)] == [node(1)]


def test_other_kinds_are_passed_over() -> None:
    seen = client()
    seen.received(b"x", view_of(identity(node(1)), statement(node(1), Demand())))
    assert len(seen.nodes(seen.access_nodes)) == 1


def test_each_statement_is_verified_once() -> None:
    checked = []

    def counting(key: bytes, signature: bytes, message: bytes) -> bool:
        checked.append(key)
        return True

    seen = ClientView(admit=lambda _: Role.MEMBER, verify=counting)
    view = view_of(*(identity(node(number)) for number in range(30)))
    for access in (b"x", b"y", b"x"):
        seen.received(access, view)
    assert len(checked) == 30


@given(st.lists(st.binary(max_size=300), max_size=5))
def test_any_view_is_taken_or_refused(statements: list[bytes]) -> None:
    seen = client()
    try:
        seen.received(b"x", View(tuple(statements)))
    except WireError:
        assert seen.nodes(seen.access_nodes) == []
