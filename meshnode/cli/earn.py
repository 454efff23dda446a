"""`meshnode earn`: what strangers have signed over to this node, and taking it on the chain."""

from __future__ import annotations

import time
from typing import Any

import click

from meshnode.cli.money import dry_run_option, json_option, money_node, move, spending_of
from meshnode.cli.render import command_errors, emit, human_span, printable, say, write_line
from meshnode.policies import usd

NAME_COLUMNS = 11


@click.group()
def earn() -> None:
    """What strangers pay this node. Its price is a setting: --price-in and --price-out, with --publish."""


@earn.command()
@json_option
@command_errors
def status(as_json: bool) -> None:
    """The price of this node, what was signed over to it, and what of that was claimed."""
    facts = spending_of(money_node())
    earning = facts["earning"]
    if as_json:
        return emit({"wallet": facts["wallet"], "earning": earning})
    for name, words in _lines(earning, facts["wallet"], time.time()):
        write_line(f"{name:<{NAME_COLUMNS}}{words}")
    if earning["why_not"]:
        say(printable(earning["why_not"], 300))
    if not earning["selling"]:
        say("to be paid by strangers: meshnode --model NAME --publish --price-in 0.10 --price-out 0.40")
    elif earning["unclaimed_micros"]:
        say("the node claims by itself; to have it look now whether that is worth the fee: meshnode earn claim")


def _lines(earning: dict[str, Any], wallet: dict[str, Any], now: float) -> list[tuple[str, str]]:
    price = earning["price"]
    prices = f"{usd(price['in'])} in, {usd(price['out'])} out, for a million tokens" if price else "none: it is free"
    claimed = usd(earning["claimed_micros"])
    if earning["last_claim_at"]:
        claimed += f", the last time {human_span(now - earning['last_claim_at'])} ago"
    count = "one channel" if earning["channels"] == 1 else f"{earning['channels']} channels"
    lines = [
        ("price", prices),
        ("network", wallet["network"] + (" (test money)" if wallet["testnet"] else " (real money)")),
        ("promised", f"{usd(earning['vouched_micros'])} in {count}"),
        ("claimed", claimed),
        ("unclaimed", usd(earning["unclaimed_micros"])),
    ]
    return lines + ([("paid to", earning["receiver"])] if earning["receiver"] else [])


@earn.command()
@dry_run_option
@json_option
@command_errors
def claim(dry_run: bool, as_json: bool) -> None:
    """Take on the chain, now, what was signed over, wherever that brings more than its fee."""
    answer = move("claim", {"dry_run": dry_run}, as_json=as_json)
    if dry_run or as_json:
        return
    if answer["transactions"]:
        say(f"{usd(answer['amount_micros'])} claimed")
    elif not answer["note"]:
        say("there is nothing to claim")
