"""The calls of the control API about money: what is spent and earned, and the few that move what the policy allows.

What may be spent is no call at all: ceilings and caps are changed by `meshnode wallet policy`, in a terminal, and the
node only reads them. The calls below move money within that, and ask for more than the token of the node, which every
page of the console has in its own text: for the terminal value, which lies in a file of the wallet's folder (0600) and
which the command line reads there. A page, whatever runs in it, can look on; it cannot spend.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Protocol

from meshnode.errors import BadRequest, NotTerminal, NoWallet
from meshnode.wire.registry import LIMIT_NAME_CHARS

Members = Mapping[str, object]
Facts = dict[str, Any]
Answer = Awaitable[Facts]

TERMINAL_HEADER: Final = "x-meshnode-terminal"
MOST_MICROS: Final = 10**15
"""A thousand million dollars: no amount that is meant is greater, and sums of it stay exact everywhere."""
MOST_RECEIPTS = 1000
MOST_PASSWORD_BYTES = 1024
NODE_ID_CHARS = 64
_NO_WALLET_HERE = "make one, meshnode wallet new, and start the node anew"
_CHANNEL = re.compile(r"0x[0-9a-f]{64}")


class Settlement(Protocol):
    """What a node can be told and asked about money. Amounts are whole micro-USDC; every method raises MeshnodeError
    for what cannot be done. With `dry_run` a method says what it would send, and sends nothing.
    """

    async def facts(self) -> Facts: ...
    async def receipts(self, limit: int) -> Facts: ...
    async def deposit(self, node: str, amount_micros: int, password: bytes | None, dry_run: bool) -> Facts: ...
    async def withdraw(self, channel: str, dry_run: bool) -> Facts: ...
    async def close(self, channel: str, dry_run: bool) -> Facts: ...
    async def claim(self, dry_run: bool) -> Facts: ...
    async def panic(self, dry_run: bool) -> Facts: ...


class SpendingControl:
    """A settlement behind its checks. `terminal` is what must come with every call that moves money, or tells it when
    one comes; "" lets none.
    """

    def __init__(self, settlement: Settlement, terminal: str | Callable[[], str]) -> None:
        self.settlement = settlement
        self._terminal = terminal

    def check_terminal(self, given: bytes) -> None:
        """Raise NotTerminal unless this is the terminal value of the wallet; NoWallet where there is none."""
        wanted = self._terminal() if callable(self._terminal) else self._terminal
        if not wanted:
            raise NoWallet("the node that runs here has opened none", fix=_NO_WALLET_HERE)
        if not hmac.compare_digest(given, wanted.encode()):
            raise NotTerminal(f"the call came without the {TERMINAL_HEADER} of this wallet")


def spending_commands(control: SpendingControl) -> dict[str, Callable[[Members], Answer]]:
    """Path of a POST -> what to do with the members of the request's object, after `check_terminal`."""
    settlement = control.settlement

    def deposit(members: Members) -> Answer:
        return settlement.deposit(_node(members), _amount(members), _password(members), _is_dry(members))

    return {
        "/api/wallet/deposit": deposit,
        "/api/wallet/withdraw": lambda members: settlement.withdraw(_channel(members), _is_dry(members)),
        "/api/wallet/close": lambda members: settlement.close(_channel(members), _is_dry(members)),
        "/api/wallet/claim": lambda members: settlement.claim(_is_dry(members)),
        "/api/wallet/panic": lambda members: settlement.panic(_is_dry(members)),
    }


def spending_questions(control: SpendingControl) -> dict[str, Callable[[Mapping[str, str]], Answer]]:
    """Path of a GET -> what to answer to its query."""

    def receipts(query: Mapping[str, str]) -> Answer:
        text = query.get("limit", "100")
        if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= MOST_RECEIPTS):
            raise BadRequest(f"`limit` must be a whole number from 1 to {MOST_RECEIPTS}")
        return control.settlement.receipts(int(text))

    return {"/api/spending": lambda _: control.settlement.facts(), "/api/receipts": receipts}


# --- a node without money -------------------------------------------------------------------------------------


class _Penniless:
    """The settlement of a node that neither pays nor earns: it shows that, and refuses the rest."""

    def __init__(self, network: str, chain: int, why_not: str) -> None:
        self._facts = nothing_spent(network=network, chain=chain, why_not=why_not)

    async def facts(self) -> Facts:
        return self._facts

    async def receipts(self, limit: int) -> Facts:
        return {"receipts": []}

    async def deposit(self, node: str, amount_micros: int, password: bytes | None, dry_run: bool) -> Facts:
        raise NoWallet

    async def withdraw(self, channel: str, dry_run: bool) -> Facts:
        raise NoWallet

    async def close(self, channel: str, dry_run: bool) -> Facts:
        raise NoWallet

    async def claim(self, dry_run: bool) -> Facts:
        raise NoWallet

    async def panic(self, dry_run: bool) -> Facts:
        raise NoWallet


def nothing_spent(*, network: str = "base-sepolia", chain: int = 84532, why_not: str = "there is no wallet") -> Facts:
    """What GET /api/spending answers where no money is: every member that it ever has, with nothing in it."""
    no_caps = {
        f"{name}_micros": 0 for name in ("month", "deposit", "most_deposit", "gas_month", "prepay")
    }  # in the order of core.ledger.Policy
    return {
        "wallet": {"address": None, "voucher": None, "network": network, "chain": chain, "testnet": True},
        "paying": False,
        "why_not": why_not,
        "policy": {"mode": "off", "network": network, "ceiling": None, "model_ceilings": {}, **no_caps},
        "month": "",
        "committed_micros": 0,
        "reserved_micros": 0,
        "remaining_micros": 0,
        "locked_micros": 0,
        "gas_micros": 0,
        "channels": [],
        "receipts": [],
        "by_day": [],
        "by_provider": [],
        "earning": {
            "selling": False,
            "receiver": None,
            "price": None,
            "vouched_micros": 0,
            "claimed_micros": 0,
            "unclaimed_micros": 0,
            "channels": 0,
            "last_claim_at": None,
            "why_not": "",
        },
        "chain": {},
        "transactions": [],
        "damaged": "",
    }


def no_spending(
    *, network: str = "base-sepolia", chain: int = 84532, why_not: str = "there is no wallet"
) -> SpendingControl:
    """The control of a node without money."""
    return SpendingControl(_Penniless(network, chain, why_not), "")


# --- members of a request -------------------------------------------------------------------------------------


def _node(members: Members) -> str:
    node = members.get("node")
    if not isinstance(node, str) or not 0 < len(node.strip()) <= max(NODE_ID_CHARS, LIMIT_NAME_CHARS):
        raise BadRequest("`node` must be the id of a node, or the name of one that this node knows")
    return node.strip()


def _amount(members: Members) -> int:
    amount = members.get("amount_micros")
    if isinstance(amount, bool) or not isinstance(amount, int) or not 0 < amount <= MOST_MICROS:
        raise BadRequest(f"`amount_micros` must be a whole number from 1 to {MOST_MICROS}")
    return amount


def _channel(members: Members) -> str:
    channel = members.get("channel")
    if not isinstance(channel, str) or not _CHANNEL.fullmatch(channel.lower()):
        raise BadRequest("`channel` must be 0x and the 64 hex digits of a channel")
    return channel.lower()


def _password(members: Members) -> bytes | None:
    password = members.get("password")
    if password is None:
        return None
    if not isinstance(password, str) or "\0" in password:
        raise BadRequest("`password` must be text")
    try:
        encoded = password.encode()
    except UnicodeEncodeError:
        raise BadRequest("`password` must be text") from None
    if len(encoded) > MOST_PASSWORD_BYTES:
        raise BadRequest(f"`password` must be at most {MOST_PASSWORD_BYTES} bytes")
    return encoded


def _is_dry(members: Members) -> bool:
    """Whether it is only to be shown. What is neither true nor false is refused: it would spend by a slip."""
    dry = members.get("dry_run", False)
    if not isinstance(dry, bool):
        raise BadRequest("`dry_run` must be true or false")
    return dry
