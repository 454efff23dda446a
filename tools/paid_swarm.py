"""The whole story of payments on this machine, with play money: found, too dear, paid, killed, resumed, settled.

    python -m tools.paid_swarm

It starts a chain of its own (anvil, from tools/install_evm.py), a Nostr relay, two providers and a client, all on
loopback, and prints every command as a person would type it. Commands that ask something run in a terminal of their
own. At the end it compares, to the millionth of a dollar, what the chain has paid with what everybody has written down.
It exits with 0 when all is as it should be, and with 1 and a sentence when not. Nothing of it is worth anything, and
nothing is left behind but a folder, if one is named with --folder.

The prices are those of no market: a hundred times too high, so that a few answers are worth the fee of a claim.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from meshnode.config import find_places
from meshnode.core.prices import Price, charge
from meshnode.core.windows import MOST_AHEAD_TOKENS
from meshnode.engine.provision import ensure
from meshnode.policies import usd
from tests.e2e.meshes import hosts_of
from tests.e2e.paying import ETHER, WRONG, Home, Paid, Unanswered, World, fresh_address, play_world
from tools import install_evm

PRICE = Price(20_000_000, 60_000_000)
"""Of the first provider; the second asks for more."""
SECOND_PRICE = Price(30_000_000, 90_000_000)
BEGINNING_USD = 5
SHORT, LONG = 5, 200
"""The demo counts as far as that."""
KILLED_AT = 120
"""So many pieces of the long answer, of about 400, come before its provider dies."""
SLOW = {"MESHNODE_THREADS": "1", "MESHNODE_NO_DRAFT": "1"}
"""So that the long answer takes a moment. Some environment of the providers."""
MOST_PROMPT_TOKENS = 64
FOUND_S = 30.0
SETTLED_S = 60.0

_RECEIPTS = """
SELECT r.id, c.node, r.charged_micros FROM requests r JOIN channels c ON c.id = r.channel
WHERE r.receipt != x'' ORDER BY r.id"""
Value = TypeVar("Value")


class Otherwise(Exception):
    """Something is not as it should be; the message says what."""


@dataclass
class Seller:
    """A provider and the address that it is paid to."""

    home: Home
    price: Price
    receiver: str = field(default_factory=fresh_address)
    _node: str = ""

    @property
    def arguments(self) -> tuple[str, ...]:
        """What its owner types."""
        dollars = [f"{micros // 1_000_000}" for micros in (self.price.tokens_in, self.price.tokens_out)]
        prices = ("--price-in", dollars[0], "--price-out", dollars[1])
        return ("--model", "demo", "--publish", *prices, "--receiver", self.receiver)

    @property
    def node(self) -> str:
        """The id of its node, which outlives the process."""
        self._node = self._node or self.home.id
        return self._node

    def charged_micros(self) -> int:
        """What it has charged, as it says itself."""
        channels = [each for each in self.home.spending()["channels"] if each["role"] == "receiver"]
        return sum(each["charged_micros"] for each in channels)


class Story:
    """The steps, in their order; each checks what it has done, and raises Otherwise."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.client = world.home("client", MESHNODE_WALLET_PASSWORD_FILE=str(world.password_file))
        self.sellers = (Seller(world.home("first", **SLOW), PRICE), Seller(world.home("second", **SLOW), SECOND_PRICE))
        self.funds = self.voucher = ""
        self.answers: list[Paid] = []
        self.killed, self.other = self.sellers
        self.killed_had_micros = 0

    # --- steps ----------------------------------------------------------------------------------------------

    def wallet(self) -> None:
        """A wallet with play dollars. Its voucher key has no coins for fees."""
        made = self.client.read("wallet", "new", "--password-file", str(self.world.password_file))
        self.funds, self.voucher = made["address"], made["voucher"]
        self.world.give(self.funds, usd=BEGINNING_USD)
        self.same("the wallet", self.client.read("wallet", "balance")["usdc_micros"], BEGINNING_USD * 1_000_000)

    def provider(self) -> None:
        """A stranger sells answers; its price stands in its listing."""
        self._opens(self.sellers[0])

    def finding(self) -> None:
        """`meshnode --auto` finds it. Money in the wallet allows nothing yet."""
        self.client.start("--client", "--auto")
        self.eventually(lambda: hosts_of(self.client.running).get("demo") == 1, "the provider is found", FOUND_S)
        self.eventually(lambda: "$20.00 in, $60.00 out" in self.client.run("discover"), "the price is shown", FOUND_S)
        self._refused("payments_off")

    def too_dear(self) -> None:
        """A ceiling below the price: refused with both figures, and nothing is locked or spent."""
        self._allow(
            *("--mode", "auto", "--network", "play", "--max-usd-per-month", "2"),
            *("--max-usd-per-mtok-in", "10", "--max-usd-per-mtok-out", "30"),
        )
        words = self._refused("price_above_ceiling")
        for figure in ("$20.00", "$60.00", "$10.00", "$30.00"):
            self.check(figure in words, f"the refusal names {figure}")
        self.same("what is spent", self.client.spending()["committed_micros"], 0)
        self.same("the wallet", self.world.has_micros(self.funds), BEGINNING_USD * 1_000_000)

    def served(self) -> None:
        """A higher ceiling. The channel is opened by itself; the provider pays the fee of that, as the client has no
        ether.
        """
        self._allow("--max-usd-per-mtok-in", "40", "--max-usd-per-mtok-out", "120")
        answer = self._answer(SHORT)
        self.same("the cost", answer.cost_micros, charge(PRICE, self._newest("tokens_in"), self._newest("tokens_out")))
        kinds = [each["purpose"] for each in self.sellers[0].home.spending()["transactions"]]
        self.same("what the provider has sent to the chain", kinds, ["deposit"])
        self.same("ether of the client", self.world.has_wei(self.voucher), 0)

    def second_provider(self) -> None:
        """Another stranger. Its channel is opened by hand, and the client pays the fee."""
        second = self.sellers[1]
        self._opens(second)
        self.eventually(lambda: hosts_of(self.client.running).get("demo") == 2, "both are found", FOUND_S)
        self.world.give(self.voucher, ether=1)
        password = ("--password-file", str(self.world.password_file))
        before = self.world.has_micros(self.funds)
        self.client.run("wallet", "deposit", second.node, "0.50", *password, "--dry-run")
        self.same("the wallet after a dry run", self.world.has_micros(self.funds), before)
        self.client.run("wallet", "deposit", second.node, "0.50", *password)
        self.eventually(lambda: self._channel(second)["state"] == "open", "the deposit is in a block", SETTLED_S)
        self.same("the channel", self._channel(second)["balance_micros"], 500_000)
        self.check(self.world.has_wei(self.voucher) < ETHER, "the client paid the fee")

    def killed_in_the_middle(self) -> None:
        """The node that answers dies with `kill -9`; the answer goes on at the other one, and nobody sees it."""
        before = {each["node"]: int(each["charged_micros"]) for each in self.client.spending()["channels"]}

        def watch(answer: Paid) -> None:
            if len(answer.pieces) >= KILLED_AT and self.killed.home.running.process.poll() is None:
                self.killed, self.other = self._who(answer)
                self.killed_had_micros = before.get(self.killed.node, 0)
                self.killed.home.kill()

        answer = self._answer(LONG, each=watch)
        self.check(answer.resumed, "the answer was killed in its middle")
        self.tell(f"killed after {answer.resumed_at} pieces of {len(answer.pieces)}; nothing is lost or said twice")
        for seller, paid in ((self.killed, "before"), (self.other, "after")):
            signed = self._channel(seller)["signed_micros"]
            self.tell(f"signed over to {seller.home.name}, for what came {paid} that: {usd(signed)}")
            self.check(signed > 0, f"{seller.home.name} is paid for its part")

    def settled(self) -> None:
        """The dead one is started again, both claim, and both have on the chain what they have written down."""
        self.killed.home.start(*self.killed.arguments)
        for seller in self.sellers:
            self.same("paid before", self.world.has_micros(seller.receiver), 0)
            seller.home.run("earn", "claim", "--dry-run")
            seller.home.run("earn", "claim")
            charged = seller.charged_micros()
            self._paid(seller, charged)
        self._window_of_the_killed()

    def agreed(self) -> None:
        """The payer asks the one that died again. First it hands over the voucher that was lost with it, then it hears
        what it was charged; now all books say the same.
        """
        # Only where both are known, one that is left is the one that was not stopped.
        self.eventually(lambda: hosts_of(self.client.running).get("demo") == 2, "both are found", FOUND_S)
        self.other.home.stop()
        self.eventually(lambda: hosts_of(self.client.running).get("demo") == 1, "one is left", FOUND_S)
        self._answer(SHORT)
        self._answer(SHORT)
        self.other.home.start(*self.other.arguments)
        self.eventually(lambda: hosts_of(self.client.running).get("demo") == 2, "both are found", FOUND_S)
        for seller in self.sellers:
            charged = self._channel(seller)["charged_micros"]
            self.same(f"what {seller.home.name} is owed, says the client", charged, seller.charged_micros())

    def receipts(self) -> None:
        """Receipts are genuine, by themselves; the audit logs are whole."""
        self.client.run("spend")
        self.client.run("receipts", "list")
        for home in self._homes():
            listed = home.run("receipts", "list", "--json")
            home.run("receipts", "verify", "-", stdin=listed)
        for home in self._homes():
            home.run("audit", "verify")

    def back(self) -> None:
        """What is left of both channels comes back, and all the money is where it belongs."""
        self.client.run("wallet", "channels")
        for seller in self.sellers:
            self.client.run("wallet", "close", seller.node)
        earned = [seller.charged_micros() for seller in self.sellers]
        rest = BEGINNING_USD * 1_000_000 - sum(earned)
        self.eventually(lambda: self.world.has_micros(self.funds) == rest, "the rest is back", SETTLED_S)
        for seller, micros in zip(self.sellers, earned, strict=True):
            self._paid(seller, micros)
        self.same("left in the contract", self.world.has_micros(self.world.contracts.hub), 0)

    def journals(self) -> None:
        """All nodes end. The client and the providers have the same receipts, and all that stands in the journal and in
        the audit log of a provider is what the chain has paid.
        """
        for home in self._homes():
            home.stop()
        ours = self.client.journal(_RECEIPTS)
        for seller in self.sellers:
            node = bytes.fromhex(seller.node)
            theirs = [(request, node, micros) for request, _, micros in seller.home.journal(_RECEIPTS)]
            self.same(f"receipts of {seller.home.name}", theirs, [each for each in ours if each[1] == node])
            ((charged,),) = seller.home.journal("SELECT sum(charged_micros) FROM requests")
            self.same(f"paid to {seller.home.name}", self.world.has_micros(seller.receiver), charged)
            records = seller.home.read("audit", "show", "-n", "100")["records"]
            told = sum(record["cost_micros"] for record in records if record["kind"] == "earned")
            self.same(f"what the audit log of {seller.home.name} has", told, charged)
            self.tell(f"{seller.home.name}: {len(theirs)} receipts, {usd(charged)} on the chain")

    STEPS: tuple[Callable[[Story], None], ...] = (
        *(wallet, provider, finding, too_dear, served, second_provider),
        *(killed_in_the_middle, settled, agreed, receipts, back, journals),
    )

    def all(self) -> None:
        """Every step, with its first words as a heading."""
        for number, step in enumerate(self.STEPS, 1):
            words = " ".join((step.__doc__ or "").split())
            self.tell(f"\n{number}. {words}\n")
            step(self)
        self.tell("\nall is as it should be")

    # --- what steps are made of -----------------------------------------------------------------------------

    def tell(self, line: str) -> None:
        """To those who look on."""
        self.world.tell(line)

    def check(self, is_so: bool, what: str) -> None:
        """Raises Otherwise unless it is so."""
        if not is_so:
            raise Otherwise(f"it is not so that {what}")

    def same(self, what: str, found: object, wanted: object) -> None:
        """Raises Otherwise unless two figures are the same."""
        if found != wanted:
            raise Otherwise(f"{what}: {found!r}, and it should be {wanted!r}")

    def eventually(self, check: Callable[[], Value], what: str, within_s: float) -> Value:
        """The first true value of `check`. Raises Otherwise after so long."""
        deadline = time.monotonic() + within_s
        while not (value := check()):
            if time.monotonic() > deadline:
                raise Otherwise(f"after {within_s:g} s it is not so that {what}: {value!r}")
            time.sleep(0.02)
        return value

    def _paid(self, seller: Seller, micros: int) -> None:
        """What the chain has paid to a provider, once it has: exactly so much."""
        what = f"{seller.home.name} has its money"
        self.eventually(lambda: self.world.has_micros(seller.receiver) >= micros, what, SETTLED_S)
        self.same(f"paid to {seller.home.name}", self.world.has_micros(seller.receiver), micros)

    def _opens(self, seller: Seller) -> None:
        seller.home.start(*seller.arguments)
        self.world.give(seller.home.read("wallet", "address")["voucher"], ether=1)

    def _allow(self, *bounds: str) -> None:
        self.client.at_terminal("wallet", "policy", *bounds, answers={"Allow it? [y/N]": "y"})

    def _refused(self, code: str) -> str:
        self.tell(f"client$ curl .../v1/chat/completions   (count from 1 to {SHORT})")
        try:
            self.client.count_to(SHORT)
        except Unanswered as refused:
            self.tell(f"    {refused}")
            self.same("the refusal", (refused.status, refused.code), (402, code))
            return refused.message
        raise Otherwise("it was answered, and should have been refused")

    def _answer(self, last: int, *, each: Callable[[Paid], None] = lambda _: None) -> Paid:
        self.tell(f"client$ curl .../v1/chat/completions   (count from 1 to {last})")
        answer = self.client.count_to(last, each=each)
        if fault := answer.fault():
            raise Otherwise(f"the answer is wrong: {fault}")
        self.answers.append(answer)
        cost = answer.cost_micros
        if cost is None:
            raise Otherwise("the answer does not say what it cost")
        self.tell(f"    ..., {last - 1}, {last}    ({answer.tokens} tokens, {usd(cost)}, from {answer.node})")
        return answer

    def _who(self, answer: Paid) -> tuple[Seller, Seller]:
        """Who answers, and who does not."""
        first, second = self.sellers
        return (first, second) if first.node.startswith(answer.node) else (second, first)

    def _homes(self) -> tuple[Home, ...]:
        return (self.client, *(seller.home for seller in self.sellers))

    def _newest(self, name: str) -> int:
        return int(self.client.spending()["receipts"][0][name])

    def _channel(self, seller: Seller) -> dict[str, Any]:
        (found,) = [each for each in self.client.spending()["channels"] if each["node"] == seller.node]
        return dict(found)

    def _window_of_the_killed(self) -> None:
        """No more was signed over to the one that died than came of its answer and its window, and it has charged no
        more than that.
        """
        channel, charged = self._channel(self.killed), self.killed.charged_micros()
        (long,) = [answer for answer in self.answers if answer.resumed]
        before = self.killed_had_micros + charge(self.killed.price, MOST_PROMPT_TOKENS, long.resumed_at)
        most = before + charge(self.killed.price, 0, MOST_AHEAD_TOKENS)
        signed = int(channel["signed_micros"])
        self.tell(f"signed over to {self.killed.home.name}: {usd(signed)}; charged: {usd(charged)}")
        self.check(self.killed_had_micros < charged <= signed <= most, f"{charged} and {signed} are below {most}")


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tools.paid_swarm", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--folder", type=Path, help="where the homes are kept (a temporary one if left out)")
    given = parser.parse_args()
    if install_evm.anvil() is None:
        parser.error("there is no anvil here: python tools/install_evm.py")
    ensure(find_places().cache)
    with tempfile.TemporaryDirectory(prefix="paid-swarm-") as temporary:
        folder = given.folder or Path(temporary)
        try:
            with play_world(folder, lambda line: print(line, flush=True)) as world:
                Story(world).all()
        except (Otherwise, *WRONG) as reason:
            print(f"\nsomething is not as it should be: {reason}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
