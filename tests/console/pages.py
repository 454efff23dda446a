"""What tests of the console ask of any page."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

from tests.conftest import NodeProcess


def wait_until_live(page: Any, view: str, *, timeout_s: float = 30) -> None:
    """Return when the page has the status of the node, shows the view, and nothing in it is still being read."""
    shown = f"body[data-connection=live] .view-{view}:not(:has(.loading)) > :nth-child(2)"
    page.wait_for_selector(shown, state="attached", timeout=timeout_s * 1000)


def overflows(page: Any) -> bool:
    """Whether the page as a whole can be scrolled sideways."""
    return bool(page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"))


def ask(node: NodeProcess) -> None:
    """One short request of somebody else, answered in full."""
    body = {"model": "demo", "max_tokens": 8, "messages": [{"role": "user", "content": "hello"}]}
    request = urllib.request.Request(
        f"{node.base_url}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        answer.read()
