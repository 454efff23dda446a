"""A stranger over plain HTTP pays a real node with the reference client of x402: real engine, real chain."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from eth_account import Account
from x402 import x402Client
from x402.http.x402_http_client import x402HTTPClient
from x402.mechanisms.evm.batch_settlement.client.config import BatchSettlementEvmSchemeOptions
from x402.mechanisms.evm.batch_settlement.client.scheme import BatchSettlementEvmScheme
from x402.mechanisms.evm.signers import EthAccountSigner

from meshnode.settlement.addresses import shown
from meshnode.settlement.contracts import FEE_ORACLE
from tests.conftest import NodeProcess, StartNode
from tests.e2e.meshes import SMALL
from tests.lab.evm import Anvil, Deployment, canonical, needs_anvil
from tools.play_chain import make_cheap

pytestmark = [pytest.mark.engine, pytest.mark.anyio, needs_anvil]
KEY = "the key of the owner"
BODY = {
    "model": "demo",
    "temperature": 0,
    "max_tokens": 60,
    "messages": [{"role": "user", "content": "count from 1 to 20"}],
}
DOLLAR = 1_000_000
L1_FEE_WEI = 10**9


@pytest.fixture(scope="module")
def contracts() -> Iterator[Deployment]:
    """Chain 84532 with the contracts at their real addresses: the node uses its own table."""
    with Anvil() as chain:
        # The oracle of OP chains: PUSH32 wei, MSTORE at 0, RETURN 32 bytes.
        chain.set_code(shown(FEE_ORACLE), f"0x7f{L1_FEE_WEI:064x}60005260206000f3")
        yield canonical(chain)


@pytest.fixture
def seller(start_node: StartNode, contracts: Deployment) -> NodeProcess:
    prices = ("--mesh-name", "shop", "--price-in", "0.2", "--price-out", "0.6")
    url = str(contracts.web3.provider.endpoint_uri)  # type: ignore[attr-defined]
    money = {"MESHNODE_RPC": url, "MESHNODE_API_KEY": KEY}
    node = start_node("--model", "demo", "--listen-all", "--x402", *prices, environment={**SMALL, **money})
    address = json.loads(node.command("wallet", "address", "--json").stdout)["voucher"]
    contracts.fund(address, eth_wei=10**18)
    make_cheap(contracts)
    return node


class Answered:
    """One answer of the API port, with its headers in lower case."""

    def __init__(self, node: NodeProcess, **headers: str) -> None:
        request = urllib.request.Request(
            f"{node.base_url}/v1/chat/completions",
            json.dumps(BODY).encode(),
            {"content-type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}},
        )
        try:
            with urllib.request.urlopen(request, timeout=90) as answer:
                self.status, raw, found = answer.status, answer.read(), answer.headers
        except urllib.error.HTTPError as error:
            self.status, raw, found = error.code, error.read(), error.headers
        self.headers = {name.lower(): value for name, value in found.items()}
        self.json: dict[str, Any] = json.loads(raw)

    def header(self, name: str) -> str | None:
        return self.headers.get(name.lower())


async def test_a_stranger_pays_request_by_request_and_the_owner_needs_no_money(
    seller: NodeProcess, contracts: Deployment
) -> None:
    assert Answered(seller, authorization=f"Bearer {KEY}").status == 200
    assert Answered(seller, authorization="Bearer wrong").status == 401

    customer = Account.create()
    contracts.fund(customer.address, usdc_micros=DOLLAR)
    make_cheap(contracts)
    scheme = BatchSettlementEvmScheme(EthAccountSigner(customer), BatchSettlementEvmSchemeOptions())
    client = x402HTTPClient(x402Client().register("eip155:84532", scheme))

    charged = 0
    for kind in ("deposit", "voucher"):
        asked = Answered(seller)
        assert asked.status == 402 and asked.json["error"]["code"] == "payment_required"
        payment = await client.create_payment_payload(client.get_payment_required_response(asked.header))
        assert payment.payload["type"] == kind
        [(name, value)] = client.encode_payment_signature_header(payment).items()
        paid = Answered(seller, **{name.lower().replace("-", "_"): value})
        assert paid.status == 200, paid.json
        assert "18, 19, 20" in paid.json["choices"][0]["message"]["content"]
        usage = paid.json["usage"]
        charged += -(-(usage["prompt_tokens"] * 200_000 + usage["completion_tokens"] * 600_000) // DOLLAR)
        await client.process_payment_result(payment, paid.header, paid.status)
        again = Answered(seller, **{name.lower().replace("-", "_"): value})
        assert again.status == 402, "a voucher is good for one request"

    running = json.loads((seller.home / "runtime.json").read_text())
    request = urllib.request.Request(
        f"{running['console']}/api/spending", headers={"x-meshnode-token": running["token"]}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        (channel,) = json.loads(answer.read())["channels"]
    assert channel["charged_micros"] == charged
    assert contracts.balance(contracts.hub) == channel["balance_micros"] > 0
