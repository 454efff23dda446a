"""The recipes in a real browser: filled in with a live model, copied as they stand, and words where there is none."""

from __future__ import annotations

import json
import shlex
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.console.pages import overflows
from tests.e2e.small_models import tools_model

pytestmark = pytest.mark.engine

PROGRAMS = ["goose", "opencode", "pi", "Claude Code", "Codex CLI", "aider"]
SNIPPETS = ["OpenAI SDK for Python", "OpenAI SDK for JavaScript", "curl"]
KEY = "sk-of-nobody-else"


def block(page: Any, label: str) -> Any:
    """A block of code by what it is called."""
    return page.get_by_role("region", name=label, exact=True)


def test_every_program_has_its_recipe_with_a_live_model(demo_server, open_console) -> None:
    page = open_console(demo_server, "agents")
    programs = page.get_by_role("navigation", name="Programs")
    for title in [*PROGRAMS, "Open WebUI", "Continue", *SNIPPETS]:
        programs.get_by_role("link", name=title, exact=True).click()
        page.get_by_role("heading", name=title, exact=True, level=2).wait_for()
        words = page.locator("main").inner_text()
        assert "demo" in words and demo_server.base_url in words
        assert block(page, "One command").count() == (title in PROGRAMS)


def test_a_recipe_can_be_linked_to_and_copied(demo_server, open_console) -> None:
    page = open_console(demo_server, "agents/aider")
    page.get_by_role("heading", name="aider", exact=True, level=2).wait_for()
    assert block(page, "One command").inner_text().strip() == "meshnode launch aider"
    page.get_by_role("button", name="Copy: Run aider from a shell").click()
    page.wait_for_function("navigator.clipboard.readText().then(text => text.includes('OPENAI_API_BASE'))")
    lines = page.evaluate("navigator.clipboard.readText()").splitlines()
    assert f"export OPENAI_API_BASE={demo_server.base_url}/v1" in lines
    assert shlex.split(lines[-1]) == ["aider", "--model", "openai/demo"]


def test_what_is_shown_means_the_same_to_a_shell(demo_server, open_console) -> None:
    page = open_console(demo_server, "agents/opencode")
    text = block(page, "Run opencode from a shell").inner_text().strip()
    script = text.removesuffix("opencode") + 'printf %s "$OPENCODE_CONFIG_CONTENT"'
    told = subprocess.run(["/bin/sh", "-c", script], capture_output=True, text=True, check=True).stdout
    assert json.loads(told)["provider"]["meshnode"]["options"]["baseURL"] == f"{demo_server.base_url}/v1"


def test_the_curl_lines_work(demo_server, open_console) -> None:
    page = open_console(demo_server, "agents/curl")
    lines = block(page, "Example").inner_text().strip().splitlines()
    listed, asked = [shlex.split(line) for line in lines]
    with urllib.request.urlopen(listed[-1], timeout=10) as answer:
        assert json.load(answer)["data"][0]["id"] == "demo"
    body = asked[asked.index("-d") + 1]
    address = next(word for word in asked if word.startswith("http"))
    request = urllib.request.Request(address, body.encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        assert b"[DONE]" in answer.read()


def test_a_key_is_named_and_never_shown(start_node, open_console) -> None:
    node = start_node("--model", "demo", environment={"MESHNODE_API_KEY": KEY})
    page = open_console(node, "agents/aider")
    page.get_by_text("This node asks for a key").wait_for()
    assert 'export OPENAI_API_KEY="$MESHNODE_API_KEY"' in block(page, "Run aider from a shell").inner_text()
    assert KEY not in page.content()


def test_with_no_model_it_says_what_to_do(start_node, open_console) -> None:
    node = start_node("--private-mesh-name", "bare")
    page = open_console(node, "agents")
    page.get_by_text("No model is served, so the recipes name none yet").wait_for()
    page.get_by_role("link", name="Load one under Models").click()
    page.get_by_role("heading", name="Models", level=1).wait_for()
    page.get_by_role("list", name="Models on this disk").get_by_role("button", name="Load: demo").click()
    page.get_by_role("list", name="Served models").get_by_text("ready").wait_for()
    page.get_by_role("link", name="Use it").click()
    page.get_by_label("Model to fill in").wait_for()
    assert "GOOSE_MODEL=demo" in block(page, "Run goose from a shell").inner_text()


def test_another_model_can_be_chosen(start_node, open_console, tmp_path: Path) -> None:
    file = tools_model(tmp_path / "tools.gguf")
    page = open_console(start_node("--model", "demo", "--model", str(file)), "agents/pi")
    picker = page.get_by_label("Model to fill in")
    picker.wait_for()
    assert block(page, "One command").inner_text().strip() == "meshnode launch pi"
    picker.select_option("file:tools")
    page.get_by_text("meshnode launch pi --model file:tools").wait_for()
    block(page, "Run pi from a shell").filter(has_text="--model file:tools").wait_for()


@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 360)])
def test_it_is_accessible_and_fits(demo_server, open_console, axe, theme: str, width: int) -> None:
    page = open_console(demo_server, "agents/codex", theme=theme, width=width)
    page.get_by_role("heading", name="Codex CLI", level=2).wait_for()
    axe(page)
    assert not overflows(page)
