"""Coming together in a real browser: an invite from one page brings another node in; codes, ends, and leaving."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import NodeProcess, StartNode
from tests.console.pages import overflows
from tests.e2e.meshes import invite_of
from tests.e2e.waiting import eventually

pytestmark = pytest.mark.engine

REFUSED = r"status of 4\d\d|status of 502"


@pytest.fixture
def pair_of_nodes(start_node: StartNode) -> tuple[NodeProcess, NodeProcess]:
    """Two nodes without models, each in a mesh of its own."""
    return start_node("--private-mesh-name", "orchard", "--name", "apple"), start_node(
        "--private-mesh-name", "garage", "--name", "wrench"
    )


def make_invite(page: Any) -> str:
    """The token of a new invite, as the page shows it."""
    page.get_by_role("button", name="Make an invite").click()
    return str(page.get_by_role("region", name="Token", exact=True).inner_text()).strip()


def join(page: Any, token: str) -> None:
    """Paste a token and send it off."""
    page.get_by_role("textbox", name="Token").fill(token)
    page.get_by_role("button", name="Join", exact=True).click()


def confirm(page: Any, action: str) -> None:
    """Agree to what the page asks."""
    page.get_by_role("dialog").get_by_role("button", name=action, exact=True).click()


def mesh_name(node: NodeProcess) -> str:
    """The mesh that a node is in now; "" while it goes from one to another."""
    return str((node.status()["mesh"] or {"name": ""})["name"])


def test_a_token_of_one_page_brings_the_other_node_in(pair_of_nodes, open_console) -> None:
    here, there = pair_of_nodes
    inviting, joining = open_console(here, "invite"), open_console(there, "invite")
    token = make_invite(inviting)
    assert f"meshnode --join {token}" in inviting.locator("main").inner_text()
    picture = inviting.get_by_alt_text("QR code of the token")
    assert picture.evaluate("each => each.decode().then(() => each.naturalWidth)") > 50
    join(joining, token)
    joining.locator("main").get_by_text("Joined “orchard”").wait_for()
    assert mesh_name(there) == "orchard"
    for page in (inviting, joining):
        page.locator("dl div", has_text="Other machines").get_by_text("1", exact=True).wait_for()
    inviting.get_by_role("row").filter(has_text="4 of 5").wait_for()


def test_the_token_stays_in_the_view(open_console, start_node) -> None:
    page = open_console(start_node("--private-mesh-name", "orchard"), "invite")
    token = make_invite(page)
    kept = "JSON.stringify([location.href, {...localStorage}, {...sessionStorage}, document.cookie, history.state])"
    assert token not in page.evaluate(kept)
    page.get_by_role("button", name="Hide it").click()
    assert token not in page.content()
    second = make_invite(page)
    assert second != token
    page.get_by_role("link", name="Requests").click()
    page.get_by_role("heading", name="Requests", level=1).wait_for()
    page.go_back()
    page.get_by_role("button", name="Make an invite").wait_for()
    assert second not in page.content()
    assert second not in page.evaluate(kept)


def test_a_revoked_invite_lets_nobody_in(pair_of_nodes, open_console) -> None:
    here, there = pair_of_nodes
    inviting, joining = open_console(here, "invite"), open_console(there, "invite")
    joining.expected(REFUSED)
    token = make_invite(inviting)
    inviting.get_by_role("button", name="Revoke it").click()
    confirm(inviting, "Revoke")
    inviting.get_by_role("row").filter(has_text="revoked").wait_for()
    inviting.get_by_role("region", name="Token", exact=True).wait_for(state="detached")
    join(joining, token)
    joining.get_by_text("This node has not joined").wait_for()
    assert mesh_name(there) == "garage"
    join(joining, "mn1this-is-no-token")
    joining.get_by_text("This invite cannot be used").wait_for()
    joining.get_by_text("ask for a new one: meshnode invite").wait_for()


def test_a_node_that_shares_its_mesh_leaves_it_first(start_node, pair_of_nodes, open_console) -> None:
    here, there = pair_of_nodes
    start_node("--join", invite_of(here))
    page = open_console(here, "invite")
    page.expected(REFUSED)
    join(page, invite_of(there))
    page.get_by_text("which it shares with others").wait_for()
    page.get_by_role("button", name="Leave it and join").click()
    assert "needs a new invite" in page.get_by_role("dialog").inner_text()
    confirm(page, "Leave and join")
    page.locator("main").get_by_text("Joined “garage”").wait_for()
    assert mesh_name(here) == "garage"
    page.get_by_role("button", name="Leave this mesh").click()
    confirm(page, "Leave")
    eventually(lambda: mesh_name(here) == "orchard")


def test_two_machines_pair_by_a_code(pair_of_nodes, open_console) -> None:
    here, there = pair_of_nodes
    showing, typing = open_console(here, "invite"), open_console(there, "invite")
    showing.get_by_role("button", name="Show a code").click()
    code = showing.get_by_label("The code").inner_text()
    typing.get_by_label("Code that the other machine shows").fill(code)
    typing.get_by_label("Its address").fill(here.status()["mesh"]["addresses"][0])
    typing.get_by_role("button", name="Pair", exact=True).click()
    typing.locator("main").get_by_text("This node joined “orchard”").wait_for()
    showing.get_by_text("The machines are paired").wait_for()
    assert mesh_name(there) == "orchard"


def test_a_wrong_code_says_so_on_both_sides(pair_of_nodes, open_console) -> None:
    here, there = pair_of_nodes
    showing, typing = open_console(here, "invite"), open_console(there, "invite")
    typing.expected(REFUSED)
    showing.get_by_role("button", name="Show a code").click()
    code = showing.get_by_label("The code").inner_text()
    number, word, *_ = code.split("-")
    typing.get_by_label("Code that the other machine shows").fill(f"{number}-{word}-{word}")
    typing.get_by_label("Its address").fill(here.status()["mesh"]["addresses"][0])
    typing.get_by_role("button", name="Pair", exact=True).click()
    typing.get_by_text("The machines are not paired").wait_for()
    showing.get_by_text("Show a new code for another try.").wait_for()
    assert mesh_name(there) == "garage"


def test_who_may_not_invite_is_told(pair_of_nodes, start_node, open_console) -> None:
    here, _ = pair_of_nodes
    page = open_console(start_node("--join", invite_of(here)), "invite")
    page.get_by_text("This node may not invite others").wait_for()
    assert page.get_by_role("button", name="Make an invite").count() == 0


def test_a_node_in_no_mesh_says_so(start_node, open_console) -> None:
    page = open_console(start_node("--solo"), "invite")
    page.expected(REFUSED)
    page.get_by_text("This node is in no mesh").wait_for()
    join(page, "mn1whatever")
    page.get_by_text("This node has not joined").wait_for()


@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 360)])
def test_it_is_accessible_and_fits(start_node, open_console, axe, theme: str, width: int) -> None:
    page = open_console(start_node("--private-mesh-name", "<b>orchard</b>"), "invite", theme=theme, width=width)
    make_invite(page)
    page.get_by_role("button", name="Show a code").click()
    page.get_by_label("The code").wait_for()
    axe(page)
    assert not overflows(page)
    assert "<b>orchard</b>" in page.locator("main").inner_text()
