"""Machines of a benchmark: far ones are as far as was said, near ones are simply here."""

from __future__ import annotations

import socket

import pytest

from bench.line import LineShape
from bench.place import LOOPBACK, Place
from tests.lab.far_network import why_not

far = pytest.mark.skipif(bool(why_not()), reason=why_not())


def test_on_loopback_all_machines_are_this_one() -> None:
    with Place(["a", "b"]) as place:
        assert (place.is_far, place.address("a"), place.address("b")) == (False, LOOPBACK, LOOPBACK)
        assert place.one_way_s() < 0.001
        with place.inside("a"), socket.create_server((LOOPBACK, 0)) as server, place.inside("b"):
            socket.create_connection(server.getsockname(), timeout=5).close()


@far
def test_far_machines_have_lines_that_change() -> None:
    with Place(["a", "b"], LineShape(delay_s=0.005)) as place:
        assert place.is_far and place.address("a") != place.address("b")
        assert 0.005 <= place.one_way_s() < 0.0065
        place.shape(LineShape(delay_s=0.002))
        before = place.carried_bytes()
        assert 0.002 <= place.one_way_s() < 0.0035
        assert place.carried_bytes() - before >= 40 * 29, "twenty datagrams of one byte and their echoes"


def test_words_where_there_are_no_namespaces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.place.why_not", lambda: "nobody is root")
    with pytest.raises(RuntimeError, match="nobody is root"):
        Place(["a"], LineShape())
