"""`meshnode wallet deposit, withdraw, channels, close, panic`: money in channels, moved by the node that runs here.

The node alone writes the journal of money, so that nothing is spent twice; without one these commands end with 3.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from meshnode.cli.money import (
    USD,
    channel_meant,
    dry_run_option,
    json_option,
    money_node,
    move,
    node_meant,
    password_file_option,
    short_id,
    spending_of,
    wallets,
)
from meshnode.cli.render import command_errors, emit, human_span, printable, say, table
from meshnode.errors import PaymentsOff, StateError
from meshnode.policies import StoredPolicy, loosened, usd


@click.command(short_help="Channels, and how much of each was signed away")
@json_option
@command_errors
def channels(as_json: bool) -> None:
    """Money that is locked for one provider each, and how much of it was signed away."""
    found = spending_of(money_node())["channels"]
    if as_json:
        return emit({"channels": found})
    if not found:
        return say("no channel is open; the first paid request opens one, or meshnode wallet deposit NODE AMOUNT")
    columns = ["CHANNEL", "ROLE", "NODE", "STATE", "LOCKED", "SIGNED", "CHARGED", "CLAIMED"]
    table(columns, [_channel_row(each, time.time()) for each in found])


def _channel_row(each: dict[str, Any], now: float) -> list[str]:
    state = printable(each["state"], 20)
    if each["withdrawable_at"]:
        left_s = each["withdrawable_at"] - now
        state += f", {human_span(left_s)} left" if left_s > 0 else ", can be had back"
    locked = max(0, each["balance_micros"] - each["claimed_micros"])
    amounts = ("signed_micros", "charged_micros", "claimed_micros")
    role = "earns" if each["role"] == "receiver" else "pays"
    return [
        short_id(each["id"]),
        role,
        short_id(each["node"]),
        state,
        usd(locked),
        *(usd(each[name]) for name in amounts),
    ]


@click.command(short_help="Lock money in a channel for one node")
@click.argument("node")
@click.argument("amount", type=USD)
@password_file_option("the password of the wallet, where the node has no file with it")
@dry_run_option
@json_option
@click.pass_context
@command_errors
def deposit(
    ctx: click.Context, node: str, amount: int, password_file: Path | None, dry_run: bool, as_json: bool
) -> None:
    """Lock AMOUNT dollars in a channel for NODE: what it can be paid, and by nobody else.

    NODE is an id, its first digits, or the name of one in the public mesh. The bounds of the policy hold here as well.
    """
    from meshnode.cli.main import settings_of

    if settings_of(ctx).no_pay:
        raise PaymentsOff("MESHNODE_NO_PAY is set", fix="unset it, where that is what you want")
    if amount == 0:
        raise click.BadParameter("nothing is no deposit", param_hint="AMOUNT")
    running = money_node()
    body: dict[str, object] = {"node": node_meant(running, node), "amount_micros": amount, "dry_run": dry_run}
    answer = move("deposit", body, password_file=password_file, as_json=as_json)
    if not dry_run and not as_json:
        say(f"{usd(answer['amount_micros'])} are locked for {short_id(str(body['node']))}; meshnode wallet channels")


@click.command(short_help="Take back what a channel still has, after its delay")
@click.argument("channel")
@dry_run_option
@json_option
@command_errors
def withdraw(channel: str, dry_run: bool, as_json: bool) -> None:
    """Begin to take back what a channel still has, whether its provider answers or not.

    The provider has the delay of the channel to claim what it was promised; then the rest comes back by itself, while a
    node runs here. CHANNEL is its id, its first digits, or those of the node. Faster, where it agrees: close.
    """
    _of_channel("withdraw", channel, dry_run=dry_run, as_json=as_json)


@click.command(short_help="Ask the provider to send it back at once")
@click.argument("channel")
@dry_run_option
@json_option
@command_errors
def close(channel: str, dry_run: bool, as_json: bool) -> None:
    """Ask the provider to send back what a channel still has, at once.

    CHANNEL is its id, its first digits, or those of the node. If the provider does not answer: withdraw.
    """
    _of_channel("close", channel, dry_run=dry_run, as_json=as_json)


def _of_channel(act: str, channel: str, *, dry_run: bool, as_json: bool) -> None:
    body: dict[str, object] = {"channel": channel_meant(money_node(), channel), "dry_run": dry_run}
    move(act, body, as_json=as_json)


@click.command(short_help="Stop all payments, take everything back")
@dry_run_option
@json_option
@command_errors
def panic(dry_run: bool, as_json: bool) -> None:
    """Stop all payments now, and begin to take back what every channel still has.

    Payments are switched off first, also where no node runs; what was signed already stays promised.
    """
    if not dry_run:
        _switch_off()
        if not as_json:
            say("payments are off; they stay off until meshnode wallet policy --mode auto")
    move("panic", {"dry_run": dry_run}, as_json=as_json)


def _switch_off() -> None:
    """Put a policy in force under which nothing is paid. Raises HomeNotWritable."""
    from dataclasses import replace

    file = wallets().policy_file
    with file.changing():
        try:
            before = file.load()
        except StateError:
            return  # a file that cannot be used allows nothing
        after = StoredPolicy(before.network, replace(before.policy, mode="off"))
        assert not loosened(before, after)
        file.save(after)
