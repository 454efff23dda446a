"""Members of the calls are checked before anything is done, and arrive as plain values."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import pytest

from meshnode.api.mesh_control import mesh_commands, no_mesh, qr_svg
from meshnode.errors import BadRequest, NotInMesh

pytestmark = pytest.mark.anyio


class FakeControls:
    """Answers with what it was asked."""

    def __getattr__(self, name: str) -> Any:
        async def answer(*given: object, **named: object) -> dict[str, Any]:
            return {"call": name, "given": list(given), "token": "mn1abc", **named}

        return answer


COMMANDS = mesh_commands(FakeControls())


async def test_an_invite_has_sensible_defaults() -> None:
    assert await COMMANDS["/api/invite"]({}) == {
        "call": "invite",
        "given": [],
        "token": "mn1abc",
        "role": "member",
        "ttl_s": 86_400,
        "uses": 5,
        "may_invite": False,
    }


@pytest.mark.parametrize(
    ("path", "members", "given"),
    [
        ("/api/invite/revoke", {"id": "0a"}, ["0a"]),
        ("/api/join", {"token": "mn1abc"}, ["mn1abc"]),
        ("/api/leave", {"x": 1}, []),
        ("/api/ping", {"node": "studio"}, ["studio", 4]),
        ("/api/ping", {"node": "studio", "count": 100}, ["studio", 100]),
        ("/api/pair", {}, [None, None]),
        ("/api/pair", {"code": "7-amber-fox"}, ["7-amber-fox", None]),
        ("/api/pair", {"code": "7-amber-fox", "at": "192.0.2.7:9337"}, ["7-amber-fox", "192.0.2.7:9337"]),
    ],
)
async def test_members_arrive(path: str, members: dict[str, object], given: list[object]) -> None:
    assert (await COMMANDS[path](members))["given"] == given


@pytest.mark.parametrize(
    ("path", "members"),
    [
        ("/api/invite", {"role": "admin"}),
        ("/api/invite", {"role": 1}),
        ("/api/invite", {"ttl_s": 0}),
        ("/api/invite", {"ttl_s": 1e9}),
        ("/api/invite", {"ttl_s": 10**9}),
        ("/api/invite", {"uses": True}),
        ("/api/invite", {"uses": "5"}),
        ("/api/invite/revoke", {}),
        ("/api/join", {"token": ""}),
        ("/api/join", {"token": "x" * 10_000}),
        ("/api/join", {"token": ["mn1"]}),
        ("/api/ping", {"node": "a", "count": 101}),
        ("/api/pair", {"code": 7}),
        ("/api/pair", {"code": "7-amber-fox", "at": ["192.0.2.7:9337"]}),
    ],
)
async def test_members_out_of_bounds_are_refused(path: str, members: dict[str, object]) -> None:
    with pytest.raises(BadRequest):
        await COMMANDS[path](members)


async def test_an_invite_comes_with_its_picture_when_asked_for() -> None:
    made = await COMMANDS["/api/invite"]({"qr": True})
    assert made["qr_svg"] == qr_svg("mn1abc")
    for other in ("yes", 1, False):
        assert "qr_svg" not in await COMMANDS["/api/invite"]({"qr": other})


def test_the_picture_is_an_image_that_loads_nothing_and_runs_nothing() -> None:
    picture = ElementTree.fromstring(qr_svg("mn1" + "a" * 400))
    assert picture.tag == "{http://www.w3.org/2000/svg}svg"
    side = picture.attrib["viewBox"].split()
    assert side[:2] == ["0", "0"] and side[2] == side[3] and int(side[2]) > 57
    assert {element.tag.rpartition("}")[2] for element in picture.iter()} == {"svg", "path"}
    assert "href" not in qr_svg("mn1abc") and "style" not in qr_svg("mn1abc")
    assert qr_svg("mn1abc") == qr_svg("MN1ABC") != qr_svg("mn1abd")


async def test_a_node_without_a_mesh_says_why() -> None:
    commands = mesh_commands(no_mesh(lambda: NotInMesh("started with --solo")))
    with pytest.raises(NotInMesh, match="solo"):
        await commands["/api/leave"]({})
