"""`meshnode spend`: what this node has paid this month, to whom, and what is left."""

from __future__ import annotations

from typing import Any

import click

from meshnode.cli.money import json_option, money_node, short_id, spending_of
from meshnode.cli.render import command_errors, emit, printable, say, table, write_line
from meshnode.cli.wallet_policy import bar
from meshnode.policies import usd

NAME_COLUMNS = 10


@click.command()
@click.option("--days", is_flag=True, help="day by day, beside what was earned")
@json_option
@command_errors
def spend(days: bool, as_json: bool) -> None:
    """What was paid this month, to whom, and what is left of the cap."""
    facts = spending_of(money_node())
    if as_json:
        return emit(facts)
    for name, words in _lines(facts):
        write_line(f"{name:<{NAME_COLUMNS}}{words}")
    if facts["damaged"]:
        say(f"the record of payments is damaged: {printable(facts['damaged'], 300)}")
    elif facts["why_not"]:
        say(f"nothing is paid now: {printable(facts['why_not'], 300)}")
    if days and facts["by_day"]:
        write_line("")
        table(["DAY", "SPENT", "EARNED", "REQUESTS"], [_day(each) for each in facts["by_day"]])
    elif facts["by_provider"]:
        write_line("")
        table(["PROVIDER", "PAID", "REQUESTS", "TOKENS"], [_provider(each) for each in facts["by_provider"]])


def _lines(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """What stands above the table: name and words."""
    cap, spent = facts["policy"]["month_micros"], facts["committed_micros"]
    network = facts["wallet"]["network"] + (" (test money)" if facts["wallet"]["testnet"] else " (real money)")
    lines = [("network", network)]
    if cap or spent:
        lines.append((facts["month"], f"{bar(spent, cap)}  {usd(spent)} of {usd(cap)}"))
        lines.append(("left", usd(facts["remaining_micros"]) + _held(facts)))
    else:
        lines.append(("spent", "nothing, and nothing may be: meshnode wallet policy"))
    payers = [each for each in facts["channels"] if each["role"] == "payer" and each["state"] != "closed"]
    if payers:
        count = "one channel" if len(payers) == 1 else f"{len(payers)} channels"
        lines.append(("locked", f"{usd(facts['locked_micros'])} in {count}"))
    if facts["gas_micros"]:
        lines.append(("fees", f"{usd(facts['gas_micros'])} of {usd(facts['policy']['gas_month_micros'])}"))
    return lines


def _held(facts: dict[str, Any]) -> str:
    held = facts["reserved_micros"]
    return f", {usd(held)} more held for running requests" if held else ""


def _provider(each: dict[str, Any]) -> list[str]:
    return [short_id(each["node"]), usd(each["spent_micros"]), f"{each['requests']:,}", f"{each['tokens_out']:,}"]


def _day(each: dict[str, Any]) -> list[str]:
    return [each["day"], usd(each["spent_micros"]), usd(each["earned_micros"]), f"{each['requests']:,}"]
