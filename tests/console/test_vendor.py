"""What ships with the page: the pinned libraries, nothing that is loaded from elsewhere, and how large all that is."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from pathlib import Path

import pytest

from meshnode.console.site import MEDIA_TYPES, STATIC
from tools.vendor_console import BARE_IMPORTS, PACKAGES, VENDOR, rewrite

FILES = sorted(path for path in STATIC.rglob("*") if path.is_file())
SCRIPTS = [path for path in FILES if path.suffix == ".js"]
OURS = [path for path in FILES if VENDOR not in path.parents]
LISTED = json.loads((VENDOR / "VENDOR.json").read_text("utf-8"))["packages"]
BUDGET_BYTES = 60_000
"""What a first visit may fetch, gzipped: the shell with its libraries, and the view that is opened. What
draws Markdown, some 30 kB, comes with the first answer."""
WHOLE_BYTES = 170_000
VIEWS = sorted(path.stem for path in (STATIC / "views").glob("*.css"))


def shown(path: Path) -> str:
    return path.relative_to(STATIC).as_posix()


def packed_bytes(path: Path) -> int:
    return len(gzip.compress(path.read_bytes(), 9, mtime=0))


def test_the_list_says_what_is_pinned() -> None:
    pinned = [(package.name, package.version, package.licence, package.integrity) for package in PACKAGES]
    assert pinned == [(entry["name"], entry["version"], entry["licence"], entry["integrity"]) for entry in LISTED]


def test_every_library_is_as_it_was_fetched() -> None:
    listed = {file["file"]: file["sha256"] for entry in LISTED for file in entry["files"]}
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in VENDOR.glob("*.js")}
    assert found == listed


def test_every_library_has_its_licence() -> None:
    text = (VENDOR / "LICENSES").read_text("utf-8")
    for package in PACKAGES:
        assert f"{package.name} {package.version} ({package.licence})\n" in text


@pytest.mark.parametrize("path", SCRIPTS, ids=shown)
def test_imports_are_relative_and_lead_somewhere(path: Path) -> None:
    text = path.read_text("utf-8")
    targets = re.findall(r"""(?:\bfrom|\bimport)\s*\(?\s*["']([^"']+)["']""", text)
    for target in targets:
        assert target.startswith("."), f"{target} is a bare import"
        assert (path.parent / target).resolve() in FILES, f"{target} is not there"


@pytest.mark.parametrize("path", OURS, ids=shown)
def test_nothing_is_loaded_from_elsewhere_and_nothing_is_inline(path: Path) -> None:
    text = path.read_text("utf-8")
    loads = re.findall(r"""(?:src|href|url|import|fetch|action)\s*[=(:]?\s*\(?\s*["'`]?(?:https?:)?//[^"'\s)]+""", text)
    assert loads == []
    assert "eval(" not in text and "new Function" not in text and "dangerouslySetInnerHTML" not in text
    if path.suffix == ".html":
        assert not re.search(r"<style|\bstyle=|\bon[a-z]+=|javascript:", text)
        assert all("src=" in tag for tag in re.findall(r"<script[^>]*>", text))


def test_no_source_maps_are_promised() -> None:
    assert [shown(path) for path in FILES if "sourceMappingURL" in path.read_text("utf-8")] == []


def test_every_kind_of_file_can_be_served() -> None:
    assert [shown(path) for path in FILES if path.suffix not in MEDIA_TYPES] == []


def test_the_page_announces_the_modules_that_it_begins_with() -> None:
    """What app.js imports, straight or not, is fetched at once and not one after the other."""
    page = (STATIC / "index.html").read_text("utf-8")
    announced = set(re.findall(r'rel="modulepreload" href="([^"]+)"', page))
    assert {shown(path) for path in needed(STATIC / "app.js")} <= announced
    assert all((STATIC / name).is_file() for name in announced)


def needed(*modules: Path) -> set[Path]:
    """Modules and all that they import at their start."""
    found: set[Path] = set()
    left = list(modules)
    while left:
        path = left.pop()
        if path not in found:
            found.add(path)
            targets = re.findall(r"""\bfrom\s*["'](\.[^"']+)["']""", path.read_text("utf-8"))
            left += [(path.parent / target).resolve() for target in targets]
    return found


@pytest.mark.parametrize("view", VIEWS)
def test_a_first_visit_is_small(view: str) -> None:
    around = [STATIC / name for name in ("index.html", "style.css", "theme.js", "icon.svg")]
    files = {*around, STATIC / "views" / f"{view}.css", *needed(STATIC / "app.js", STATIC / "views" / f"{view}.js")}
    size = sum(map(packed_bytes, files))
    print(f"{view}: {size} bytes in {len(files)} files")
    assert size < BUDGET_BYTES


def test_everything_together_is_not_large() -> None:
    sizes = {path: packed_bytes(path) for path in FILES if path.name != "LICENSES"}
    for path, size in sorted(sizes.items(), key=lambda item: -item[1]):
        print(f"{size:6} {shown(path)}")
    print(f"{sum(sizes.values())} bytes in all")
    assert sum(sizes.values()) < WHOLE_BYTES


def test_a_bare_import_becomes_relative_and_an_unknown_one_is_refused() -> None:
    assert rewrite('import{h}from"preact";import"./a.js"\n//# sourceMappingURL=x.map') == (
        'import{h}from"./preact.js";import"./a.js"\n'
    )
    assert rewrite("x", "export default x;\n") == "x\nexport default x;\n"
    assert set(BARE_IMPORTS.values()) <= {f"./{path.name}" for path in VENDOR.glob("*.js")}
    with pytest.raises(KeyError):
        rewrite('import"react"')
