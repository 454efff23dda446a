"""Any order of calls by anyone: the contract does what a small model does, and its invariants hold throughout."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from eth_account.signers.local import LocalAccount
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from web3.contract import Contract

from tests.contracts.parties import (
    DAY_S,
    PAYER,
    PAYER_VOUCHERS,
    RECEIVER,
    RECEIVER_CLAIMS,
    STRANGER,
    Config,
    Parties,
    gathered,
    reason,
)
from tests.lab.evm import deploy, deployed, in_process

PAYERS = {PAYER.address, PAYER_VOUCHERS.address}
FUNDS = 100_000
WHICH = st.integers(0, 2)
SHARE = st.integers(0, 105)
"""In percent of what is there to take."""
PAYING = st.sampled_from((*[PAYER] * 6, *[PAYER_VOUCHERS] * 6, RECEIVER, RECEIVER_CLAIMS, STRANGER))
EARNING = st.sampled_from((*[RECEIVER_CLAIMS] * 12, RECEIVER, STRANGER, PAYER))
"""Who calls: mostly those who may."""
CLAIM = st.tuples(WHICH, SHARE, st.sampled_from((0, 0, 0, 0, 0, 7, 7, 7, -1)))
"""A channel, a share of its rest, and how far the voucher's ceiling is above the total."""
SELDOM = st.sampled_from((False, False, False, False, True))


@dataclass
class Channel:
    """What the model knows of a channel."""

    config: Config
    balance: int = 0
    claimed: int = 0
    pending: int = 0
    started: int = 0
    nonce: int = 0
    ceiling: int = 0
    """The highest amount that the payer ever signed."""

    @property
    def left(self) -> int:
        return self.balance - self.claimed

    @property
    def claimants(self) -> set[str]:
        return {self.config[2], self.config[3]}

    def part(self, share: int) -> int:
        """So many percent of what is left; a little more than all of it above 100."""
        return self.left * share // 100 if share <= 100 else self.left + share - 100

    def give_back(self, amount: int) -> int:
        amount = min(amount, self.left)
        self.balance -= amount
        self.pending = min(self.pending, self.left)
        return amount


@dataclass
class Ends:
    """What has come into the contract and left it."""

    paid_in: int = 0
    to_payer: int = 0
    claimed: dict[str, int] = field(default_factory=dict)
    settled: dict[str, int] = field(default_factory=dict)


class AnyOrder(RuleBasedStateMachine):
    """Three channels of one payer: two to one receiver, one to another, all with one authorizer."""

    shared: Parties | None = None
    reader: Contract

    @initialize()
    def begin(self) -> None:
        if AnyOrder.shared is None:
            AnyOrder.shared = gathered(deployed(in_process()), usdc_micros=FUNDS)
            AnyOrder.reader = deploy(AnyOrder.shared.contracts.web3, "Aggregate")
        self.parties = AnyOrder.shared
        self.web3 = self.parties.contracts.web3
        self.tester = self.web3.provider.ethereum_tester  # type: ignore[attr-defined]
        self.snapshot = self.tester.take_snapshot()
        receivers = (RECEIVER.address, RECEIVER.address, STRANGER.address)
        configs = [
            self.parties.config(receiver=receiver, salt=number, delay_s=delay)
            for number, (receiver, delay) in enumerate(zip(receivers, (DAY_S, 900, DAY_S), strict=True))
        ]
        self.channels = [Channel(config) for config in configs]
        self.ends = Ends(claimed=dict.fromkeys(receivers, 0), settled=dict.fromkeys(receivers, 0))
        self.salt = 0
        self.asked = self.questions()
        for which in range(len(self.channels)):
            self.deposit(which, 1000)

    def teardown(self) -> None:
        if hasattr(self, "snapshot"):
            self.tester.revert_to_snapshot(self.snapshot)

    def attempt(self, by: LocalAccount, name: str, arguments: list[Any], refusal: str) -> int:
        """Make a call that must be refused for this reason, or go through if there is none. The time of its block."""
        call = self.parties.call(name, *arguments)
        if refusal:
            assert reason(call, by) == refusal
            return 0
        block = self.parties.send(by, call)["blockNumber"]
        return int(self.web3.eth.get_block(block)["timestamp"])

    @property
    def now(self) -> int:
        return int(self.web3.eth.get_block("latest")["timestamp"])

    # --- what anyone may try --------------------------------------------------------------------------------------

    @rule(which=WHICH, amount=st.integers(0, 3000))
    def pay_in(self, which: int, amount: int) -> None:
        self.deposit(which, amount)

    def deposit(self, which: int, amount: int) -> None:
        channel = self.channels[which]
        self.salt += 1
        data = self.parties.authorization(channel.config, amount, salt=self.salt)
        held = self.parties.contracts.balance(PAYER.address)
        refusal = "InvalidAmount" if amount == 0 else ""
        refusal = refusal or ("ERC20: transfer amount exceeds balance" if amount > held else "")
        self.attempt(STRANGER, "deposit", [channel.config, amount, self.parties.contracts.collector, data], refusal)
        if not refusal:
            channel.balance += amount
            self.ends.paid_in += amount

    def rows(self, wanted: list[tuple[int, int, int]]) -> tuple[list[Any], str, dict[int, int]]:
        """The claims; why they are refused, if they are; and what is claimed after them if they are not."""
        rows, refusal = [], ""
        after = {number: channel.claimed for number, channel in enumerate(self.channels)}
        for which, share, above in wanted:
            channel = self.channels[which]
            total = channel.claimed + channel.part(share)
            ceiling = max(total + above, 0)
            channel.ceiling = max(channel.ceiling, ceiling)
            rows.append(self.parties.claim(channel.config, total, ceiling))
            if refusal or total <= after[which]:
                continue
            if total > ceiling:
                refusal = "AboveCeiling"
            elif total > channel.balance:
                refusal = "AboveBalance"
            else:
                after[which] = total
        return rows, refusal, after

    def take(self, after: dict[int, int]) -> None:
        for which, total in after.items():
            channel = self.channels[which]
            self.ends.claimed[channel.config[2]] += total - channel.claimed
            channel.claimed = total

    @rule(wanted=st.lists(CLAIM, min_size=1, max_size=4), by=EARNING)
    def claim(self, wanted: list[tuple[int, int, int]], by: LocalAccount) -> None:
        rows, refusal, after = self.rows(wanted)
        for number, (which, *_) in enumerate(wanted):
            # Rows are looked at one after the other: a stranger to a later one is only seen when the earlier ones hold.
            if by.address not in self.channels[which].claimants:
                before = self.rows(wanted[:number])[1]
                refusal = before or "NotAParty"
                break
        self.attempt(by, "claim", [rows], refusal)
        if not refusal:
            self.take(after)

    @rule(wanted=st.lists(CLAIM, min_size=1, max_size=4), forged=SELDOM)
    def claim_with_signature(self, wanted: list[tuple[int, int, int]], forged: bool) -> None:
        rows, refusal, after = self.rows(wanted)
        refusal = "InvalidSignature" if forged else refusal
        signature = self.parties.batch(rows, STRANGER if forged else RECEIVER_CLAIMS)
        self.attempt(STRANGER, "claimWithSignature", [rows, signature], refusal)
        if not refusal:
            self.take(after)

    @rule(receiver=st.sampled_from((RECEIVER, STRANGER)), by=EARNING)
    def settle(self, receiver: LocalAccount, by: LocalAccount) -> None:
        self.attempt(by, "settle", [receiver.address, self.parties.contracts.token], "")
        self.ends.settled[receiver.address] = self.ends.claimed[receiver.address]

    @rule(which=WHICH, share=SHARE, by=PAYING)
    def initiate_withdraw(self, which: int, share: int, by: LocalAccount) -> None:
        channel = self.channels[which]
        amount = channel.part(share)
        refusal = "" if by.address in PAYERS else "NotAParty"
        refusal = refusal or ("InvalidAmount" if amount == 0 else "")
        refusal = refusal or ("AboveBalance" if amount > channel.left else "")
        refusal = refusal or ("WithdrawalPending" if channel.pending else "")
        started = self.attempt(by, "initiateWithdraw", [channel.config, amount], refusal)
        if not refusal:
            channel.pending, channel.started = amount, started

    @rule(which=WHICH, by=PAYING)
    def finalize_withdraw(self, which: int, by: LocalAccount) -> None:
        channel = self.channels[which]
        refusal = "" if by.address in PAYERS else "NotAParty"
        refusal = refusal or ("" if channel.pending else "NoWithdrawal")
        refusal = refusal or ("TooEarly" if self.now < channel.started + channel.config[5] else "")
        self.attempt(by, "finalizeWithdraw", [channel.config], refusal)
        if not refusal:
            amount, channel.pending = channel.pending, 0
            self.ends.to_payer += channel.give_back(amount)

    @rule(which=WHICH, share=SHARE, by=EARNING)
    def refund(self, which: int, share: int, by: LocalAccount) -> None:
        channel = self.channels[which]
        amount = channel.part(share)
        refusal = "" if by.address in channel.claimants else "NotAParty"
        self.attempt(by, "refund", [channel.config, amount], refusal)
        if not refusal:
            self.ends.to_payer += channel.give_back(amount)

    @rule(which=WHICH, share=SHARE, late=SELDOM, forged=SELDOM)
    def refund_with_signature(self, which: int, share: int, late: bool, forged: bool) -> None:
        channel = self.channels[which]
        amount = channel.part(share)
        nonce = channel.nonce + late
        signer = RECEIVER if forged else RECEIVER_CLAIMS
        signature = self.parties.refund_signature(channel.config, amount, nonce, signer)
        refusal = "WrongNonce" if late else "InvalidSignature" if forged else ""
        self.attempt(STRANGER, "refundWithSignature", [channel.config, amount, nonce, signature], refusal)
        if not refusal:
            channel.nonce += 1
            self.ends.to_payer += channel.give_back(amount)

    @rule(seconds=st.sampled_from((900, DAY_S, DAY_S)))
    def wait(self, seconds: int) -> None:
        self.parties.travel(seconds)

    # --- what holds throughout ------------------------------------------------------------------------------------

    def questions(self) -> list[tuple[str, str]]:
        """What `read` asks: each channel's two states, then what hub, collector, payer and receivers hold."""
        contracts = self.parties.contracts
        hub, token = contracts.channels, contracts.usdc
        names = [self.parties.channel_id(channel.config) for channel in self.channels]
        reads = ("channels", "pendingWithdrawals")
        holders = (hub.address, contracts.collector, PAYER.address, *self.ends.settled)
        asked = [(hub.address, hub.encode_abi(read, [name])) for name in names for read in reads]
        return asked + [(token.address, token.encode_abi("balanceOf", [holder])) for holder in holders]

    def read(self) -> list[int]:
        """Balance, claimed and pending of each channel, then what hub, collector, payer and receivers hold."""
        answers = [data for _, data in self.reader.functions.tryAggregate(True, self.asked).call()]
        words = [[int.from_bytes(data[at : at + 32], "big") for at in range(0, len(data), 32)] for data in answers]
        states = [(*words[number], words[number + 1][0]) for number in range(0, 6, 2)]
        return [value for state in states for value in state] + [held for (held,) in words[6:]]

    @invariant()
    def the_contract_is_the_model(self) -> None:
        values = self.read()
        for number, channel in enumerate(self.channels):
            balance, claimed, pending = values[3 * number : 3 * number + 3]
            assert (balance, claimed, pending) == (channel.balance, channel.claimed, channel.pending)
            assert claimed <= balance and claimed <= channel.ceiling
        hub, collector, payer, *receivers = values[9:]
        assert hub == sum(channel.balance for channel in self.channels) - sum(self.ends.settled.values())
        assert collector == 0
        assert payer == FUNDS - self.ends.paid_in + self.ends.to_payer
        assert receivers == list(self.ends.settled.values())


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=8, stateful_step_count=20, deadline=None, derandomize=True, database=None)
