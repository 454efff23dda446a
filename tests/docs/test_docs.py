"""The pages of docs/ against the program: every error has its paragraph, every command parses, every link leads on."""

from __future__ import annotations

import importlib
import pkgutil
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import meshnode
from meshnode.cli.main import LazyGroup, root
from meshnode.errors import MeshnodeError
from meshnode.telemetry import PROBLEM_KINDS

ROOT = Path(__file__).parents[2]
PAGES = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md"])
TROUBLE = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")


def kinds(kind: type[MeshnodeError] = MeshnodeError) -> Iterator[type[MeshnodeError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from kinds(below)


def test_every_error_and_problem_has_its_paragraph() -> None:
    for module in pkgutil.walk_packages(meshnode.__path__, "meshnode."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    ours = {kind.code for kind in kinds() if kind.__module__.startswith("meshnode.")}
    described = set(re.findall(r"^### ([a-z-]+)$", TROUBLE, re.MULTILINE))
    assert ours - {"reported"} | set(PROBLEM_KINDS) == described


def commands(page: Path) -> Iterator[tuple[str, ...]]:
    """Every `meshnode ...` of a page that stands in a block of shell lines."""
    for block in re.findall(r"^```sh\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"&&|\|", line.partition("#")[0]):
                words = shlex.split(part)
                while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                    del words[0]
                if words and Path(words[0]).name == "meshnode":
                    yield tuple(words[1:])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_parses(page: Path) -> None:
    for words in commands(page):
        given: list[str] = list(words)
        command: click.Command = root
        context = click.Context(root, info_name="meshnode")
        while isinstance(command, click.Group):
            parser = command.make_parser(context)
            _, rest, _ = parser.parse_args(args=list(given)) if not given or given[0] != "--help" else ({}, [], [])
            if not rest:
                break
            found = command.get_command(context, rest[0])
            assert found is not None, f"{page.name}: meshnode {shlex.join(words)}"
            command, given = found, rest[1:]
            context = click.Context(command, info_name=rest[0], parent=context)
        else:
            command.make_parser(context).parse_args(args=list(given))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
        if not re.match(r"https?://", target):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text("utf-8")
    missing = [page.name for page in PAGES if page.parent.name == "docs" and f"({page.name})" not in index]
    assert missing == ["README.md"]


def test_the_check_of_commands_can_fail() -> None:
    with pytest.raises(click.UsageError):
        root.make_parser(click.Context(root)).parse_args(args=["--no-such-option"])
    assert isinstance(root, LazyGroup) and root.get_command(click.Context(root), "nonsense") is None
