"""The view Spending in a real browser: what may be spent, what was, and that it reads and does nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from meshnode.api.spending_control import nothing_spent
from tests.console.fake_mesh import Facts, FakeMesh, a_status, a_stranger, a_swarm, fake_mesh, node_id
from tests.console.hostile_texts import HOSTILE
from tests.console.pages import overflows
from tests.console.spending_facts import NOW, a_channel, a_receipt, a_spending, a_transaction
from tests.e2e.waiting import eventually

REFUSED = r"status of [45]\d\d"
SPENDING = "/api/spending"
NAMES = ["\u202egnp.exe\u2066x\u2069", "\u200b\ufeff", "a\u0301" * 300, "W" * 4000, "", "__proto__", *HOSTILE.values()]
STOPPED_CLOCK = f"Date.now = () => {NOW * 1000:.0f}"


@pytest.fixture
def fake() -> Iterator[Callable[..., FakeMesh]]:
    """`fake(facts)` is a running node whose accounts are these."""
    with ExitStack() as stack:

        def start(facts: Facts, *peers: Facts) -> FakeMesh:
            swarm = a_swarm(*peers) if peers else None
            started = stack.enter_context(fake_mesh(a_status(swarm=swarm)))
            started.answers[SPENDING] = (200, facts)
            return started

        yield start


def card(page: Any, title: str) -> Any:
    """The part of the view with that title."""
    return page.locator("main .card").filter(has=page.get_by_role("heading", name=title, level=2, exact=True))


def fact(page: Any, title: str, name: str) -> str:
    """What stands beside a name in the facts of a part."""
    found = card(page, title).locator("dl.facts > div").filter(has=page.locator("dt", has_text=re.compile(f"^{name}$")))
    return " ".join(str(found.locator("dd").inner_text()).split())


def rows(page: Any, title: str) -> list[list[str]]:
    """The texts of a table, row by row."""
    found = card(page, title).locator("tbody tr").all()
    return [[" ".join(cell.split()) for cell in row.locator("td").all_inner_texts()] for row in found]


def stat(page: Any, name: str) -> str:
    """A figure at the top, with its hint."""
    found = page.locator(".stat").filter(has=page.locator("dt", has_text=re.compile(f"^{name}$")))
    return " ".join(str(found.locator("dd").inner_text()).split())


# --- what may be spent, and what was ------------------------------------------------------------------------------


def test_figures_and_bounds(fake, open_console) -> None:
    page = open_console(fake(a_spending()), "spending")
    assert stat(page, "Spent this month") == "$1.234567 25 % of $5.00"
    assert stat(page, "Left this month") == "$3.745433 $0.02 held for running requests"
    assert stat(page, "Locked in channels") == "$0.917 $0.00234 of fees this month"
    assert stat(page, "Earned, not yet claimed") == "$0.021 $0.04 claimed so far"
    bounds = "What may be spent"
    assert "pays strangers" in card(page, bounds).inner_text()
    assert fact(page, bounds, "Cap of a month") == "$5.00"
    assert fact(page, bounds, "A million tokens") == "$0.20 in, $0.60 out"
    assert fact(page, bounds, "… of qwen2.5-72b") == "$0.90 in, $2.50 out"
    assert fact(page, bounds, "Deposit in a channel") == "$0.50, at most $2.00"
    assert fact(page, bounds, "Network") == "base-sepolia test money"
    bar = card(page, bounds).get_by_role("img")
    words = "Spent $1.234567, Held for running requests $0.02, Left $3.745433 of $5.00"
    assert bar.get_attribute("aria-label") == f"The cap of 2026-09: {words}"
    assert fact(page, bounds, "Endpoints") == ("https://one.example answers https://two.example 2 blocks behind")
    earning = "What this node earns"
    assert fact(page, earning, "A million tokens") == "$0.10 in, $0.40 out"
    assert fact(page, earning, "Signed over to it") == "$0.061 in 1 channel"


def test_real_money_and_reasons_are_said(fake, open_console) -> None:
    real = a_spending()["wallet"] | {"network": "base", "testnet": False}
    facts = a_spending(wallet=real, paying=False, why_not="payments are off", damaged="page 3 of ledger.db is torn")
    facts["earning"]["why_not"] = "the till is closed"
    facts["chain"] = {
        "why_not": "the chain cannot be reached",
        "endpoints": [{"url": "u", "ok": False, "behind": None}],
    }
    page = open_console(fake(facts), "spending")
    assert fact(page, "What may be spent", "Network") == "base real money"
    assert "pays nobody" in card(page, "What may be spent").inner_text()
    page.get_by_text("Payments are off.").wait_for()
    page.get_by_text("Page 3 of ledger.db is torn.").wait_for()
    page.get_by_text("The till is closed.").wait_for()
    page.get_by_text("The chain cannot be reached.").wait_for()
    assert fact(page, "What may be spent", "Endpoints") == "u does not answer"


@pytest.mark.parametrize(("spent", "told"), [(3_979_999, False), (3_980_000, True), (4_980_000, True)])
def test_the_cap_is_said_before_it_is_reached(fake, open_console, spent: int, told: bool) -> None:
    page = open_console(
        fake(a_spending(committed_micros=spent, remaining_micros=5_000_000 - 20_000 - spent)), "spending"
    )
    card(page, "Receipts").wait_for()
    assert (page.get_by_text("of the cap is used").count() == 1) == told


def test_channels_receipts_days_providers_and_the_chain(fake, open_console) -> None:
    page = open_console(fake(a_spending(), a_stranger(1, name="harbour")), "spending", wait=False)
    page.add_init_script(STOPPED_CLOCK)
    page.reload()
    card(page, "Channels").locator("tbody tr").first.wait_for()
    channels = rows(page, "Channels")
    assert channels[0][1:] == ["pays", "harbour", "open", "$0.47", "$0.041237", "$0.041225", "$0.03"]
    assert channels[0][0] == a_channel(1)["id"][:10]
    assert channels[1][3] == "taken back back in 13 h 53 min" and channels[1][2] == node_id(2)[:10]
    assert channels[2][1] == "is paid" and channels[2][3] == "opening" and channels[3][3] == "closed"
    receipts = rows(page, "Receipts")
    assert receipts[0][1:7] == ["paid", "harbour", "qwen2.5-7b", "512 in, 1,025 out", "$0.000717", "to its end"]
    assert receipts[1][1] == "earned" and receipts[1][6] == "ended by the caller" and receipts[2][6] == "broken off"
    days = rows(page, "By day")
    assert [row[0] for row in days] == [f"2026-09-{day}" for day in range(20, 14, -1)], "the newest first"
    assert days[1] == ["2026-09-19", "$0.09", "$0.012345", "1"]
    providers = rows(page, "By provider")
    assert [row[1] for row in providers] == ["$0.70", "$0.35", "$0.233333"] and providers[0][0] == "harbour"
    sent = rows(page, "On the chain")
    assert [row[1:4] for row in sent] == [
        ["deposit", "final", "$0.00084"],
        ["claim", "in a block", "$0.00084"],
        ["deposit", "failed", "$0.00084"],
    ]
    page.get_by_role("button", name="Copy the hash of the transaction").first.click()
    copied = a_transaction(1)["hash"]
    page.wait_for_function("want => navigator.clipboard.readText().then(text => text === want)", arg=copied)


def test_a_bar_is_as_long_as_its_share(fake, open_console) -> None:
    page = open_console(fake(a_spending()), "spending")
    widths = card(page, "By provider").locator(".track span").evaluate_all("all => all.map((each) => each.style.width)")
    assert [round(float(width.rstrip("%"))) for width in widths] == [100, 50, 33]


# --- nothing, loading, faults -------------------------------------------------------------------------------------


def test_a_node_without_money_says_how_to_begin(fake, open_console, axe) -> None:
    page = open_console(fake(nothing_spent()), "spending")
    words = card(page, "Nothing is spent").inner_text()
    assert "There is no wallet." in words and "meshnode wallet new" in words
    assert "--max-usd-per-month 5" in words and "--price-out 0.40" in words
    assert page.locator("main .card").count() == 1
    axe(page)


def test_a_wallet_with_nothing_done_yet(fake, open_console) -> None:
    empty = {name: [] for name in ("channels", "receipts", "by_day", "by_provider", "transactions")}
    facts = a_spending(**empty, committed_micros=0, reserved_micros=0, remaining_micros=5_000_000)
    facts["earning"] |= {"selling": False, "vouched_micros": 0, "price": None}
    page = open_console(fake(facts), "spending")
    page.get_by_text("No channel is open").wait_for()
    page.get_by_text("No receipts yet").wait_for()
    page.get_by_text("It has no price: strangers are served for free, if at all.").wait_for()
    assert "Nobody was paid yet." in card(page, "By provider").inner_text()
    assert card(page, "On the chain").count() == 0
    assert stat(page, "Spent this month") == "$0.00 0 % of $5.00"


def test_it_is_read_anew_when_something_was_finished(fake, open_console) -> None:
    page = open_console(node := fake(a_spending()), "spending")
    page.get_by_text("$1.234567").first.wait_for()
    node.answers[SPENDING] = (200, a_spending(committed_micros=1_300_000))
    node.change(requests=node.status["requests"] | {"finished": 1})
    page.get_by_text("$1.30").first.wait_for()
    before = len(node.asked)
    node.change(requests=node.status["requests"] | {"waiting": 1})
    page.wait_for_timeout(2500)  # longer than the view waits between two looks
    assert len(node.asked) == before, "nothing was finished, so nothing is asked"


def test_what_cannot_be_read_is_said_and_the_last_facts_stay(fake, open_console) -> None:
    page = open_console(node := fake(a_spending()), "spending")
    page.get_by_text("$1.234567").first.wait_for()
    page.expected(REFUSED)
    node.answers[SPENDING] = (500, {"error": {"code": "ledger-damaged", "message": "it is torn", "fix": "put it back"}})
    node.change(requests=node.status["requests"] | {"finished": 1})
    page.get_by_text("The accounts cannot be read").wait_for()
    page.get_by_text("Put it back.").wait_for()
    assert page.get_by_text("$1.234567").count() > 0
    node.answers[SPENDING] = (200, a_spending())
    node.change(requests=node.status["requests"] | {"finished": 2})
    page.get_by_text("The accounts cannot be read").wait_for(state="detached")


@pytest.mark.parametrize(("peer", "cost", "words"), [("", 717, "$0.000717"), ("ab" * 32, 717, "earned $0.000717")])
def test_a_request_says_what_it_cost(fake, open_console, peer: str, cost: int, words: str) -> None:
    node = fake(a_spending())
    row = dict.fromkeys(("first_byte_s", "queued_s", "retries", "resumed", "tokens_in", "tokens_out"), 0)
    texts = dict.fromkeys(("node", "error", "wanted", "output_sha256", "reached"), "")
    row |= texts | {"id": "req_1", "endpoint": "/v1/chat/completions", "model": "demo", "status": 200, "stream": True}
    row |= {"total_s": 1.0, "radius": "public", "at": NOW, "outcome": "ok", "where": "there", "peer": peer}
    node.status["requests"] = node.status["requests"] | {"recent": [row | {"cost_micros": cost}]}
    page = open_console(node, "requests")
    page.get_by_role("button", name="req_1", exact=True).click()
    details = page.get_by_role("dialog").locator("dl.facts > div").filter(has_text="Cost")
    assert details.locator("dd").inner_text() == words


# --- it spends nothing --------------------------------------------------------------------------------------------


def test_no_button_of_it_asks_the_node_to_do_anything(fake, open_console) -> None:
    page = open_console(node := fake(a_spending()), "spending")
    page.get_by_text("No page and no program can widen these bounds").wait_for()
    assert page.locator("main input, main select, main textarea, main form").count() == 0
    for button in page.locator("main button").all():
        button.click()
    assert {path for path, _ in node.asked} == {SPENDING}
    assert "x-meshnode-terminal" not in page.content() and "terminal.token" not in page.content()


@pytest.mark.engine
def test_the_page_of_a_real_node_can_move_no_money(open_console, demo_server) -> None:
    page = open_console(demo_server, "spending")
    page.expected(REFUSED)
    statuses = page.evaluate(
        """async () => {
          const { post } = await import("./api.js");
          const tried = [];
          for (const act of ["deposit", "withdraw", "close", "claim", "panic"])
            await post(`api/wallet/${act}`, { node: "a", amount_micros: 1, channel: `0x${"0".repeat(64)}` })
              .then(() => tried.push("done"), (error) => tried.push(error.code));
          return tried;
        }"""
    )
    assert statuses == ["no-wallet"] * 5
    card(page, "Nothing is spent").wait_for()


# --- strangers' texts, looks --------------------------------------------------------------------------------------


def test_names_that_strangers_wrote_are_text(fake, open_console) -> None:
    facts = a_spending(
        channels=[a_channel(at, state=name) for at, name in enumerate(NAMES)],
        receipts=[a_receipt(at, model=name, finish=name, request=name) for at, name in enumerate(NAMES)],
        transactions=[a_transaction(at, purpose=name, state=name, hash=name) for at, name in enumerate(NAMES)],
        why_not=NAMES[0],
        damaged=NAMES[3],
    )
    facts["policy"]["model_ceilings"] = {name: {"in": 1, "out": 2} for name in NAMES}
    facts["wallet"]["network"] = NAMES[3]
    peers = [a_stranger(at, name=name) for at, name in enumerate(NAMES)]
    page = open_console(fake(facts, *peers), "spending", width=360)
    eventually(lambda: len(rows(page, "Receipts")) == len(NAMES))
    assert page.locator("main img, main script, main iframe, main a[href^=javascript]").count() == 0
    assert not re.search("[\u202a-\u202e\u2066-\u2069\u200b\ufeff]", page.content())
    assert not overflows(page)


@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 1280), ("light", 360), ("dark", 360)])
def test_it_is_accessible_and_fits(fake, open_console, axe, theme: str, width: int) -> None:
    page = open_console(fake(a_spending()), "spending", width=width, theme=theme)
    card(page, "Receipts").locator("tbody tr").first.wait_for()
    axe(page)
    assert not overflows(page)


def test_large_accounts_stay_quick(fake, open_console) -> None:
    facts = a_spending(
        channels=[a_channel(number) for number in range(200)],
        receipts=[a_receipt(number) for number in range(50)],
        transactions=[a_transaction(number) for number in range(50)],
        committed_micros=10**15,
    )
    page = open_console(node := fake(facts), "spending")
    eventually(lambda: card(page, "Channels").locator("tbody tr").count() == 200)
    assert stat(page, "Spent this month").startswith("$1,000,000,000.00")
    assert node.asked[0][0] == SPENDING
