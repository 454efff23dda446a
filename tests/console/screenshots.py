"""A picture of every view of the console, in both themes, from real nodes: `just screenshots` writes docs/screenshots/.

A mesh of five (two serve the demo, two lend their memory, one is client-only) with requests behind it, whose founder
publishes, and a stranger. Look at them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import urllib.request
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

from tests.conftest import NodeProcess
from tests.console.browser import launch
from tests.e2e.meshes import SMALL, invite_for, until_hosts
from tests.e2e.waiting import eventually
from tests.lab.nostr_relay import relay

FOLDER = Path(__file__).parents[2] / "docs" / "screenshots"
VIEWS = (
    *("overview", "mesh", "memory", "models", "chat", "requests", "invite", "public", "agents", "settings"),
    "spending",
)
QUESTIONS = ("hello", "count from 1 to 30", "what is meshnode?", "2 + 3", "say the alphabet")
SIZE = {"width": 1280, "height": 860}


def start_mesh(folder: Path, nostr: str) -> list[NodeProcess]:
    """A founder that serves the demo, a member that serves it too, two that lend, a client-only node, a stranger."""
    common = ("--json", "--port", "0", "--console", "0")
    small = {**SMALL, "MESHNODE_CTX_SIZE": "4096", "HF_HUB_CACHE": str(folder / "models")}
    environment = {**small, "MESHNODE_NOSTR_RELAY": nostr}
    publishing = ("--model", "demo", "--name", "studio", "--publish", "--mesh-name", "orchard")
    founder = NodeProcess(*common, *publishing, home=folder / "studio", environment=environment)
    nodes = [founder.wait_ready()]
    token = invite_for(founder, 5)
    member = NodeProcess(
        *common, "--join", token, "--model", "demo", "--name", "attic", home=folder / "attic", environment=environment
    )
    client = NodeProcess(*common, "--client", "--join", token, "--name", "laptop", home=folder / "laptop")
    lenders = [
        NodeProcess(
            *common, "--join", token, "--name", name, "--no-standby", home=folder / name, environment=environment
        )
        for name in ("workshop", "cellar")
    ]
    nodes += [each.wait_ready() for each in (member, client, *lenders)]
    eventually(lambda: founder.status()["swarm"]["listing"], 30)
    stranger = NodeProcess(*common, "--auto", "--name", "harbour", home=folder / "harbour", environment=environment)
    nodes.append(stranger.wait_ready())
    for node in nodes[:-1]:
        until_hosts(node, {"demo": 2})
    eventually(lambda: sum(peer["reachable"] for peer in founder.status()["mesh"]["peers"]) == 4, 30)
    eventually(lambda: stranger.status()["models"], 30)
    return nodes


def ask(node: NodeProcess, question: str, radius: str = "trusted") -> None:
    """One request, so that there is something to show."""
    body = {"model": "demo", "max_tokens": 120, "messages": [{"role": "user", "content": question}]}
    headers = {"content-type": "application/json", "x-meshnode-radius": radius}
    request = urllib.request.Request(f"{node.base_url}/v1/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        answer.read()


def open_view(browser: Browser, node: NodeProcess, view: str, theme: str) -> Page:
    """A page that shows a view and has its facts."""
    page = browser.new_page(
        viewport=SIZE,
        color_scheme="dark" if theme == "dark" else "light",
        reduced_motion="reduce",
    )
    page.goto(f"{node.console_url}/#/{view}")
    page.wait_for_selector("main h1")
    page.wait_for_load_state("load")
    if view == "chat":
        for question in ("what is meshnode?", "count from 1 to 30"):
            box = page.get_by_role("textbox", name="Message")
            box.fill(question)
            box.press("Enter")
            page.get_by_role("article", name="You").get_by_text(question).wait_for()
            page.get_by_role("button", name="Answer again").wait_for()
    page.wait_for_timeout(600)  # pictures only: what fades in has faded in
    return page


def main() -> None:
    """Write the pictures of all views, or of those that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("views", nargs="*", default=VIEWS, help="only these views")
    parser.add_argument("--to", type=Path, default=FOLDER)
    chosen = parser.parse_args()
    chosen.to.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="meshnode-") as folder, relay() as nostr, sync_playwright() as playwright:
        nodes = start_mesh(Path(folder), nostr)
        try:
            for question in QUESTIONS:
                for node in nodes[:3]:
                    ask(node, question)
                ask(nodes[-1], question, "public")
            browser = launch(playwright)
            for view in chosen.views:
                for theme in ("light", "dark"):
                    page = open_view(browser, nodes[0], view, theme)
                    file = chosen.to / f"{view}-{theme}.png"
                    page.screenshot(path=file)
                    page.close()
                    print(f"{file.name}  {file.stat().st_size / 1000:.0f} kB")
            browser.close()
        finally:
            for node in reversed(nodes):
                node.end()


if __name__ == "__main__":
    main()
