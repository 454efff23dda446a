"""`meshnode wallet policy`: what may be spent, shown and changed.

Less may be allowed from anywhere. Whatever allows more needs a person at a terminal, who is told what that is and says
yes; where the money is real, in words. A program that can run commands, but has no terminal, raises nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import click

from meshnode.cli.client import find_node
from meshnode.cli.money import PRICE, USD, is_at_terminal, json_option, spending_of, wallets
from meshnode.cli.render import command_errors, emit, printable, say, write_line
from meshnode.config import Settings
from meshnode.errors import MeshnodeError, NodeNotRunning, NotTerminal, SettingsError, StateError
from meshnode.policies import PolicyFile, StoredPolicy, facts_of, loosened, usd, with_ceiling
from meshnode.wallets import find_network

BAR_COLUMNS = 24


@click.command(short_help="What may be spent: show it, change it")
@click.option("--mode", type=click.Choice(["off", "auto"]), help="auto: pay strangers by itself, within the bounds")
@click.option("--max-usd-per-month", "month", type=USD, help="the cap of a month (UTC), over all strangers")
@click.option("--max-usd-per-mtok-in", "tokens_in", type=PRICE, help="ceiling for the price of a million prompt tokens")
@click.option(
    "--max-usd-per-mtok-out", "tokens_out", type=PRICE, help="ceiling for the price of a million answer tokens"
)
@click.option("--model", default="", metavar="NAME", help="the ceilings are for this model alone")
@click.option("--forget-model", "forgotten", default="", metavar="NAME", help="no ceiling of its own for this model")
@click.option("--deposit", type=USD, help="what is put into a new channel")
@click.option("--max-deposit", "most_deposit", type=USD, help="the most that may lie in one channel")
@click.option("--max-usd-fees-per-month", "fees", type=USD, help="the cap of a month for fees of the chain")
@click.option("--max-prepay", "prepay", type=USD, help="the most that is paid ahead of one answer")
@click.option("--network", metavar="NAME", help="what the policy is for: base-sepolia (test money), base (real money)")
@click.option("--reset", is_flag=True, help="begin anew: nothing may be spent")
@json_option
@click.pass_context
@command_errors
def policy(ctx: click.Context, /, reset: bool, as_json: bool, **given: Any) -> None:
    """What this node may spend on strangers. Without options: show it.

    To lower a bound, or to switch payments off, works from anywhere. To raise one takes a person at a terminal. Money
    in the wallet alone allows nothing.
    """
    settings = _settings(ctx)
    file = wallets().policy_file
    before = _present(file, damaged_too=reset)
    start = StoredPolicy(before.network) if reset and before else before or StoredPolicy()
    after = _changed(start, given, settings)
    changes = after != before
    if changes:
        raised = loosened(before or StoredPolicy(), after)
        if raised:
            _ask(raised, after, settings)
        _save(file, before, after)
    _show(after, settings, changed=changes, as_json=as_json)


def _settings(ctx: click.Context) -> Settings:
    """The settings; the built-in ones where they cannot be used, as payments can be switched off all the same."""
    from meshnode.cli.main import settings_of

    try:
        return settings_of(ctx)
    except SettingsError as error:
        say(f"the settings are left out: {error.detail}")
        return Settings()


def _present(file: PolicyFile, *, damaged_too: bool) -> StoredPolicy | None:
    """What holds now; None for a file that cannot be used, if that may be. Raises StateError if it may not."""
    try:
        return file.load()
    except StateError:
        if damaged_too:
            return None
        raise


def _changed(before: StoredPolicy, given: dict[str, Any], settings: Settings) -> StoredPolicy:
    """The policy with what was typed. Raises click.UsageError for what makes no policy, SettingsError."""
    amounts = {
        "month_micros": given["month"],
        "deposit_micros": given["deposit"],
        "most_deposit_micros": given["most_deposit"],
        "gas_month_micros": given["fees"],
        "prepay_micros": given["prepay"],
    }
    made = replace(before.policy, **{name: value for name, value in amounts.items() if value is not None})
    model, forgotten = given["model"].strip(), given["forgotten"].strip()
    if given["tokens_in"] is not None or given["tokens_out"] is not None:
        try:
            made = with_ceiling(made, model, given["tokens_in"], given["tokens_out"])
        except ValueError as reason:
            raise click.UsageError(str(reason)) from None
    elif model:
        raise click.UsageError("--model goes with --max-usd-per-mtok-in or --max-usd-per-mtok-out")
    if forgotten:
        if forgotten not in made.model_ceilings:
            raise click.UsageError(f"{printable(forgotten)} has no ceiling of its own")
        made = replace(
            made, model_ceilings={name: price for name, price in made.model_ceilings.items() if name != forgotten}
        )
    made = replace(made, mode=given["mode"] or made.mode)
    network = before.network
    if given["network"]:
        network = find_network(given["network"], settings.network_file).name
    if made.mode == "auto" and (not made.month_micros or (made.ceiling is None and not made.model_ceilings)):
        raise click.UsageError(
            "to pay by itself a node needs a cap and a ceiling, for example:\n"
            "  meshnode wallet policy --mode auto --max-usd-per-month 5"
            " --max-usd-per-mtok-in 0.20 --max-usd-per-mtok-out 0.60"
        )
    return StoredPolicy(network, made)


def _ask(raised: tuple[str, ...], after: StoredPolicy, settings: Settings) -> None:
    """Have a person agree to what is allowed from now on. Raises NotTerminal, click.Abort."""
    if not is_at_terminal():
        raise NotTerminal(f"this would allow more ({printable('; '.join(raised), 400)})")
    say("This allows more than before:")
    for words in raised:
        say(f"  {printable(words, 200)}")
    network = find_network(after.network, settings.network_file)
    if network.testnet:
        click.confirm("Allow it?", abort=True, err=True)
        return
    sentence = f"spend real money on {network.name}"
    say(f"{network.title} is no test network: what is spent there is gone. To go on, type:  {sentence}")
    if click.prompt("", prompt_suffix="> ", default="", show_default=False, err=True).strip() != sentence:
        raise click.Abort


def _save(file: PolicyFile, before: StoredPolicy | None, after: StoredPolicy) -> None:
    """Put it in force, unless another command has changed it meanwhile. Raises MeshnodeError, HomeNotWritable."""
    with file.changing():
        if _present(file, damaged_too=before is None) != before:
            raise MeshnodeError("the policy was changed meanwhile", fix="look at it, and run the command again")
        file.save(after)


# --- shown ----------------------------------------------------------------------------------------------------


def _show(stored: StoredPolicy, settings: Settings, *, changed: bool, as_json: bool) -> None:
    facts = _facts_if_any()
    standing = wallets(settings).policy(network=settings.network, no_pay=settings.no_pay)
    if as_json:
        spent = ("month", "committed_micros", "reserved_micros", "locked_micros", "remaining_micros")
        now = {name: facts[name] for name in spent} if facts else None
        return emit({**facts_of(stored), "paying": not standing.why_not, "why_not": standing.why_not, "now": now})
    rows = _rows(stored, settings)
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        write_line(f"{name:<{width}}  {value}")
    if facts and stored.policy.month_micros:
        write_line(f"{facts['month']:<{width}}  {_month(facts, stored.policy.month_micros)}")
    if changed:
        say("saved; a running node knows it at once")
    if standing.why_not:
        say(f"nothing is paid now: {printable(standing.why_not, 300)}")


def _rows(stored: StoredPolicy, settings: Settings) -> list[tuple[str, str]]:
    policy = stored.policy
    mode = "auto: strangers are paid within these bounds" if policy.mode == "auto" else "off: nobody is paid"
    ceilings = [
        ("ceiling" if not model else f"  {printable(model, 40)}", price)
        for model, price in [("", policy.ceiling), *sorted(policy.model_ceilings.items())]
    ]
    return [
        ("mode", mode),
        ("network", f"{printable(stored.network)} ({_money(stored.network, settings)})"),
        ("a month", f"{usd(policy.month_micros)} at most, and {usd(policy.gas_month_micros)} of fees"),
        *(
            (name, "none: nothing is paid" if price is None else
             f"{usd(price.tokens_in)} in, {usd(price.tokens_out)} out, for a million tokens")
            for name, price in ceilings
        ),
        ("a channel", f"{usd(policy.deposit_micros)} to begin with, {usd(policy.most_deposit_micros)} at most"),
        ("ahead", f"{usd(policy.prepay_micros)} at most, before it is delivered"),
    ]  # fmt: skip


def _money(network: str, settings: Settings) -> str:
    try:
        return "test money" if find_network(network, settings.network_file).testnet else "real money"
    except SettingsError:
        return "not known here"


def _month(facts: dict[str, Any], cap_micros: int) -> str:
    parts = [f"{usd(facts['committed_micros'])} spent", f"{usd(facts['remaining_micros'])} left"]
    if facts["reserved_micros"]:
        parts.append(f"{usd(facts['reserved_micros'])} held for running requests")
    if facts["locked_micros"]:
        parts.append(f"{usd(facts['locked_micros'])} locked in channels")
    return f"{bar(facts['committed_micros'], cap_micros)}  {', '.join(parts)}"


def bar(part: int, whole: int) -> str:
    """How much of a whole is gone, in BAR_COLUMNS signs: never empty when something is, never full before all is."""
    filled = 0 if whole <= 0 else min(BAR_COLUMNS, BAR_COLUMNS * part // whole)
    if 0 < part < whole:
        filled = min(BAR_COLUMNS - 1, max(1, filled))
    return "█" * filled + "░" * (BAR_COLUMNS - filled)


def _facts_if_any() -> dict[str, Any] | None:
    """What the node that runs here has spent; None where none does, or it ends just now."""
    try:
        return spending_of(find_node())
    except NodeNotRunning:
        return None
