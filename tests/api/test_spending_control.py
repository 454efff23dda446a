"""Money moves for whoever has the terminal value and for nobody else; members are checked; the rest is reading."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from meshnode.api.openapi import document
from meshnode.api.spending_control import (
    MOST_MICROS,
    MOST_PASSWORD_BYTES,
    SpendingControl,
    no_spending,
    nothing_spent,
    spending_commands,
    spending_questions,
)
from meshnode.errors import BadRequest, NotTerminal, NoWallet
from tests.api.console import TERMINAL, TOKEN, Console, FakeMesh, console
from tests.api.raw_http import Connection
from tests.api.schemas import faults

pytestmark = pytest.mark.anyio

NODE, CHANNEL = "ab" * 32, "0x" + "cd" * 32
MOVES = [call for call in Console().calls() if call.path.startswith("/api/wallet/")]
GOOD: dict[str, dict[str, object]] = {
    "/api/wallet/deposit": {"node": NODE, "amount_micros": 500_000},
    "/api/wallet/withdraw": {"channel": CHANNEL},
    "/api/wallet/close": {"channel": CHANNEL},
    "/api/wallet/claim": {},
    "/api/wallet/panic": {},
}
SPENDING = {"$ref": "#/components/schemas/Spending"}


def commands(asked: list[object]) -> Any:
    return spending_commands(SpendingControl(FakeMesh(asked), TERMINAL))


# --- who may ----------------------------------------------------------------------------------------------------


async def test_the_token_that_every_page_has_moves_no_money() -> None:
    """The place of the caller, the token and the terminal value are asked for before anything of a body is read."""
    assert {call.path for call in MOVES} == set(GOOD) and all(call.terminal and call.token for call in MOVES)
    async with console() as node, await Connection.open(node.port) as connection:
        own = {"host": f"localhost:{node.port}", "origin": f"http://localhost:{node.port}", "x_meshnode_token": TOKEN}
        for path, members in GOOD.items():
            for given in ("", "wrong", TERMINAL[:-1], TERMINAL + " ", TOKEN):
                for body in (members, b"{"):
                    reply = await connection.ask(path, body, **own, x_meshnode_terminal=given)
                    assert (reply.status, reply.error["code"]) == (403, "not-a-terminal"), (path, given)
                    assert TERMINAL not in reply.body.decode()
            reply = await connection.ask(path, members, **own)
            assert (reply.status, reply.error["code"]) == (403, "not-a-terminal"), path
            reply = await connection.ask(path, members, x_meshnode_terminal=TERMINAL)
            assert (reply.status, reply.error["code"]) == (403, "forbidden"), path
            evil = {"origin": "https://evil.example", "x_meshnode_token": TOKEN, "x_meshnode_terminal": TERMINAL}
            assert (await connection.ask(path, members, **evil)).status == 403, path
        assert node.asked == []
        for path, members in GOOD.items():
            assert (await node.ask(path, members)).status == 200, path
        assert [call[0] for call in node.asked] == [path.rpartition("/")[2] for path in GOOD]  # type: ignore[index]


async def test_no_call_changes_what_may_be_spent() -> None:
    paths = [call.path for call in Console().calls() if call.method == "POST"]
    assert not [path for path in paths if "policy" in path or "spending" in path or "ceiling" in path or "cap" in path]
    async with console() as node:
        for path in ("/api/spending", "/api/receipts", "/api/wallet/policy", "/api/policy"):
            assert (await node.ask(path, {"mode": "auto"})).status in (404, 405)
        for path, members in GOOD.items():
            assert (await node.ask(path, members)).status == 200
            more = {"policy": {"mode": "auto"}, "mode": "auto", "month_micros": 10**12, "max_usd_per_month": 9}
            assert (await node.ask(path, {**members, **more})).status == 200
            assert node.asked[-1] == node.asked[-2], "what is not asked for never arrives"


async def test_what_is_spent_is_shown_to_the_page_and_to_nobody_without_the_token() -> None:
    async with console() as node, await Connection.open(node.port) as connection:
        for path in ("/api/spending", "/api/receipts"):
            assert (await connection.ask(path)).status == 403
            assert (await connection.ask(path, x_meshnode_token=TOKEN)).status == 200
        assert (await node.ask("/api/receipts?limit=7")).status == 200
        assert node.asked == [("facts",), ("receipts", 100), ("receipts", 7)]


# --- members ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "members", "asked"),
    [
        ("deposit", {"node": f" {NODE} ", "amount_micros": 1}, ("deposit", NODE, 1, None, False)),
        (
            "deposit",
            {"node": "studio", "amount_micros": MOST_MICROS, "password": "päss", "dry_run": True},
            ("deposit", "studio", MOST_MICROS, "päss".encode(), True),
        ),
        ("withdraw", {"channel": CHANNEL.upper().replace("0X", "0x")}, ("withdraw", CHANNEL, False)),
        ("close", {"channel": CHANNEL, "dry_run": True}, ("close", CHANNEL, True)),
        ("claim", {"dry_run": False}, ("claim", False)),
        ("panic", {"channel": "ignored"}, ("panic", False)),
    ],
)
async def test_members_arrive(path: str, members: dict[str, object], asked: tuple[object, ...]) -> None:
    seen: list[object] = []
    await commands(seen)[f"/api/wallet/{path}"](members)
    assert seen == [asked]


@pytest.mark.parametrize(
    ("path", "members"),
    [
        *(("deposit", {"node": node, "amount_micros": 1}) for node in ("", " ", 7, None, "n" * 65)),
        *(
            ("deposit", {"node": NODE, "amount_micros": amount})
            for amount in (0, -1, MOST_MICROS + 1, 1.0, "1", True, None, 10**400)
        ),
        *(
            ("deposit", {"node": NODE, "amount_micros": 1, "password": password})
            for password in (7, "a\0b", "x" * (MOST_PASSWORD_BYTES + 1), "\ud800", ["x"])
        ),
        *((path, {"channel": CHANNEL, "dry_run": dry}) for path in ("withdraw", "close") for dry in ("true", 1, None)),
        *((path, {"dry_run": "yes"}) for path in ("claim", "panic")),
        *(
            ("withdraw", {"channel": channel})
            for channel in ("", CHANNEL[:-1], CHANNEL + "0", CHANNEL[2:], "0x" + "g" * 64, 7, None, CHANNEL + "\n")
        ),
    ],
)
async def test_bad_members_are_refused_and_nothing_is_done(path: str, members: dict[str, object]) -> None:
    seen: list[object] = []
    with pytest.raises(BadRequest) as refused:
        await commands(seen)[f"/api/wallet/{path}"](members)
    assert seen == [] and "x" * 20 not in str(refused.value)


@pytest.mark.parametrize("limit", ["0", "1001", "-1", "1e2", "\u0661", "", "9" * 5000])
async def test_bad_queries_are_refused(limit: str) -> None:
    with pytest.raises(BadRequest):
        await spending_questions(SpendingControl(FakeMesh([]), TERMINAL))["/api/receipts"]({"limit": limit})


# --- a node without money ---------------------------------------------------------------------------------------


async def test_a_node_without_a_wallet_says_so() -> None:
    controls = replace(Console().controls, spending=no_spending(why_not="there is no wallet"))
    async with console(controls=controls) as node:
        facts = (await node.ask("/api/spending")).json
        assert facts == nothing_spent() and not facts["paying"] and facts["policy"]["mode"] == "off"
        assert (await node.ask("/api/receipts")).json == {"receipts": []}
        for path, members in GOOD.items():
            for terminal in ("", TERMINAL):
                reply = await node.ask(path, members, x_meshnode_terminal=terminal)
                assert (reply.status, reply.error["code"]) == (409, "no-wallet"), path
                assert "meshnode wallet new" in reply.error["fix"]


async def test_even_behind_its_check_it_moves_nothing() -> None:
    for path, members in GOOD.items():
        with pytest.raises(NoWallet):
            await spending_commands(no_spending())[path](members)
    with pytest.raises(NoWallet):
        no_spending().check_terminal(b"")
    with pytest.raises(NotTerminal):
        SpendingControl(FakeMesh([]), "x").check_terminal(b"")


async def test_the_terminal_value_may_come_later() -> None:
    """A node makes it when it opens the wallet, which is after its doors are made."""
    values = iter(["", "known now", "known now"])
    control = SpendingControl(FakeMesh([]), lambda: next(values))
    with pytest.raises(NoWallet):
        control.check_terminal(b"")
    with pytest.raises(NotTerminal):
        control.check_terminal(b"")
    control.check_terminal(b"known now")


def test_what_it_shows_is_what_the_document_says() -> None:
    assert list(faults(nothing_spent(network="base", chain=8453), SPENDING, json.loads(document()))) == []
    whole = json.loads(document())["components"]["schemas"]["Spending"]
    assert set(whole["properties"]) == set(nothing_spent()) == set(whole["required"])
