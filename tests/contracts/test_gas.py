"""What the calls cost, against the figures in gas.json and the bounds that the design counts on.

`python -m tests.contracts.test_gas` writes gas.json anew. Figures are gas of whole transactions on the token of the
tests, in the state of a network in use: the hub holds money of others, the payer keeps some, and, but where it says
`fresh`, the receiver was paid before. `batch_25` is per channel.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from eth_account.signers.local import LocalAccount

from tests.contracts.parties import DAY_S, PAYER, RECEIVER, STRANGER, Config, Parties, account, gathered
from tests.lab.evm import artifact, deployed, in_process

SNAPSHOT = Path(__file__).with_name("gas.json")
TOLERANCE_PERCENT = 5
CLAIM_AND_SETTLE_25_MOST = 26_000
LIFE_MOST = 350_000


def measured(parties: Parties) -> dict[str, int]:
    """Gas by operation. Needs a hub that nothing was paid into yet."""
    token = parties.contracts.token
    gas: dict[str, int] = {}

    def send(by: LocalAccount, name: str, *arguments: object) -> int:
        used: int = parties.send(by, parties.call(name, *arguments))["gasUsed"]
        return used

    def paid_in(config: Config, salt: int = 1) -> int:
        used: int = parties.send(STRANGER, parties.deposit(config, 100_000, salt=salt))["gasUsed"]
        return used

    web3 = parties.contracts.web3
    made = web3.eth.contract(abi=artifact("PaymentChannels")["abi"], bytecode=artifact("PaymentChannels")["bytecode"])
    sent = made.constructor().transact({"from": web3.eth.accounts[0]})
    gas["deploy_hub"] = web3.eth.wait_for_transaction_receipt(sent)["gasUsed"]

    newcomer = account("a fresh receiver").address
    other = parties.config(receiver=newcomer, receiver_authorizer=RECEIVER.address)
    paid_in(parties.config(salt=99))
    gas["deposit"] = paid_in(other)
    gas["claim_1_fresh"] = send(RECEIVER, "claim", [parties.claim(other, 60_000)])
    gas["settle_fresh"] = send(STRANGER, "settle", newcomer, token)

    config = parties.config()
    parties.send(RECEIVER, parties.call("claim", [parties.claim(parties.config(salt=99), 100)]))
    send(STRANGER, "settle", RECEIVER.address, token)
    assert paid_in(config) == pytest.approx(gas["deposit"], rel=0.01)
    gas["claim_1"] = send(RECEIVER, "claim", [parties.claim(config, 60_000)])
    gas["claim_1_again"] = send(RECEIVER, "claim", [parties.claim(config, 61_000)])
    gas["claim_stale"] = send(RECEIVER, "claim", [parties.claim(config, 60_000)])
    gas["settle"] = send(STRANGER, "settle", RECEIVER.address, token)
    gas["top_up"] = paid_in(config, 2)
    signature = parties.refund_signature(config, 39_000, 0)
    gas["refund_with_signature"] = send(STRANGER, "refundWithSignature", config, 39_000, 0, signature)
    gas["refund"] = send(RECEIVER, "refund", config, 1_000)
    gas["initiate_withdraw"] = send(PAYER, "initiateWithdraw", config, 50_000)
    parties.travel(DAY_S)
    gas["finalize_withdraw"] = send(PAYER, "finalizeWithdraw", config)

    many = [parties.config(salt=1000 + number) for number in range(25)]
    for each in many:
        paid_in(each)
    rows = [parties.claim(each, 50_000) for each in many]
    hub = parties.contracts.channels
    claim, settle = hub.encode_abi("claim", [rows]), hub.encode_abi("settle", [RECEIVER.address, token])
    gas["claim_and_settle_batch_25"] = send(RECEIVER, "multicall", [claim, settle]) // 25
    rows = [parties.claim(each, 60_000) for each in many]
    gas["claim_with_signature_batch_25"] = send(STRANGER, "claimWithSignature", rows, parties.batch(rows)) // 25
    rows = [parties.claim(each, 70_000) for each in many]
    claimed = send(RECEIVER, "claim", rows)
    gas["claim_batch_25"] = claimed // 25
    gas["claim_then_settle_batch_25"] = (claimed + send(STRANGER, "settle", RECEIVER.address, token)) // 25
    return gas


@pytest.fixture(scope="module")
def gas() -> dict[str, int]:
    return measured(gathered(deployed(in_process())))


def test_the_figures_are_those_that_were_written_down(gas: dict[str, int]) -> None:
    known = json.loads(SNAPSHOT.read_text("utf-8"))
    assert set(gas) == set(known)
    allowed = TOLERANCE_PERCENT / 100
    off = {name: (known[name], used) for name, used in gas.items() if abs(used / known[name] - 1) > allowed}
    assert not off, "python -m tests.contracts.test_gas writes them anew"


@pytest.mark.parametrize("together", ["claim_and_settle_batch_25", "claim_then_settle_batch_25"])
def test_a_batch_of_25_costs_little_per_channel(gas: dict[str, int], together: str) -> None:
    assert gas[together] < CLAIM_AND_SETTLE_25_MOST


def test_the_life_of_a_channel_costs_less_than_five_single_payments(gas: dict[str, int]) -> None:
    """The dearest: the first one of a receiver that was never paid, ended by a refund that somebody else sends."""
    assert gas["deposit"] + gas["claim_1_fresh"] + gas["settle_fresh"] + gas["refund_with_signature"] < LIFE_MOST


def test_the_hub_fits_into_a_contract() -> None:
    assert len(artifact("PaymentChannels")["deployedBytecode"]) // 2 - 1 < 24_576


if __name__ == "__main__":
    figures = measured(gathered(deployed(in_process())))
    SNAPSHOT.write_text(json.dumps(figures, indent=2) + "\n", "utf-8")
    print(SNAPSHOT.read_text("utf-8"))
