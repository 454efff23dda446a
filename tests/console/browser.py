"""The browser that the console is tried in: Debian's or Google's Chromium, found on PATH, driven by Playwright."""

from __future__ import annotations

import shutil
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
SWITCHES = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def find() -> str | None:
    """The path of the browser, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


def launch(playwright: Any) -> Any:
    """A Browser without a window. Raises FileNotFoundError when there is none."""
    path = find()
    if path is None:
        raise FileNotFoundError(f"none of {', '.join(NAMES)} is on PATH")
    return playwright.chromium.launch(executable_path=path, args=list(SWITCHES))
