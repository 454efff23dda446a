"""`meshnode wallet`: its keys and its balance, with or without a running node; and, from the modules beside this one,
what may be spent (wallet_policy) and money in channels (wallet_channels).
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import click

from meshnode.cli.money import ask_password, is_at_terminal, json_option, password_file_option, wallets
from meshnode.cli.render import command_errors, emit, say, write_line
from meshnode.cli.wallet_channels import channels, close, deposit, panic, withdraw
from meshnode.cli.wallet_policy import policy
from meshnode.errors import NotTerminal, NoWallet, SettingsError, StateError
from meshnode.policies import usd
from meshnode.wallets import find_network

MOST_IMPORT_CHARS = 20_000
PASSWORD = "Password of the wallet"
WEI_DIGITS = 18
SHOWN_ETH_DIGITS = 6

kdf_option = click.option(
    "--kdf",
    type=click.Choice(["scrypt", "pbkdf2"]),
    default="scrypt",
    show_default=True,
    help="how the password is hardened; pbkdf2 where 256 MB of memory are too much",
)


@click.group()
def wallet() -> None:
    """Money for strangers, and from them: keys, what may be spent, channels.

    Nothing is paid by having a wallet, nor by money in it: `meshnode wallet policy` says what may be spent.
    """


@wallet.command(short_help="Make a wallet")
@password_file_option("the password of the new wallet, instead of asking for it")
@kdf_option
@json_option
@command_errors
def new(password_file: Path | None, kdf: str, as_json: bool) -> None:
    """Make a wallet: a key for the money, under a password, and one that signs what is paid."""
    here = wallets()
    if here.address() is None and password_file is None:
        say("The password opens the key that holds the money. Nobody can give it back to you.")
    _say_made(here.make(ask_password(PASSWORD, password_file, twice=True), kdf), as_json=as_json)


@wallet.command("import", short_help="Take the key of another wallet")
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True, path_type=Path), required=False)
@password_file_option("the password of the keystore; of a bare key, the one it is kept under from now on")
@kdf_option
@json_option
@command_errors
def import_(file: Path | None, password_file: Path | None, kdf: str, as_json: bool) -> None:
    """Take the key of another wallet: a keystore file (version 3), or a bare key.

    FILE may be `-` for stdin. Without FILE a bare key is asked for; it never stands on a command line.
    """
    text = _imported(file)
    is_bare = not text.lstrip().startswith("{")
    password = ask_password("New password" if is_bare else "Password of the keystore", password_file, twice=is_bare)
    _say_made(wallets().take(text, password, kdf=kdf), as_json=as_json)


def _imported(file: Path | None) -> str:
    if file is None:
        if not is_at_terminal():
            raise NotTerminal("a key is asked for there", fix="give it FILE, or - for stdin")
        return str(click.prompt("Key (64 hex digits, not shown)", hide_input=True, err=True))
    if str(file) == "-":
        return sys.stdin.read(MOST_IMPORT_CHARS)
    try:
        with file.open("r", encoding="utf-8", errors="replace") as opened:
            return opened.read(MOST_IMPORT_CHARS)
    except OSError as reason:
        raise StateError(f"{file} cannot be read: {reason.strerror}") from None


def _say_made(facts: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        return emit(facts)
    write_line(facts["address"])
    say(f"kept in {facts['keystore']}; back that file up, and its password")
    say(f"  vouchers are signed by {facts['voucher']}")
    say("  to fill it:            send USDC there, on the network of the policy; meshnode wallet balance")
    say("  to let the node spend: meshnode wallet policy --mode auto --max-usd-per-month 5 --max-usd-per-mtok-out 0.60")


@wallet.command(short_help="Print the key of the money, under its password")
@command_errors
def export() -> None:
    """Print the key of the money as other wallets read it: a keystore (version 3), still under its password."""
    write_line(wallets().export())
    say("it is still under its password; show it to nobody all the same")


@wallet.command(short_help="Print the address of the wallet")
@json_option
@command_errors
def address(as_json: bool) -> None:
    """Print the address of the wallet."""
    here = wallets()
    found, voucher = here.address(), here.voucher_address()
    if found is None and voucher is None:
        raise NoWallet(f"home {here.folder.parent}")
    if as_json:
        return emit({"address": found, "voucher": voucher})
    if found is None:
        # A node that only earns: this key signs, pays the fees, and is paid unless --receiver says otherwise.
        write_line(str(voucher))
        return say("there are no funds here: this is the key that signs and pays fees; it is paid what the node earns")
    write_line(found)
    say(f"vouchers are signed by {voucher}" if voucher else "no key signs vouchers here: meshnode wallet import anew")


@wallet.command(short_help="What the wallet holds on the chain")
@json_option
@click.pass_context
@command_errors
def balance(ctx: click.Context, as_json: bool) -> None:
    """What the wallet holds on the chain. Money in channels is not counted: meshnode wallet channels."""
    from meshnode.cli.main import settings_of

    settings = settings_of(ctx)
    here = wallets(settings)
    if not here.exists():
        raise NoWallet(f"home {here.folder.parent}")
    network = find_network(settings.network, settings.network_file)
    endpoints = settings.rpc or _usual_endpoints(network.name)
    facts = asyncio.run(here.balance(network, endpoints))
    if as_json:
        return emit(facts)
    kind = "test money" if facts["testnet"] else "real money"
    write_line(f"{usd(facts['usdc_micros'])} USDC  {facts['address'] or '-'}")
    write_line(f"{eth(int(facts['voucher_wei']))} ETH for fees  {facts['voucher'] or '-'}")
    say(f"on {facts['network']} ({kind})")


def _usual_endpoints(network: str) -> tuple[str, ...]:
    """Where a node asks that chain when nothing is set. Raises SettingsError for a chain of one's own."""
    from meshnode.wallets import usual_endpoints

    found = usual_endpoints(network)
    if not found:
        raise SettingsError(
            f"no endpoint of {network} is set", fix='name one: rpc = ["http://..."] in config.toml, or MESHNODE_RPC'
        )
    return found


def eth(wei: int) -> str:
    """Ether in as many digits as say something, rounded down."""
    whole, rest = divmod(wei, 10**WEI_DIGITS)
    return f"{whole}.{rest:0{WEI_DIGITS}d}"[: len(str(whole)) + 1 + SHOWN_ETH_DIGITS]


for _command in (policy, deposit, withdraw, channels, close, panic):
    wallet.add_command(_command)
