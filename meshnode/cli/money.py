"""What the commands about money share: amounts, passwords, the running node, and what it has sent to the chain.

Secrets are typed where nobody sees them, or read from a file; they stand in no argument, as other users of a machine
can list those.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from meshnode.cli.client import ReportedError, RunningNode, find_node
from meshnode.cli.render import emit, printable, say, table, write_line
from meshnode.config import Settings, find_places
from meshnode.errors import MeshnodeError, NodeNotFound, NodeNotRunning, NotTerminal, WalletLocked
from meshnode.policies import MOST_PRICE, parse_usd, usd
from meshnode.wallets import Wallets, password_in

MOVE_LIMIT_S = 300.0
"""A deposit is waited for until the chain has it; the node gives up before this."""
NODE_ID_CHARS = 64
LEAST_DIGITS = 4
SHOWN_DIGITS = 10
CALLDATA_COLUMNS = 120
ASKED = "asked-provider"
"""The state of a transaction that another node sends, and pays the fee of."""
_START_ONE = "start it first: meshnode --auto, then run the command again"


class Usd(click.ParamType[int]):
    """An amount of dollars as whole micro-USDC; `most` is what may be typed at the most."""

    name = "USD"

    def __init__(self, most: int | None = None) -> None:
        self._most = most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return parse_usd(value) if self._most is None else parse_usd(value, self._most)
        except ValueError as reason:
            self.fail(str(reason), param, ctx)


USD = Usd()
PRICE = Usd(MOST_PRICE)

dry_run_option = click.option(
    "--dry-run", is_flag=True, help="show what would be sent, with calldata, gas and dollars; send nothing"
)
json_option = click.option("--json", "as_json", is_flag=True, help="print one JSON object")


def password_file_option(help: str) -> Callable[[Any], Any]:
    """The option that names a file with a password."""
    kind = click.Path(dir_okay=False, path_type=Path)
    return click.option("--password-file", type=kind, metavar="PATH", help=help)


# --- people ---------------------------------------------------------------------------------------------------


def is_at_terminal() -> bool:
    """Whether a person is there who sees what is asked and answers it: stdin and stderr are both a terminal."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def ask_password(what: str, file: Path | None, *, twice: bool = False) -> bytes:
    """The password, of the file or of the person. Raises NotTerminal without either, StateError for the file."""
    if file is not None:
        return password_in(file)
    if not is_at_terminal():
        raise NotTerminal(f"{what} is asked for there", fix="run the command in a terminal, or give it --password-file")
    typed = str(click.prompt(what, hide_input=True, confirmation_prompt=twice, err=True))
    return typed.encode(errors="surrogateescape")


def short_address(address: str) -> str:
    """0x1234…cdef: enough of an address to tell it from others, not to pay to."""
    return f"{address[:6]}…{address[-4:]}" if len(address) > SHOWN_DIGITS + 2 else address


def short_id(digits: str) -> str:
    """The first digits of the id of a node or a channel."""
    bare = digits.removeprefix("0x")
    return digits[: len(digits) - len(bare)] + printable(bare, NODE_ID_CHARS)[:SHOWN_DIGITS]


# --- the running node -----------------------------------------------------------------------------------------


def wallets(settings: Settings | None = None) -> Wallets:
    """The wallet of this home."""
    return Wallets(find_places().home, password_file=settings.wallet_password_file if settings else None)


def money_node() -> RunningNode:
    """The node of this home. Raises NodeNotRunning, with what to do about it: money moves through it alone."""
    try:
        return find_node()
    except NodeNotRunning as error:
        raise NodeNotRunning(error.detail, fix=_START_ONE) from None


def spending_of(node: RunningNode) -> dict[str, Any]:
    """The answer of GET /api/spending."""
    return dict(node.call("GET", "/api/spending"))


def move(act: str, body: dict[str, object], *, password_file: Path | None = None, as_json: bool) -> dict[str, Any]:
    """POST /api/wallet/ACT with the terminal value of the wallet, and show what was sent, or would be.

    Where the node says that the key of the funds is locked, its password is asked for, and the call made once more.
    """
    node = money_node()
    headers = {"x-meshnode-terminal": wallets().terminal_token()}
    path = f"/api/wallet/{act}"
    if password_file is not None:
        body = {**body, "password": _text(password_in(password_file))}
    try:
        answer = node.call("POST", path, body, timeout_s=MOVE_LIMIT_S, headers=headers)
    except ReportedError as refused:
        if refused.code != WalletLocked.code or not is_at_terminal():
            raise
        password = _text(ask_password("Password of the wallet", None))
        body = {**body, "password": password}
        answer = node.call("POST", path, body, timeout_s=MOVE_LIMIT_S, headers=headers)
    emit(answer) if as_json else show_moved(answer)
    return dict(answer)


def _text(password: bytes) -> str:
    try:
        return password.decode()
    except UnicodeDecodeError:
        raise MeshnodeError("the password is not UTF-8 text", fix="use one of letters, digits and signs") from None


def show_moved(answer: dict[str, Any]) -> None:
    """Transactions on stdout, each with its calldata where it was not sent; the rest is talk."""
    sent = answer["transactions"]
    if sent:
        table(["WHAT", "STATE", "TO", "GAS", "FEE"], [_transaction_row(each) for each in sent])
    for each in sent:
        if each["hash"]:  # on a line of its own: a table is cut to the terminal
            write_line(f"{each['purpose']}  {each['hash']}")
    if answer["dry_run"]:
        for each in sent:
            if each["calldata"] and each["calldata"] != "0x":
                write_line(f"\n{each['purpose']}  calldata, {(len(each['calldata']) - 2) // 2} bytes")
                for at in range(0, len(each["calldata"]), CALLDATA_COLUMNS):
                    write_line(f"  {each['calldata'][at : at + CALLDATA_COLUMNS]}")
        fees = sum(each["fee_micros"] or 0 for each in sent)
        cost = f"it would cost {usd(fees)} of fees" if fees else "it would cost no fee here"
        say(f"nothing was sent; {cost}" if sent else "nothing would be sent")
    if answer["note"]:
        say(printable(answer["note"], 400))


def _transaction_row(each: dict[str, Any]) -> list[str]:
    ours = each["state"] != ASKED
    return [
        printable(each["purpose"], 24),
        printable(each["state"], 20) if ours else "by the provider",
        short_address(each["to"]) if each["to"] else "-",
        f"{each['gas']:,}" if ours and each["gas"] is not None else "-",
        usd(each["fee_micros"]) if ours and each["fee_micros"] is not None else "-",
    ]


# --- names of nodes and channels ------------------------------------------------------------------------------


def node_meant(node: RunningNode, words: str) -> str:
    """The id of the node that a person means: all of it, its first digits, or the name of one in the public mesh.

    What nobody here is called goes to the node as it is, which knows more. Raises NodeNotFound where several are meant.
    """
    wanted = words.strip().lower()
    if len(wanted) == NODE_ID_CHARS:
        return wanted
    swarm = node.call("GET", "/api/status").get("swarm") or {}
    found = {
        str(peer["id"])
        for peer in swarm.get("peers", [])
        if str(peer["name"]).lower() == wanted or (len(wanted) >= LEAST_DIGITS and str(peer["id"]).startswith(wanted))
    }
    if len(found) > 1:
        raise NodeNotFound(f"{printable(words)} could be any of {len(found)}", fix="give more digits of its id")
    return found.pop() if found else wanted


def channel_meant(node: RunningNode, words: str) -> str:
    """The id of the open channel that a person means: all or the first digits of it, or of the node that it is with.

    Raises NodeNotFound where there is none, or several.
    """
    wanted = words.strip().lower()
    bare = wanted.removeprefix("0x")
    found = [
        str(each["id"])
        for each in spending_of(node)["channels"]
        if each["role"] == "payer"
        and each["state"] != "closed"
        and len(bare) >= LEAST_DIGITS
        and (str(each["id"]).removeprefix("0x").startswith(bare) or str(each["node"]).startswith(wanted))
    ]
    if len(found) == 1:
        return found[0]
    if found:
        raise NodeNotFound(f"{printable(words)} could be any of {len(found)} channels", fix="meshnode wallet channels")
    raise NodeNotFound(f"no open channel is {printable(words)}", fix="meshnode wallet channels shows them")
