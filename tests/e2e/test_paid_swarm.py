"""Strangers are paid: real nodes and engines, a real chain with play money, a relay, all on loopback.

The story as a whole is tools/paid_swarm.py. Beside it stands here what must not happen, each with a payer of its own.
"""

from __future__ import annotations

import http.client
import json
import signal
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from web3.exceptions import Web3Exception

from meshnode.core.prices import Price, charge
from meshnode.core.windows import MOST_AHEAD_TOKENS
from tests.conftest import NodeProcess
from tests.e2e.meshes import SMALL, hosts_of
from tests.e2e.paying import PASSWORD, Home, Paid, Unanswered, World, called, fresh_address, play_world
from tests.e2e.waiting import eventually
from tests.lab.evm import needs_anvil
from tools.paid_swarm import Story
from tools.play_chain import NAME

pytestmark = [pytest.mark.engine, needs_anvil]

DOLLAR = 1_000_000
NOWHERE = "http://127.0.0.1:9"
VOUCHER_KEY = "51ab" * 16
RPC_SECRET = "a-key-of-the-endpoint-51ab"
ENOUGH = (
    *("--mode", "auto", "--network", NAME, "--max-usd-per-month", "2"),
    *("--max-usd-per-mtok-in", "20", "--max-usd-per-mtok-out", "60"),
)
SELLS = ("--model", "demo", "--publish", "--price-in", "20", "--price-out", "60")
FOUND_S, SETTLED_S, NO_VOUCHER_S = 30.0, 60.0, 60.0
PRICE = Price(20_000_000, 60_000_000)
MOST_PROMPT_TOKENS = 64
FIVE_MICROS = charge(PRICE, 17, 10)
DIES_AT = 60
DAY_S = 86_400

NewPayer = Callable[..., Home]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, engine_bin: Path) -> Iterator[World]:
    with play_world(tmp_path_factory.mktemp("paid")) as found:
        yield found


@pytest.fixture(scope="module")
def seller(world: World) -> Home:
    """A provider without a key on its disk. It sends the deposits of others, and is paid to the address in a file."""
    environment = {"MESHNODE_VOUCHER_KEY": VOUCHER_KEY, "MESHNODE_LOG_LEVEL": "debug"}
    home = world.home("seller", **SMALL, **environment)
    receiver = fresh_address()
    home.start(*SELLS, "--receiver", receiver)
    (home.folder / "receiver").write_text(receiver)
    world.give(home.read("wallet", "address")["voucher"], ether=1)
    return home


@pytest.fixture
def new_payer(world: World, seller: Home, tmp_path: Path) -> Iterator[NewPayer]:
    """`new_payer()`: a wallet with five play dollars, bounds that a person has set, a node that knows the seller."""
    made: list[Home] = []

    def make(*arguments: str, **environment: str) -> Home:
        name = f"{tmp_path.name}-{len(made)}"
        home = world.home(name, MESHNODE_WALLET_PASSWORD_FILE=str(world.password_file), **environment)
        made.append(home)
        wallet = home.read("wallet", "new", "--password-file", str(world.password_file))
        world.give(wallet["address"], usd=5)
        home.at_terminal("wallet", "policy", *ENOUGH, answers={"Allow it? [y/N]": "y"})
        start_payer(home, *arguments)
        return home

    yield make
    for home in made:
        home.stop()


def start_payer(home: Home, *arguments: str, **environment: str) -> None:
    home.start("--client", "--auto", *arguments, **environment)
    eventually(lambda: hosts_of(home.running).get("demo") == 1, FOUND_S)


def funds_micros(world: World, payer: Home) -> int:
    """What the chain says that the wallet has."""
    return world.has_micros(payer.read("wallet", "address")["address"])


def earned_micros(world: World, seller: Home) -> int:
    """What the chain has paid to the seller."""
    return world.has_micros((seller.folder / "receiver").read_text())


def charged_micros(seller: Home, payer: Home) -> int:
    """What the seller says that this payer owes in all."""
    (found,) = [each for each in seller.spending()["channels"] if each["node"] == payer.id]
    return int(found["charged_micros"])


def channel_of(payer: Home) -> dict[str, object]:
    (found,) = payer.spending()["channels"]
    return dict(found)


def five(payer: Home) -> None:
    """A short answer, for which is paid what it costs."""
    answer = payer.count_to(5)
    assert (answer.fault(), answer.cost_micros) == ("", FIVE_MICROS)


def refused(payer: Home) -> Unanswered:
    with pytest.raises(Unanswered) as caught:
        payer.count_to(5)
    return caught.value


# --- the story ------------------------------------------------------------------------------------------------


@pytest.mark.timeout(300)
def test_found_too_dear_paid_killed_resumed_and_settled(engine_bin: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    with play_world(tmp_path / "story", lines.append) as world:
        story = Story(world)
        story.all()
        assert [home.node.process.returncode for home in world.homes if home.node] == [0, 0, 0]
    assert lines[-1].strip() == "all is as it should be"
    assert PASSWORD not in "\n".join(lines)


# --- who may spend --------------------------------------------------------------------------------------------


def test_more_is_allowed_in_a_terminal_only(new_payer: NewPayer) -> None:
    payer = new_payer()
    policy = payer.folder / "wallet" / "policy.json"
    before = policy.read_bytes()
    for bounds in (("--max-usd-per-month", "50"), ("--max-usd-per-mtok-out", "61"), ("--max-deposit", "5")):
        words = payer.run("wallet", "policy", *bounds, exit_code=8, stdin="y\n" * 3)
        assert "terminal" in words and policy.read_bytes() == before
    for path in ("/api/wallet/policy", "/api/policy", "/api/spending"):
        assert payer.call("POST", path, {"month_micros": 10**9})[0] in (404, 405)
    assert policy.read_bytes() == before
    payer.run("wallet", "policy", "--max-usd-per-month", "1")
    payer.run("wallet", "policy", "--mode", "off")
    assert refused(payer).code == "payments_off"
    payer.run("wallet", "policy", "--mode", "auto", exit_code=8)


def test_who_says_no_in_the_terminal_allows_nothing(new_payer: NewPayer) -> None:
    payer = new_payer()
    before = (payer.folder / "wallet" / "policy.json").read_bytes()
    payer.at_terminal("wallet", "policy", "--max-usd-per-month", "50", answers={"Allow it? [y/N]": "n"}, exit_code=1)
    assert (payer.folder / "wallet" / "policy.json").read_bytes() == before


def test_the_token_of_the_console_moves_no_money(world: World, seller: Home, new_payer: NewPayer) -> None:
    payer = new_payer()
    body = {"node": seller.id, "amount_micros": 100_000, "dry_run": False}
    for headers in ({}, {"x-meshnode-terminal": payer.token}, {"x-meshnode-terminal": ""}):
        status, answer = payer.call("POST", "/api/wallet/deposit", body, **headers)
        assert (status, answer["error"]["code"]) == (403, "not-a-terminal")
    for act in ("withdraw", "close", "claim", "panic"):
        assert payer.call("POST", f"/api/wallet/{act}", {"channel": "0x" + "0" * 64})[0] == 403
    assert called(payer.running.console_url, "POST", "/api/wallet/deposit", body)[0] == 403
    assert payer.spending()["channels"] == [] and funds_micros(world, payer) == 5 * DOLLAR


def test_no_pay_stops_a_run_of_the_node(world: World, seller: Home, new_payer: NewPayer) -> None:
    payer = new_payer()
    payer.stop()
    start_payer(payer, MESHNODE_NO_PAY="1")
    answer = refused(payer)
    assert (answer.status, answer.code) == (402, "payments_off") and "MESHNODE_NO_PAY" in answer.message
    deposit = ("wallet", "deposit", seller.id, "0.10", "--password-file", str(world.password_file))
    assert "MESHNODE_NO_PAY" in payer.run(*deposit, exit_code=8, MESHNODE_NO_PAY="1")
    # A command without it reaches the same node, which still pays nobody.
    payer.run(*deposit, exit_code=8)
    channels = [(each["state"], each["balance_micros"], each["signed_micros"]) for each in payer.spending()["channels"]]
    assert set(channels) <= {("closed", 0, 0)}
    assert payer.spending()["locked_micros"] == 0 and funds_micros(world, payer) == 5 * DOLLAR


def test_two_nodes_with_one_wallet(world: World, new_payer: NewPayer) -> None:
    payer = new_payer()
    five(payer)
    other = world.home(
        f"{payer.name}-other", **{k: v for k, v in payer.environment.items() if k not in world.environment}
    )
    other.folder.mkdir()
    (other.folder / "wallet").symlink_to(payer.folder / "wallet")
    start_payer(other)
    try:
        assert refused(other).code == "wallet_in_use"
        assert "wallet" in other.spending()["why_not"]
        five(payer)  # the first one goes on
    finally:
        other.stop()


def test_a_dry_run_gives_nothing_away(world: World, seller: Home, new_payer: NewPayer) -> None:
    payer = new_payer()
    deposit = ("wallet", "deposit", seller.id, "0.50", "--password-file", str(world.password_file))
    (planned,) = payer.read(*deposit, "--dry-run")["transactions"]
    sender = world.contracts.web3.eth.accounts[0]
    with pytest.raises(Web3Exception, match="invalid signature"):
        world.contracts.web3.eth.call({"from": sender, "to": planned["to"], "data": planned["calldata"]})
    assert payer.spending()["channels"] == [] and funds_micros(world, payer) == 5 * DOLLAR


# --- when something goes wrong --------------------------------------------------------------------------------


def test_panic_takes_everything_back(world: World, seller: Home, new_payer: NewPayer) -> None:
    payer = new_payer()
    assert payer.count_to(200).fault() == ""
    had = earned_micros(world, seller)
    owed = charged_micros(seller, payer)
    world.give(payer.read("wallet", "address")["voucher"], ether=1)
    payer.run("wallet", "panic")
    assert refused(payer).code == "payments_off"
    eventually(lambda: channel_of(payer)["state"] == "withdrawing", SETTLED_S)
    # Who sells hears of it, and claims at once what it is owed.
    eventually(lambda: earned_micros(world, seller) == had + owed, SETTLED_S)
    world.chain.travel(DAY_S + 1)
    eventually(lambda: funds_micros(world, payer) == 5 * DOLLAR - owed, SETTLED_S)


def test_a_payer_that_dies_pays_for_what_came(seller: Home, new_payer: NewPayer) -> None:
    payer = new_payer()
    five(payer)
    first = charged_micros(seller, payer)

    def watch(answer: Paid) -> None:
        if len(answer.pieces) == DIES_AT:
            payer.running.process.kill()

    with suppress(OSError, http.client.HTTPException):
        assert not payer.count_to(200, each=watch).ended
    payer.running.end(signal.SIGKILL)
    start_payer(payer)
    signed = channel_of(payer)["signed_micros"]
    assert payer.spending()["committed_micros"] == signed, "what was signed is spent, whether it was sent or not"
    # The one that sells waits for vouchers for a while, then ends it.
    eventually(lambda: charged_micros(seller, payer) > first, NO_VOUCHER_S)
    came = charged_micros(seller, payer) - first
    assert charge(PRICE, 0, DIES_AT) <= came <= signed - first
    assert came <= charge(PRICE, MOST_PROMPT_TOKENS, DIES_AT + 2 * MOST_AHEAD_TOKENS)
    five(payer)
    five(payer)
    channel = channel_of(payer)
    assert charged_micros(seller, payer) == channel["charged_micros"] <= channel["signed_micros"]


def test_while_the_chain_is_away_what_is_open_goes_on(world: World, seller: Home, new_payer: NewPayer) -> None:
    payer = new_payer()
    five(payer)
    world.chain.pause()
    try:
        five(payer)
        five(payer)
    finally:
        world.chain.resume()


def test_a_provider_without_a_chain_starts_and_serves_what_is_free(world: World, new_payer: NewPayer) -> None:
    payer = new_payer()
    lonely = world.home("lonely", **{**SMALL, "MESHNODE_RPC": NOWHERE})
    try:
        assert lonely.start(*SELLS).status()["ready"]
        assert lonely.count_to(5).cost_micros is None, "its own are served for nothing"
        eventually(lambda: lonely.spending()["earning"]["why_not"], FOUND_S)
        lonely.run("earn", "claim", exit_code=8)
        eventually(lambda: hosts_of(payer.running).get("demo") == 2, FOUND_S)
        for _ in range(4):
            five(payer)  # whom it asks first or not, somebody can be paid
    finally:
        lonely.stop()
    eventually(lambda: hosts_of(payer.running).get("demo") == 1, FOUND_S)


def test_what_is_secret_about_money_is_told_nowhere(world: World, seller: Home, new_payer: NewPayer) -> None:
    endpoint = f"{world.chain.url}/?key={RPC_SECRET}"
    payer = new_payer(MESHNODE_LOG_LEVEL="debug", MESHNODE_RPC=endpoint)
    five(payer)
    wallet = payer.folder / "wallet"
    secrets = {
        "password": PASSWORD,
        "voucher key": (wallet / "voucher.key").read_text().strip(),
        "voucher key of the seller": VOUCHER_KEY,
        "terminal value": (wallet / "terminal.token").read_text().strip(),
        "key of the endpoint": RPC_SECRET,
    }
    told = {"spending": json.dumps(payer.spending()), "status": json.dumps(payer.running.status())}
    told["receipts"] = json.dumps(payer.call("GET", "/api/receipts"))
    for path in ("/", "/metrics", "/health"):
        told[path] = page_of(payer.running, path)
    for process in [*processes_of(payer), *processes_of(seller)]:
        told[f"command line of {process.pid}"] = " ".join(process.cmdline())
    (engine,) = processes_of(seller)[1:]
    told["environment of the engine"] = str(engine.environ())
    told["spending of the seller"] = json.dumps(seller.spending())
    told["commands"] = payer.run("spend") + payer.run("config", "show") + payer.run("doctor", "--json")
    told["stdout"], told["stderr"] = payer.running.end()
    own = {wallet / "voucher.key", wallet / "terminal.token", payer.folder / "node.key"}
    for home in (payer, seller):
        for file in home.folder.rglob("*"):
            if file.is_file() and file not in own:
                told[str(file)] = file.read_bytes().decode("latin-1")
    assert "request" in told[str(payer.folder / "logs" / "node.log")]
    found = [(what, where) for what, secret in secrets.items() for where, text in told.items() if secret in text]
    assert found == []
    for file in own | {wallet / "policy.json", wallet / "keystore" / "fund.json"}:
        assert file.stat().st_mode & 0o077 == 0, file


def page_of(node: NodeProcess, path: str) -> str:
    with urllib.request.urlopen(f"{node.console_url}{path}", timeout=10) as answer:
        return str(answer.read().decode())


def processes_of(home: Home) -> list[psutil.Process]:
    """The node, then what it has started."""
    main = psutil.Process(home.running.process.pid)
    return [main, *main.children(recursive=True)]
