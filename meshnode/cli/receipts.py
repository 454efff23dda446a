"""`meshnode receipts`: what each paid answer cost, signed by who gave it. `verify` needs no node and no network."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import click

from meshnode.cli.money import json_option, money_node, short_id
from meshnode.cli.render import command_errors, emit, printable, say, table
from meshnode.errors import ReceiptInvalid, StateError
from meshnode.policies import usd
from meshnode.receipt_reading import MOST_TEXT_BYTES, Judged, judged

MOST_LISTED = 1000


@click.group()
def receipts() -> None:
    """Receipts of paid answers. They hold counts, prices and a hash of the answer; never a prompt or an answer."""


@receipts.command("list")
@click.option("-n", "--lines", default=20, show_default=True, type=click.IntRange(1, MOST_LISTED), help="how many")
@json_option
@command_errors
def list_receipts(lines: int, as_json: bool) -> None:
    """The newest receipts, the last one first. With --json, each as its provider signed it."""
    found = money_node().call("GET", f"/api/receipts?limit={lines}")
    if as_json:
        return emit(found)
    if not found["receipts"]:
        return say("nothing was paid or earned so far")
    columns = ["WHEN", "ROLE", "NODE", "MODEL", "TOKENS IN", "OUT", "COST", "ENDED", "REQUEST"]
    table(columns, [_row(each) for each in found["receipts"]])


def _row(each: dict[str, Any]) -> list[str]:
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(each["at"]))
    role = "earned" if each["role"] == "receiver" else "paid"
    counts = (str(each["tokens_in"]), str(each["tokens_out"]), usd(each["charged_micros"]))
    return [when, role, short_id(each["node"]), each["model"], *counts, each["finish"], each["request"]]


@receipts.command()
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True, path_type=Path), default="-")
@click.option("--node", default="", metavar="ID", help="they must be signed by this node")
@json_option
@command_errors
def verify(file: Path, node: str, as_json: bool) -> None:
    """Check receipts: that the node they name has signed them, and that their sums can be.

    FILE has one receipt on each line, or what `meshnode receipts list --json` prints; without it they come from stdin.
    """
    found = [_of(each, node.strip().lower()) for each in judged(_text(file))]
    forged = [each for each in found if each.facts is None]
    if as_json:
        emit({"receipts": [each.as_dict() for each in found], "genuine": len(found) - len(forged)})
    elif not found:
        return say("there is no receipt to verify")
    else:
        table(["RECEIPT", "VERDICT", "NODE", "MODEL", "TOKENS IN", "OUT", "COST"], [_verdict(each) for each in found])
    if forged:
        if as_json:
            raise SystemExit(ReceiptInvalid.exit_code)
        raise ReceiptInvalid(
            f"{len(forged)} of {len(found)}; the first is number {forged[0].number}: {forged[0].fault}"
        )
    if not as_json:
        total = usd(sum(each.facts["charged_micros"] for each in found if each.facts))
        say(f"{'it is' if len(found) == 1 else f'all {len(found)} are'} genuine, {total} together")


def _of(each: Judged, node: str) -> Judged:
    """The judgement when only receipts of one node will do."""
    if each.facts is None or not node or str(each.facts["node"]).startswith(node):
        return each
    return Judged(each.number, None, f"signed by another node, {short_id(each.facts['node'])}")


def _verdict(each: Judged) -> list[str]:
    if each.facts is None:
        return [str(each.number), f"not genuine: {printable(each.fault, 80)}", "-", "-", "-", "-", "-"]
    facts = each.facts
    counts = (str(facts["tokens_in"]), str(facts["tokens_out"]), usd(facts["charged_micros"]))
    return [str(each.number), "genuine", short_id(facts["node"]), facts["model"], *counts]


def _text(file: Path) -> bytes:
    if str(file) == "-":
        return sys.stdin.buffer.read(MOST_TEXT_BYTES + 1)
    try:
        with file.open("rb") as opened:
            return opened.read(MOST_TEXT_BYTES + 1)
    except OSError as reason:
        raise StateError(f"{file} cannot be read: {reason.strerror}") from None
