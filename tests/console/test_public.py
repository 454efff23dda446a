"""The view Public in a real browser: over invented facts of strangers, and between real nodes that meet by a relay."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.console.fake_mesh import (
    Facts,
    FakeMesh,
    a_listed_mesh,
    a_model,
    a_peer,
    a_request,
    a_status,
    a_stranger,
    a_swarm,
    an_audit_record,
    audited,
    discovered,
    fake_mesh,
    node_id,
)
from tests.console.hostile_texts import HOSTILE
from tests.console.pages import overflows
from tests.console.test_invite import confirm
from tests.e2e.waiting import eventually
from tests.lab.nostr_relay import relay

REFUSED = r"status of [45]\d\d"
NAMES = ["\u202egnp.exe\u2066x\u2069", "\u200b\ufeff", "a\u0301" * 300, "W" * 4000, "", "__proto__", *HOSTILE.values()]
RECORDS = audited(
    an_audit_record("asked", 4),
    an_audit_record("served", 5, outcome="left", status=499, prefix="07c2cc279405d378"),
    {"kind": "checked", "node": node_id(4), "verdict": "good"},
    {"kind": "repaired", "cut_bytes": 17},
)


@pytest.fixture
def fake() -> Iterator[Callable[[Facts], FakeMesh]]:
    """`fake(status)` is a running FakeMesh whose audit log is empty."""
    with ExitStack() as stack:

        def start(status: Facts) -> FakeMesh:
            started = stack.enter_context(fake_mesh(status))
            started.answers["/api/audit"] = (200, audited())
            return started

        yield start


def card(page: Any, title: str) -> Any:
    """The part of the view with that title."""
    return page.locator("main .card").filter(has=page.get_by_role("heading", name=title, level=2, exact=True))


def posted(node: FakeMesh) -> list[tuple[str, Facts]]:
    """What the page has asked of the node to do."""
    return [call for call in node.asked if call[0] not in ("/api/audit", "/api/discover")]


def fact(page: Any, name: str) -> str:
    """What stands beside a name in the facts of this node."""
    found = page.locator("dl.facts > div").filter(has=page.locator("dt", has_text=re.compile(f"^{name}$")))
    return str(found.locator("dd").inner_text())


# --- where this node is -----------------------------------------------------------------------------------------


def test_a_node_that_is_not_public_says_how_to_be(fake, open_console) -> None:
    page = open_console(node := fake(a_status()), "public")
    words = card(page, "This node").inner_text()
    assert "This node meets no strangers" in words and "meshnode --auto" in words and "--publish" in words
    assert card(page, "Who is there").count() == card(page, "What strangers get here").count() == 0
    card(page, "Audit log").get_by_text("Nothing is written down yet").wait_for()
    node.answers["/api/swarm/join"] = (200, {"state": "looking", "name": "orchard"})
    page.get_by_label("Name of a public mesh").fill(" orchard ")
    page.get_by_role("button", name="Join it").click()
    assert "learn the key and the address of this node" in page.get_by_role("dialog").inner_text()
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    assert posted(node) == []
    page.get_by_role("button", name="Join the best one").click()
    confirm(page, "Join")
    page.get_by_text("This node looks for the mesh").wait_for(state="attached")
    page.get_by_role("button", name="Join it").click()
    confirm(page, "Join")
    eventually(lambda: posted(node) == [("/api/swarm/join", {}), ("/api/swarm/join", {"name": "orchard"})])
    node.change(swarm=a_swarm(state="looking", sentence="looking for a public mesh", mesh=None))
    page.get_by_text("Looking for a public mesh.").wait_for()


def test_a_node_of_its_own_meets_nobody(fake, open_console) -> None:
    page = open_console(fake(a_status(mesh=None, trust=None)), "public")
    page.get_by_text("It was started with --solo").wait_for()
    assert page.locator("main .card").count() == 0
    starting = open_console(fake(a_status(mesh=None, trust=None, state="starting")), "public", wait=False)
    starting.get_by_text("The node is finding its meshes").wait_for()


def test_what_failed_is_said_and_can_be_tried_again(fake, open_console) -> None:
    failed = {"state": "failed", "sentence": "no relay could be asked", "mesh": None, "paused": False}
    page = open_console(node := fake(a_status(swarm=failed)), "public")
    page.get_by_text("No relay could be asked.").wait_for()
    node.answers["/api/swarm/join"] = (
        400,
        {"error": {"code": "bad-request", "message": "a name has letters", "fix": "x"}},
    )
    page.expected(REFUSED)
    page.get_by_label("Name of a public mesh").fill("%%%")
    page.get_by_role("button", name="Join it").click()
    confirm(page, "Join")
    page.get_by_text("A name has letters.").wait_for()
    assert page.get_by_role("button", name="Leave public meshes").count() == 0


def test_how_it_stands_with_strangers(fake, open_console) -> None:
    page = open_console(fake(a_status(swarm=a_swarm(a_stranger(1), a_stranger(4)))), "public")
    assert "in a public mesh" in card(page, "This node").inner_text()
    assert fact(page, "Mesh").startswith("orchard cdcdcdcdcd")
    assert fact(page, "Router").startswith("symmetric") and fact(page, "Opened by the router") == "198.51.100.7:9338"
    assert fact(page, "As others see it") == "198.51.100.7:40112" and fact(page, "Relays in use") == "machine-1"
    relays = page.get_by_role("list", name="What the Nostr relays said to that").get_by_role("listitem")
    assert ["answered" in relays.nth(0).inner_text(), "pay first" in relays.nth(1).inner_text()] == [True, True]
    figures = card(page, "What strangers get here").inner_text()
    assert "1 of 2" in figures and "1,234" in figures and "98,765" in figures
    assert "tokens (5), asked for what strangers do not get (2)" in figures
    rows = card(page, "Who is there").locator("tbody tr")
    assert [text.split("\t")[1].strip() for text in rows.all_inner_texts()] == ["stranger", "stranger"]
    assert "direct" in rows.nth(0).inner_text() and "relayed" in rows.nth(1).inner_text()
    assert "not checked" in rows.nth(0).inner_text()


def test_states_and_verdicts_in_words(fake, open_console) -> None:
    alone = a_swarm(state="alone", sentence='alone in "orchard": nobody else is listed', listing=None)
    page = open_console(node := fake(a_status(swarm=alone)), "public")
    page.get_by_text("Nobody else is here yet").wait_for()
    page.get_by_text("This node is about to list the mesh.").wait_for()
    mixed = [a_stranger(1, verdict="good"), a_stranger(2, verdict="bad"), a_stranger(3, radius="trusted")]
    node.change(swarm=a_swarm(*mixed, publisher=False, listing=None, role="member"))
    page.get_by_text("Other nodes list this mesh").wait_for()
    texts = card(page, "Who is there").locator("tbody tr").all_inner_texts()
    assert "as claimed" in texts[0] and "other weights" in texts[1] and "friend" in texts[2]
    node.change(swarm=a_swarm(role="client", state="no-such-state", listing=None, nat=a_swarm()["nat"] | {"kind": "x"}))
    page.get_by_text("no-such-state").wait_for()
    assert fact(page, "Router") == "x" and fact(page, "As").startswith("a client")


# --- what can be done -------------------------------------------------------------------------------------------


def test_serving_is_paused_and_taken_up_again(fake, open_console) -> None:
    page = open_console(node := fake(a_status(swarm=a_swarm())), "public")
    switch = page.get_by_role("switch", name="Serve strangers")
    assert switch.is_checked()
    page.expected(REFUSED)
    node.answers["/api/swarm/pause"] = (409, {"error": {"code": "x", "message": "not now", "fix": ""}})
    switch.press("Space")
    page.get_by_text("Nothing has changed").wait_for()
    assert switch.is_checked(), "the switch shows what the node says"
    node.answers["/api/swarm/pause"] = (200, {"paused": True})
    switch.press("Space")
    page.get_by_text("Strangers are not served").wait_for(state="attached")
    node.change(swarm=a_swarm(paused=True))
    page.get_by_text("Paused: what strangers ask is refused").wait_for()
    assert not switch.is_checked() and posted(node)[-1] == ("/api/swarm/pause", {"paused": True})
    switch.press("Space")
    eventually(lambda: posted(node)[-1] == ("/api/swarm/pause", {"paused": False}))
    node.change(swarm=a_swarm(publishing=False))
    page.get_by_text("strangers get nothing here").wait_for()
    assert switch.is_disabled() and not switch.is_checked()


def test_leaving_is_asked_for_first(fake, open_console) -> None:
    page = open_console(node := fake(a_status(swarm=a_swarm())), "public")
    node.answers["/api/swarm/leave"] = (200, {"left": "orchard"})
    page.get_by_role("button", name="Leave public meshes").click()
    assert "Leave “orchard”?" in page.get_by_role("dialog").inner_text()
    confirm(page, "Leave")
    eventually(lambda: posted(node) == [("/api/swarm/leave", {})])
    node.change(swarm=None)
    page.get_by_text("This node meets no strangers").wait_for()


def test_what_a_stranger_sees_is_said_before_requests_go_there(fake, open_console) -> None:
    page = open_console(node := fake(a_status(swarm=a_swarm())), "public")
    reach = card(page, "How far requests may go")
    apply = reach.get_by_role("button", name="Let them go so far")
    assert reach.get_by_role("radio", name=re.compile("^Friends")).is_checked() and apply.is_disabled()
    assert "can read the prompt and the answer" not in reach.inner_text()
    reach.get_by_role("radio", name=re.compile("^Strangers")).check()
    assert "can read the prompt and the answer" in reach.inner_text() and posted(node) == []
    page.expected(REFUSED)
    apply.click()
    reach.get_by_text("Nothing has changed").wait_for()
    node.answers["/api/radius"] = (200, {"radius": "public", "before": "trusted"})
    apply.click()
    eventually(lambda: posted(node)[-1] == ("/api/radius", {"radius": "public"}))
    node.change(trust={"radius": "public", "owner": None, "ends_at": None})
    reach.locator("label", has_text="Strangers").get_by_text("now", exact=True).wait_for()
    assert "can read the prompt and the answer" in reach.inner_text()


# --- other meshes -----------------------------------------------------------------------------------------------


def test_meshes_are_looked_for_only_when_asked(fake, open_console) -> None:
    page = open_console(node := fake(a_status(swarm=a_swarm())), "public")
    node.answers["/api/discover"] = (200, discovered(a_listed_mesh(1), a_listed_mesh(2), drops=["3 were forged"]))
    assert [path for path, _ in node.asked] == ["/api/audit"]
    find = card(page, "Find meshes")
    find.get_by_label("That serve the model").fill("qwen & co ")
    find.get_by_label("In the region").fill("eu")
    find.get_by_role("button", name="Look").click()
    find.get_by_text("2 meshes are listed").wait_for()
    assert node.asked[-1] == ("/api/discover", {"model": "qwen & co", "region": "eu"})
    first, second = find.locator("tbody tr").all_inner_texts()
    assert "model-0" in first and "10 ms away, 4 requests could begin now" in first and "399" in first
    assert "Nobody answered." in second and "claimed" in second
    assert "3 were forged" in find.inner_text() and "pay first" in find.inner_text()
    assert find.get_by_role("button", name="Join mesh-2").is_disabled()
    node.answers["/api/swarm/join"] = (200, {"state": "looking", "name": "mesh-1"})
    find.get_by_role("button", name="Join mesh-1").click()
    assert "It leaves “orchard” for that." in page.get_by_role("dialog").inner_text()
    confirm(page, "Join")
    eventually(lambda: posted(node) == [("/api/swarm/join", {"name": "mesh-1"})])
    node.change(swarm=a_swarm(mesh={"id": node_id(1001), "name": "mesh-1"}))
    find.get_by_text("here", exact=True).wait_for()


def test_nothing_found_and_nothing_reached_are_told_apart(fake, open_console) -> None:
    page = open_console(node := fake(a_status()), "public")
    page.expected(REFUSED)
    look = card(page, "Find meshes").get_by_role("button", name="Look")
    look.click()
    page.get_by_text("No meshes were found").wait_for()
    error = {"code": "no-nostr-relay", "message": "no relay could be asked", "fix": "see --nostr-relay"}
    node.answers["/api/discover"] = (200, discovered(error=error))
    look.click()
    page.get_by_text("No relay could be asked.").wait_for()
    page.get_by_text("No mesh is listed").wait_for()
    assert page.get_by_text("No meshes were found").count() == 0
    node.hang_up()
    page.locator("body[data-connection=lost]").wait_for(state="attached")
    page.expected("ERR_")
    assert page.get_by_text("No mesh is listed").is_visible(), "what was known stays"


# --- the audit log ----------------------------------------------------------------------------------------------


def test_the_audit_log_is_shown_and_read_anew_as_it_grows(fake, open_console) -> None:
    page = open_console(node := fake(a_status(swarm=a_swarm(a_stranger(4)))), "public")
    log = card(page, "Audit log")
    log.get_by_text("Nothing is written down yet").wait_for()
    assert node.asked[0] == ("/api/audit", {"limit": "50"})
    node.answers["/api/audit"] = (200, RECORDS)
    node.change(requests=node.status["requests"] | {"finished": 1})
    log.get_by_text("4 records; the last has the hash").wait_for()
    asked, served, checked, repaired = log.locator("tbody tr").all_inner_texts()
    assert "asked a stranger" in asked and "machine-4" in asked and "12 in, 34 out" in asked and "abababab" in asked
    assert "served a stranger" in served and "caller left" in served and node_id(5)[:10] in served
    assert "checked a stranger" in checked and "as claimed" in checked
    assert "mended the log" in repaired
    node.answers["/api/audit"] = (500, {"error": {"code": "x", "message": "the log is torn", "fix": ""}})
    page.expected(REFUSED)
    log.get_by_role("button", name="Read again").click()
    log.get_by_text("The log is torn.").wait_for()
    assert log.locator("tbody tr").count() == 4


# --- in other views ---------------------------------------------------------------------------------------------


def test_other_views_tell_strangers_from_friends(fake, open_console) -> None:
    status = a_status(a_peer(1, radius="local"), a_peer(2), swarm=a_swarm(a_stranger(5)))
    finished = a_request(5) | {"radius": "public", "reached": "public", "peer": "", "outcome": "ok", "status": 200}
    times = {
        "at": 1_790_000_000.0,
        "queued_s": 0.0,
        "first_byte_s": 0.1,
        "total_s": 1.0,
        "tokens_in": 1,
        "tokens_out": 9,
    }
    counts = {"retries": 0, "resumed": 0, "resume_failed": False, "endpoint": "/v1/x", "error": "", "wanted": ""}
    recent = [finished | times | counts | {"output_sha256": "cd" * 32}]
    status["requests"] = status["requests"] | {"recent": recent, "finished": 1}
    node = fake(status)
    page = open_console(node, "mesh")
    who = page.locator("tbody tr td:nth-child(4)").all_inner_texts()
    assert who == ["–", "own", "friend"]
    page.locator("tbody .pick", has_text="machine-1").click()
    assert "a machine of your own" in page.locator(".panel").inner_text()
    page = open_console(node, "requests")
    words = page.locator("tbody tr").inner_text()
    assert "strangers" in words and "machine-5" in words
    page.get_by_role("button", name="req-5", exact=True).click()
    assert "cd" * 32 in page.get_by_role("dialog").inner_text()
    page = open_console(node, "invite")
    assert page.get_by_role("link", name="Find, join and offer them").get_attribute("href") == "#/public"


# --- hostile, accessible ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [360, 1280])
def test_whatever_strangers_write_is_only_text(fake, open_console, width) -> None:
    offer = a_peer(3)["models"][0]
    peers = [
        a_stranger(number, name=name, software=name, models=[{**offer, "id": name, "state": name}])
        for number, name in enumerate(NAMES, 1)
    ]
    worst = NAMES[0] + HOSTILE["image with a handler"] + "W" * 3000
    report = {"url": f"wss://{worst}", "state": worst, "text": worst, "count": 1, "elapsed_s": 0.1}
    swarm = a_swarm(*peers, mesh={"id": "cd" * 32, "name": worst}, sentence=f"in {worst}", addresses=[worst])
    swarm["nat"] = {"kind": worst, "observed": [worst], "mapped": [worst], "relays": [peers[0]["id"], worst]}
    swarm["listing"] = {"relays": [report], "at": 1.0}
    swarm["strangers"] = swarm["strangers"] | {"reasons": {worst: 1}}
    node = fake(a_status(swarm=swarm))
    meshes = [
        a_listed_mesh(number, name=name, region=name, reasons=[name, worst], refusal=name if number % 2 else "")
        for number, name in enumerate(NAMES, 1)
    ]
    for mesh, name in zip(meshes, NAMES, strict=True):
        mesh["listed"] = mesh["listed"] | {
            "models": [{"name": name, "hash": "", "hosts": 1, "price_in": 0, "price_out": 0}] * 32,
            "wanted": [name] * 32,
        }
        if mesh["shown"]:
            mesh["shown"] = mesh["shown"] | {"models": [name] * 32}
    failure = {"code": worst, "message": worst, "fix": worst}
    node.answers["/api/discover"] = (200, discovered(*meshes, relays=[report], drops=[worst], error=failure))
    records = [
        an_audit_record(kind, 1, model=name, error=name, outcome=name, output_sha256=name, verdict=name, reason=name)
        for name in NAMES
        for kind in ("asked", worst[:20])
    ]
    node.answers["/api/audit"] = (200, audited(*records))
    page = open_console(node, "public", width=width)
    page.on("dialog", lambda dialog: pytest.fail(dialog.message))
    page.evaluate("() => { window.pwned = () => console.error('pwned'); }")
    page.get_by_role("button", name="Look", exact=True).click()
    card(page, "Find meshes").get_by_text(f"{len(NAMES)} meshes are listed").wait_for()
    card(page, "Audit log").get_by_text(f"{len(records)} records").wait_for()
    main = page.locator("main")
    assert main.locator("img, script, iframe, form[action], a[href^=http], a[href^=javascript]").count() == 0
    attributes = main.evaluate("each => [...each.querySelectorAll('*')].flatMap((one) => one.getAttributeNames())")
    assert not [name for name in attributes if name.startswith("on")]
    assert not re.search(r"[\u202a-\u202e\u2066-\u2069\u200b\x00\x1b]", str(main.inner_text()))
    assert HOSTILE["image with a handler"] in main.inner_text()
    joins = card(page, "Find meshes").get_by_role("button", name=re.compile("^Join "))
    joins.locator("visible=true").last.scroll_into_view_if_needed()
    enabled = [at for at in range(joins.count()) if joins.nth(at).is_enabled()]
    joins.nth(enabled[0]).click()
    assert page.get_by_role("dialog").locator("img, script").count() == 0
    page.keyboard.press("Escape")
    assert not overflows(page)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 1280])
def test_it_is_accessible_and_fits(fake, open_console, axe, theme, width) -> None:
    strangers = [a_stranger(number, verdict=("unknown", "good", "bad")[number % 3]) for number in range(1, 9)]
    node = fake(a_status(swarm=a_swarm(*strangers), models=[a_model("large")]))
    node.answers["/api/discover"] = (200, discovered(*[a_listed_mesh(number) for number in range(1, 6)]))
    node.answers["/api/audit"] = (200, RECORDS)
    page = open_console(node, "public", theme=theme, width=width)
    page.get_by_role("button", name="Look", exact=True).click()
    page.get_by_text("5 meshes are listed").wait_for()
    page.get_by_role("radio", name=re.compile("^Strangers")).check()
    axe(page)
    assert not overflows(page)
    node.change(swarm=None)
    page.get_by_text("This node meets no strangers").wait_for()
    axe(page)
    assert not overflows(page)


# --- real nodes -------------------------------------------------------------------------------------------------


def ask_strangers(url: str) -> str:
    """Ask for the demo wherever it is served; the radius of the answer."""
    body = {"model": "demo", "max_tokens": 8, "messages": [{"role": "user", "content": "hello"}]}
    headers = {"content-type": "application/json", "x-meshnode-radius": "public"}
    request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        answer.read()
        return str(answer.headers["x-meshnode-radius"])


@pytest.mark.engine
@pytest.mark.timeout(120)
def test_strangers_meet_by_the_console(start_node, open_console) -> None:
    with relay() as url:
        environment = {"MESHNODE_NOSTR_RELAY": url, "MESHNODE_DRAIN_TIMEOUT": "1"}
        here = start_node(
            "--model", "demo", "--publish", "--mesh-name", "orchard", "--name", "apple", environment=environment
        )
        there = start_node("--name", "pear", "--no-standby", environment=environment)
        offering, using = open_console(here, "public"), open_console(there, "public")
        using.get_by_text("This node meets no strangers").wait_for()
        offering.get_by_text("This node lists the mesh").wait_for(timeout=20_000)
        find = card(using, "Find meshes")
        until = time.monotonic() + 20
        join = find.get_by_role("button", name="Join orchard")
        while join.count() == 0 and time.monotonic() < until:
            find.get_by_role("button", name="Look", exact=True).click()
            find.locator("[role=status]").wait_for()
        join.click()
        confirm(using, "Join")
        crowd = card(using, "Who is there").locator("tbody tr", has_text="apple").filter(has_text="demo")
        crowd.wait_for(timeout=20_000)
        assert "stranger" in crowd.inner_text() and "direct" in crowd.inner_text()
        eventually(lambda: any(model["radius"] == "public" for model in there.status()["models"]))
        assert ask_strangers(there.base_url) == "public"
        card(using, "Audit log").locator("tbody tr", has_text="asked a stranger").wait_for()
        card(offering, "Audit log").locator("tbody tr", has_text="served a stranger").wait_for()
        card(offering, "What strangers get here").locator("div", has_text=re.compile("^Answered\\s*1$")).wait_for()

        # Nobody near has the model, so that the chat says where it is, and gets there as soon as it may.
        chat = open_console(there, "chat")
        chat.get_by_text("Only strangers serve demo").wait_for()
        using.get_by_role("radio", name=re.compile("^Strangers")).check()
        using.get_by_role("button", name="Let them go so far").click()
        chat.get_by_text("Only strangers serve demo").wait_for(state="detached")
        chat.get_by_label("Your message").fill("hello")
        chat.get_by_role("button", name="Send").click()
        chat.get_by_text("answered by a stranger").wait_for(timeout=20_000)

        switch = offering.get_by_role("switch", name="Serve strangers")
        switch.press("Space")
        offering.get_by_text("Paused: what strangers ask is refused").wait_for()
        eventually(lambda: not there.status()["models"])
        using.get_by_role("button", name="Leave public meshes").click()
        confirm(using, "Leave")
        using.get_by_text("This node meets no strangers").wait_for()
        assert there.status()["swarm"] is None
