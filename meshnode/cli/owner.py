"""`meshnode owner`: the key that makes several machines those of one person, and whom this node trusts how far.

These commands work on files of the home folder, with or without a running node: one that runs looks at them again
within a second. A certificate stands alone on stdout; it is no secret.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Literal

import click

from meshnode.cli.admission import to_seconds
from meshnode.cli.render import command_errors, emit, human_span, say, table, write_line
from meshnode.config import find_places
from meshnode.owning import OWNER_MARK, Owning

MOST_PASTED_CHARS = 10_000
WORDS = {"local": "as a machine of yours", "trusted": "as a friend's", "none": "no more than your mesh makes it"}


@click.group()
def owner() -> None:
    """Say which machines are yours and whom you trust: how far your requests travel follows from it."""


@contextmanager
def _owning() -> Iterator[Owning]:
    """Whose methods the block calls; what they cannot make sense of is told as click tells it."""
    try:
        yield Owning(find_places().home)
    except ValueError as reason:
        raise click.BadParameter(str(reason)) from None


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).date().isoformat()


# --- one's own machines -----------------------------------------------------------------------------------------


@owner.command()
@click.option("--replace", is_flag=True, help="also if this node belongs to another owner now")
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
@command_errors
def init(replace: bool, as_json: bool) -> None:
    """Make an owner key on this machine, and sign this node with it. Run again, it signs for another year."""
    with _owning() as owning:
        facts = owning.init(replace=replace)
    if as_json:
        return emit(facts)
    write_line(f"{OWNER_MARK}{facts['owner']}")
    what = "made" if facts["made"] else "kept"
    say(f"{what} {facts['owner_key_file']}; this node is signed to {_day(facts['ends_at'])}")
    say("  back that file up, and show it to nobody: whoever has it can call any machine yours")
    say("  for another machine of yours: meshnode owner show there, sign its NODE_ID here, accept CERT there")


@owner.command()
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
@command_errors
def show(as_json: bool) -> None:
    """The id of this node, whose it is, and until when."""
    with _owning() as owning:
        facts = owning.show()
    if as_json:
        return emit(facts)
    write_line(f"node   {facts['node']}")
    write_line(f"owner  {OWNER_MARK}{facts['owner']}" if facts["owner"] else "owner  nobody")
    if not facts["owner"]:
        say("meshnode owner init makes a key here; or accept what `meshnode owner sign` prints where it is")
    elif facts["counts"]:
        say(f"signed to {_day(facts['ends_at'])}: counts for {human_span(facts['ends_at'] - time.time())} more")
    else:
        say(f"signed to {_day(facts['ends_at'])}: counts no more; sign it again")
    if facts["owner_key_here"]:
        say(f"the owner key is on this machine: {facts['owner_key_file']}")
        if facts["owner"] not in (None, facts["owner_key_here"]):
            say("  it is not that of this node's owner")


@owner.command()
@click.argument("node_id")
@click.option(
    "--ttl", type=to_seconds, metavar="TIME", default="365d", show_default=True, help="how long it counts: 12h, 30d"
)
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
@command_errors
def sign(node_id: str, ttl: int, as_json: bool) -> None:
    """Print a certificate for another machine of yours. `meshnode owner show` prints its NODE_ID there."""
    with _owning() as owning:
        facts = owning.sign(node_id, ttl)
    if as_json:
        return emit(facts)
    write_line(facts["certificate"])
    say(f"  there:  meshnode owner accept CERT    (it counts to {_day(facts['ends_at'])})")


@owner.command()
@click.argument("cert")
@click.option("--replace", is_flag=True, help="also if this node belongs to another owner now")
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
@command_errors
def accept(cert: str, replace: bool, as_json: bool) -> None:
    """Take what `meshnode owner sign` printed: this node belongs to that owner. `-` reads it from stdin.

    Requests of this node may then go to every machine of that owner as to itself: accept nobody's CERT but your own.
    """
    text = sys.stdin.read(MOST_PASTED_CHARS) if cert == "-" else cert
    with _owning() as owning:
        facts = owning.accept(text, replace=replace)
    if as_json:
        return emit(facts)
    say(f"this node belongs to {OWNER_MARK}{facts['owner']}, to {_day(facts['ends_at'])}")


# --- others -----------------------------------------------------------------------------------------------------


@owner.command()
@click.argument("key")
@click.option("--name", default="", help="your own word for it")
@click.option(
    "--radius",
    type=click.Choice(["local", "trusted"]),
    default="trusted",
    show_default=True,
    help="as a machine of yours, or as a friend's",
)
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
@command_errors
def trust(key: str, name: str, radius: Literal["local", "trusted"], as_json: bool) -> None:
    """Trust a node, or every machine of an owner, wherever this node meets it.

    KEY is the id of a node, or the key of an owner, as `meshnode owner show` prints them there.
    """
    with _owning() as owning:
        facts = owning.trust(key, name, radius)
    _say_entry(facts, as_json=as_json)


@owner.command()
@click.argument("key")
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
@command_errors
def untrust(key: str, as_json: bool) -> None:
    """Trust a node or an owner no more, whatever certificate it shows, now or later.

    KEY is a key; or the name, or the first digits, of one in `meshnode owner list`. Who is a member of your mesh
    stays one.
    """
    with _owning() as owning:
        facts = owning.untrust(key)
    _say_entry(facts, as_json=as_json)


def _say_entry(facts: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        return emit(facts)
    say(f"{facts['text']} counts {WORDS[facts['radius']]}; a running node knows it within a second")


@owner.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
@command_errors
def list_trust(as_json: bool) -> None:
    """Whom this node trusts by name and how far, and whom no more."""
    with _owning() as owning:
        entries = owning.entries()
    if as_json:
        return emit({"entries": entries})
    if not entries:
        return say("nobody is on the list; machines of your owner are local, members of your mesh trusted")
    rows = [[entry["kind"], entry["radius"], entry["name"] or "-", entry["text"]] for entry in entries]
    table(["KIND", "RADIUS", "NAME", "KEY"], rows)
