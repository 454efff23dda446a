"""The view Mesh in a real browser: beside real nodes that come and go, and over invented meshes of any size."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise
from typing import Any

import pytest

from tests.console.fake_mesh import (
    FakeMesh,
    a_model,
    a_peer,
    a_request,
    a_split,
    a_status,
    fake_mesh,
    node_id,
)
from tests.console.pages import overflows
from tests.e2e.meshes import SMALL, invite_of

pytestmark = [pytest.mark.engine, pytest.mark.timeout(120)]

ENOUGH_FOR_A_NODE_S = 30
HOSTILE = (
    "<img src=x onerror=alert(1)>",
    '"><script>alert(1)</script>',
    "javascript:alert(1)",
    "${alert(1)}{{constructor.constructor('alert(1)')()}}",
    "'-alert(1)-'\"><svg/onload=alert(1)>",
    "</title></style></textarea><iframe srcdoc='<script>alert(1)</script>'>",
    "\u202egnp.exe\u202c\u2066hidden\u2069",
    "\u200b\u200d\ufeff",
    "__proto__",
    "x\x00\x1b[31mred\x07",
    "a\u0301" * 300,
    "W" * 4000,
    "",
)


@pytest.fixture
def fake() -> Iterator[Any]:
    """`fake(status)` is a running FakeMesh."""
    with ExitStack() as stack:
        yield lambda status: stack.enter_context(fake_mesh(status))


def peer(page: Any, number: int) -> Any:
    """The node of the picture with that number."""
    return page.locator(f'.topology [data-id="{node_id(number)}"]')


def row(page: Any, name: str) -> Any:
    """The row of the table that begins with that name."""
    return page.locator("tbody tr", has_text=re.compile(rf"^{name}"))


def table(page: Any) -> list[str]:
    """The names in the table, in its order."""
    return [text.strip() for text in page.locator("tbody .pick").all_inner_texts()]


# --- real nodes -------------------------------------------------------------------------------------------------


def test_a_node_that_joins_appears_and_one_that_goes_fades(start_node, open_console) -> None:
    founder = start_node("--name", "founder", environment=SMALL)
    page = open_console(founder, "mesh")
    page.get_by_text("No other machine is here yet").wait_for()
    assert page.get_by_role("link", name="Invite a machine").get_attribute("href") == "#/invite"
    second = start_node("--name", "second", "--join", invite_of(founder), environment=SMALL)
    button = page.locator(".topology .peer", has_text="second")
    button.wait_for(timeout=ENOUGH_FOR_A_NODE_S * 1000)
    assert row(page, "second").inner_text().split("\t")[1].strip() == "idle"
    assert page.locator(".topology .edge.is-direct text").text_content().endswith("ms")

    button.click()
    panel = page.get_by_role("region", name="The node second")
    assert second.status()["node"]["short"] in panel.inner_text()
    panel.get_by_role("button", name="Ping").click()
    panel.locator(".rtts li").first.wait_for()
    assert all(text.endswith("ms") for text in panel.locator(".rtts li").all_inner_texts())

    second.end()
    panel.get_by_text("second has left the mesh").wait_for(timeout=ENOUGH_FOR_A_NODE_S * 1000)
    assert "meshnode" in panel.inner_text(), "what was known of it stays"
    button.wait_for(state="detached", timeout=ENOUGH_FOR_A_NODE_S * 1000)


def test_a_split_is_a_band_of_layers_over_its_nodes(start_node, open_console) -> None:
    worker = start_node("--name", "lender", environment=SMALL)
    joining = ("--join", invite_of(worker))
    host = start_node("--name", "keeper", "--model", "demo", "--split", *joining, environment=SMALL)
    page = open_console(host, "mesh")
    page.locator(".band path").first.wait_for(timeout=ENOUGH_FOR_A_NODE_S * 1000)
    plan = host.status()["models"][0]["plan"]
    first = plan["host_layers"]
    lent = f"layers {first + 1}–{first + plan['stages'][0]['layers']}"
    assert page.locator(".topology .peer.worker .note").inner_text() == lent
    assert page.locator(".topology .here .note").inner_text() == f"layers 1–{first}"
    assert "demo" in page.locator(".band text").text_content()
    pieces = page.locator(".split li").all_inner_texts()
    assert [text.split("\n")[0] for text in pieces] == ["keeper", "lender"]
    assert row(page, "lender").locator("td").nth(1).inner_text() == "worker"

    other = open_console(worker, "mesh")
    other.get_by_text("hosted by keeper").wait_for(timeout=ENOUGH_FOR_A_NODE_S * 1000)
    assert other.locator(".topology .here .note").inner_text() == lent


def test_a_node_without_a_mesh_says_so(start_node, open_console, axe) -> None:
    page = open_console(start_node("--solo", environment=SMALL), "mesh")
    page.get_by_text("This node is in no mesh").wait_for()
    assert page.locator(".topology").count() == 0
    axe(page)


# --- what the picture says --------------------------------------------------------------------------------------


def test_roles_states_and_paths_are_told_by_words_and_by_drawings(fake, open_console) -> None:
    peers = [
        a_peer(1, models=[], role="member", path="direct"),
        a_peer(3, path="relayed"),
        a_peer(4),
        a_peer(5, reachable=False, path=None, rtt_ms=None, estimated_rtt_ms=12.0),
    ]
    page = open_console(fake(a_status(*peers, models=[a_split("large", 1)])), "mesh")
    kinds = {number: peer(page, number).get_attribute("class").split() for number in (1, 3, 4, 5)}
    assert all(kind in kinds[number] for number, kind in {1: "worker", 3: "host", 4: "client", 5: "idle"}.items())
    assert peer(page, 1).get_attribute("aria-label") == "machine-1, worker, layers 13–24"
    assert peer(page, 5).get_attribute("aria-label") == "machine-5, idle, unreachable"
    assert "is-unreachable" in kinds[5]
    shapes = [peer(page, number).locator("svg").inner_html() for number in (1, 3, 4, 5)]
    assert len(set(shapes)) == 4
    assert page.locator(".stage .edge.is-direct").count() == 2
    assert page.locator(".stage .edge.is-relayed").count() == page.locator(".stage .edge.is-none").count() == 1
    labels = page.locator(".stage .edge text").all_text_contents()
    assert sorted(labels) == ["15 ms", "4.1 ms", "~43 ms"], "estimated where there is no connection, none of the silent"
    legend = page.get_by_role("list", name="What the drawings mean").inner_text()
    assert all(word in legend for word in ("host", "worker", "client", "idle", "direct", "relayed", "not connected"))


def test_a_band_has_a_piece_for_each_worker_and_stands_in_their_order(fake, open_console) -> None:
    peers = [a_peer(number) for number in range(1, 9)]
    page = open_console(fake(a_status(*peers, models=[a_split("large", 5, 2, 7), a_split("other", 6)])), "mesh")
    bands = page.locator(".band")
    assert [band.locator("path").count() for band in bands.all()] == [3, 1]
    across = [peer(page, number).bounding_box()["x"] for number in (5, 2, 7)]
    assert all(left < right for left, right in pairwise(across)), "as a token passes them, clockwise over the top"
    assert bands.nth(0).locator("text").text_content().startswith("large")


def test_a_request_under_way_moves_along_its_line_unless_nothing_may_move(fake, open_console) -> None:
    mesh = fake(a_status(*[a_peer(number) for number in range(1, 5)]))
    moving, still = (open_console(mesh, "mesh", reduced_motion=calm) for calm in (False, True))
    requests = mesh.status["requests"] | {"running": [a_request(3), a_request(0), a_request(99)]}
    mesh.change(requests=requests)
    for page in (moving, still):
        page.locator(".stage .edge.is-busy").wait_for(state="attached")
        assert page.locator(".stage .edge.is-busy").count() == 1
    assert moving.locator(".pulse").count() == 1 and still.locator(".pulse").count() == 0
    peer(still, 3).click()
    assert "answers 1 request of this node" in still.locator(".panel").inner_text()
    mesh.change(requests=requests | {"running": []})
    moving.locator(".pulse").wait_for(state="detached")


def test_an_answer_of_a_split_is_work_for_all_its_nodes(fake, open_console) -> None:
    mesh = fake(a_status(*[a_peer(number) for number in range(1, 5)], models=[a_split("large", 1, 2)]))
    page = open_console(mesh, "mesh")
    mesh.change(requests=mesh.status["requests"] | {"running": [a_request(0, model="large")]})
    peer(page, 1).and_(page.locator(".is-busy")).wait_for()
    assert peer(page, 1).get_attribute("aria-label").endswith("at work")
    assert page.locator(".topology .peer.is-busy").count() == 3 and page.locator(".stage .edge.is-busy").count() == 2


# --- who comes and goes -----------------------------------------------------------------------------------------


def test_nothing_moves_while_nobody_comes_or_goes(fake, open_console) -> None:
    mesh = fake(a_status(*[a_peer(number) for number in range(1, 7)]))
    page = open_console(mesh, "mesh")
    peer(page, 1).wait_for()
    page.evaluate("globalThis.marked = document.querySelector('.topology .peer:not(.here)'); marked.mark = 7")
    before = page.locator(".topology .peer").evaluate_all("all => all.map((one) => one.style.transform)")
    mesh.peers(*[a_peer(number, rtt_ms=99.0) for number in (6, 5, 4, 3, 2, 1)])
    page.locator(".edge text", has_text="99 ms").first.wait_for(state="attached")
    assert page.locator(".topology .peer").evaluate_all("all => all.map((one) => one.style.transform)") == before
    assert page.evaluate("marked.mark === 7 && marked.isConnected")
    mesh.peers(*[a_peer(number) for number in range(1, 8)])
    peer(page, 7).wait_for()
    assert page.evaluate("marked.isConnected"), "the others keep their buttons"


def test_a_peer_that_dies_before_our_eyes_fades_and_then_goes(fake, open_console) -> None:
    old = a_peer(9, state="dead", reachable=False)
    mesh = fake(a_status(*[a_peer(number) for number in range(1, 4)], old))
    page = open_console(mesh, "mesh")
    peer(page, 1).wait_for()
    assert peer(page, 9).count() == 0, "what was dead before is in the table only"
    assert row(page, "machine-9").inner_text().find("dead") > 0
    page.clock.install()
    mesh.peers(a_peer(1), a_peer(2, state="dead", reachable=False), a_peer(3, state="left", reachable=False))
    page.locator(".topology .is-dead.peer").wait_for()
    assert "is-left" in peer(page, 3).get_attribute("class")
    page.clock.run_for(20_000)
    peer(page, 2).wait_for(state="detached")
    peer(page, 3).wait_for(state="detached")


def test_a_peer_that_vanishes_while_it_is_chosen_leaves_what_was_known(fake, open_console) -> None:
    mesh = fake(a_status(a_peer(1), a_peer(3)))
    page = open_console(mesh, "mesh")
    peer(page, 3).focus()
    page.keyboard.press("Enter")
    panel = page.get_by_role("region", name="The node machine-3")
    assert panel.get_by_role("button", name="Ping").count() == 1
    mesh.peers(a_peer(1))
    panel.get_by_text("machine-3 has left the mesh").wait_for()
    assert "RTX 4090" in panel.inner_text() and panel.get_by_role("button", name="Ping").count() == 0
    assert page.locator("[aria-live]", has_text="machine-3 has left the mesh").count() == 1
    assert page.evaluate("document.activeElement.classList.contains('here')"), "the focus went to the centre"
    mesh.peers(a_peer(1), a_peer(3))
    panel.get_by_text("has left the mesh").wait_for(state="detached")
    panel.get_by_role("button", name="Close").click()
    assert page.get_by_role("region", name="The mesh", exact=True).count() == 1


# --- one node ---------------------------------------------------------------------------------------------------


def test_a_ping_shows_its_round_trips_or_why_there_are_none(fake, open_console) -> None:
    mesh: FakeMesh = fake(a_status(a_peer(1)))
    page = open_console(mesh, "mesh")
    peer(page, 1).click()
    mesh.answers["/api/ping"] = (200, {"rtts_ms": [1.5, 0.25, 12.0, 3.0]})
    page.get_by_role("button", name="Ping").click()
    page.locator(".rtts li").first.wait_for()
    assert page.locator(".rtts li").all_inner_texts() == ["1.5 ms", "0.3 ms", "12 ms", "3.0 ms"]
    assert mesh.asked == [("/api/ping", {"node": node_id(1), "count": 4})]
    page.expected("502")
    mesh.answers["/api/ping"] = (502, {"error": {"code": "no-answer", "message": "It is silent.", "fix": "Wait."}})
    page.get_by_role("button", name="Ping").click()
    assert "It is silent.Wait." in page.get_by_role("alert").inner_text().replace("\n", "")


def test_the_panel_tells_what_is_known_and_what_is_not(fake, open_console) -> None:
    quiet = a_peer(2, address=None, devices=[], software="", path=None, rtt_ms=None, estimated_rtt_ms=None)
    page = open_console(fake(a_status(a_peer(6), quiet, models=[a_model("mine")])), "mesh")
    peer(page, 6).click()
    words = page.locator(".panel").inner_text()
    assert all(
        text in words for text in ("192.0.2.6:9337", "9.66 GB of 25.8 GB free", "model-2", "meshnode 0.1.0", "now")
    )
    page.locator(".panel").get_by_role("button", name="Copy the id").click()
    assert page.evaluate("navigator.clipboard.readText()") == node_id(6)
    peer(page, 2).click()
    words = page.locator(".panel").inner_text()
    assert "not known here" in words and words.count("not told") == 2 and "not connected" in words
    page.locator(".topology .here").click()
    words = page.locator(".panel").inner_text()
    assert "this node" in words and "mine" in words and page.get_by_role("button", name="Ping").count() == 0


# --- keyboard and table -----------------------------------------------------------------------------------------


def test_the_picture_is_one_stop_of_the_tab_key_and_arrows_go_round(fake, open_console) -> None:
    page = open_console(fake(a_status(*[a_peer(number) for number in range(1, 5)])), "mesh")
    buttons = page.locator(".topology .peer")
    assert sorted(buttons.evaluate_all("all => all.map((one) => one.tabIndex)")) == [-1, -1, -1, -1, 0]
    page.locator(".topology .here").focus()
    seen = []
    for key in ("ArrowRight", "ArrowDown", "ArrowRight", "ArrowRight", "ArrowRight", "ArrowLeft", "Home", "End"):
        page.keyboard.press(key)
        seen.append(page.evaluate("document.activeElement.dataset.id"))
    assert len(set(seen[:5])) == 5 and seen[4] == node_id(0) and seen[5] == seen[3] == seen[7] and seen[6] == node_id(0)
    page.keyboard.press("Space")
    assert page.locator('.topology [aria-pressed="true"]').get_attribute("data-id") == seen[7]
    assert page.locator("tr.selected").count() == 1
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('.topology') === null")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"


def test_the_table_has_everybody_and_sorts(fake, open_console) -> None:
    page = open_console(fake(a_status(*[a_peer(number) for number in range(1, 13)])), "mesh")
    assert len(table(page)) == 13 and table(page)[0] == "workshop this node"
    page.get_by_role("button", name="Round trip").click()
    times = page.locator("tbody tr td:nth-child(6)").all_inner_texts()
    figures = [float(text.strip("~ ms")) for text in times if text.startswith(("~", *"0123456789"))]
    assert len(figures) == 12 and figures == sorted(figures) and times[-1] == "–"
    page.get_by_role("button", name="Name").click()
    assert table(page)[:3] == ["machine-1", "machine-2", "machine-3"]
    row(page, "machine-2").locator(".pick").first.click()
    assert peer(page, 2).get_attribute("aria-pressed") == "true"


# --- many, hostile, accessible ----------------------------------------------------------------------------------


PLACES = """async () => {
  const { layout } = await import("./views/rings.js");
  const found = [];
  for (const width of [200, 328, 634, 1100, 1600])
    for (let count = 0; count <= 61; count += 1)
      for (const middle of [0, Math.min(count, 3)]) {
        const plan = layout(count, width, middle);
        const again = JSON.stringify(layout(count, width, middle)) === JSON.stringify(plan);
        found.push({ width, count, middle, again, plan });
      }
  return JSON.stringify(found);
}"""
MARKS = {"ample": 40, "named": 36, "marks": 28}


def test_nodes_stand_apart_on_the_picture_whatever_their_number(fake, open_console) -> None:
    page = open_console(fake(a_status()), "mesh")
    found = json.loads(page.evaluate(PLACES))
    most: dict[int, int] = {}
    for each in found:
        plan = each["plan"]
        assert each["again"], "the same nodes stand where they stood"
        if plan is None:
            continue
        assert len(plan["points"]) == each["count"]
        if not each["middle"]:
            most[each["width"]] = max(most.get(each["width"], 0), each["count"])
        half = MARKS[plan["density"]] / 2
        places = [(plan["x"], plan["y"]), *((point["x"], point["y"]) for point in plan["points"])]
        for at, (x, y) in enumerate(places[1:], 1):
            assert half <= x <= each["width"] - half and half <= y <= plan["height"] - half
            assert all(abs(x - left) >= 2 * half or abs(y - top) >= 2 * half for left, top in places[:at])
        chosen = plan["points"][: each["middle"]]
        if len({point["ring"] for point in chosen}) == 1:
            assert sum(point["x"] for point in chosen) / len(chosen) == pytest.approx(plan["x"], abs=1)
    assert most[328] >= 24 and most[634] == most[1600] == 60
    assert max(each["count"] for each in found if each["plan"]) == 60


@pytest.mark.parametrize(("width", "count"), [(360, 24), (1280, 60), (1920, 60)])
def test_many_nodes_are_drawn(fake, open_console, width, count) -> None:
    page = open_console(fake(a_status(*[a_peer(number) for number in range(1, count + 1)])), "mesh", width=width)
    peer(page, count).wait_for()
    assert page.locator(".topology .peer").count() == count + 1
    last = peer(page, count)
    last.focus()
    assert last.locator(".name").is_visible(), "where names find no room, one stands at the node that has the focus"
    assert not overflows(page)


@pytest.mark.parametrize("width", [360, 1280])
def test_more_than_find_room_are_a_table_and_a_sentence(fake, open_console, axe, width) -> None:
    page = open_console(fake(a_status(*[a_peer(number) for number in range(1, 62)])), "mesh", width=width)
    page.get_by_text("61 other nodes are more than a picture of this width shows well.").wait_for()
    assert page.locator(".topology .peer").count() == 0 and len(table(page)) == 62
    axe(page)


@pytest.mark.parametrize("width", [360, 1280])
def test_hostile_names_are_only_text(fake, open_console, width) -> None:
    peers = [
        a_peer(
            number,
            name=name,
            software=name,
            address=name or None,
            models=[{**a_peer(3)["models"][0], "id": name, "state": name}],
            devices=[{"name": name, "total_bytes": 0, "free_bytes": 1 << 60}],
        )
        for number, name in enumerate(HOSTILE, 1)
    ]
    mesh = a_status(*peers, models=[a_split(HOSTILE[0], 1, 2)])
    mesh["mesh"]["name"] = HOSTILE[1]
    page = open_console(fake(mesh), "mesh", width=width)
    page.on("dialog", lambda dialog: pytest.fail(dialog.message))
    for number in range(1, len(HOSTILE) + 1):
        peer(page, number).click()
        assert page.locator(".panel").count() == 1
    main = page.locator("main")
    assert main.locator("img, script, iframe, [onerror], [onload]").count() == 0
    text = main.inner_text()
    assert "<img src=x onerror=alert(1)>" in text
    assert not re.search(r"[\u202a-\u202e\u2066-\u2069\u200b\x00\x1b]", main.inner_html())
    assert node_id(8)[:10] in table(page), "an id stands where a name cannot be seen"
    assert not overflows(page)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 1280])
def test_it_is_accessible_and_fits(fake, open_console, axe, theme, width) -> None:
    peers = [a_peer(number) for number in range(1, 12)] + [a_peer(12, state="dead", reachable=False)]
    status = a_status(*peers, models=[a_split("large", 1, 2)])
    status["requests"] = status["requests"] | {"running": [a_request(3)]}
    page = open_console(fake(status), "mesh", theme=theme, width=width)
    axe(page)
    peer(page, 3).click()
    axe(page)
    assert not overflows(page)


def test_a_lone_founder_is_shown_accessibly(fake, open_console, axe) -> None:
    page = open_console(fake(a_status()), "mesh")
    page.get_by_text("No other machine is here yet").wait_for()
    axe(page)


def test_what_was_known_stays_when_the_node_is_lost(fake, open_console) -> None:
    page = open_console(mesh := fake(a_status(a_peer(1))), "mesh")
    peer(page, 1).wait_for()
    page.expected("503|ERR_")
    mesh.hang_up()
    page.locator("body[data-connection=lost]").wait_for(state="attached")
    assert peer(page, 1).is_visible() and "machine-1" in table(page)
