"""Local Ethereum chains with the payment contracts on them: a real `anvil` process, or eth-tester in this process.

    with Anvil() as chain:                                  a process of its own, chain id 84532, a free port
        contracts = deployed(chain.web3)                    hub, collector and token at fresh addresses
        contracts.fund(address, eth_wei=10**18, usdc_micros=5_000_000)
        AsyncWeb3(AsyncHTTPProvider(chain.url))             what the node under test speaks to

`in_process()` gives a Web3 on eth-tester, which needs nothing but Python packages. `canonical(chain)` places the same
contracts at the addresses that public networks have them at.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
from eth_utils import to_checksum_address
from web3 import EthereumTesterProvider, HTTPProvider, Web3
from web3.contract import Contract

from tools import install_evm

ROOT = Path(__file__).parent.parent.parent
BASE_SEPOLIA = 84532
CANONICAL_HUB = to_checksum_address("0x4020074e9dF2ce1deE5A9C1b5c3f541D02a10003")
CANONICAL_COLLECTOR = to_checksum_address("0x4020806089470a89826cB9fB1f4059150b550004")
BASE_SEPOLIA_USDC = to_checksum_address("0x036CbD53842c5426634e7929541eC2318f3dCF7e")
START_LIMIT_S = 20
STOP_LIMIT_S = 10
ARTIFACTS = (ROOT / "protocol" / "contracts" / "artifacts", ROOT / "tests" / "contracts" / "artifacts")

needs_anvil = pytest.mark.skipif(
    install_evm.anvil() is None and os.environ.get("CI") != "true", reason="no anvil: python tools/install_evm.py"
)
"""For tests that need the real process; they are not skipped where CI=true."""


@cache
def artifact(name: str) -> dict[str, Any]:
    """What the compiler made of a contract (tools/build_contracts.py): `abi`, `bytecode`, `deployedBytecode`, more."""
    path = next(folder / f"{name}.json" for folder in ARTIFACTS if (folder / f"{name}.json").exists())
    loaded: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return loaded


def deploy(web3: Web3, name: str, *arguments: Any) -> Contract:
    """A contract at a fresh address, paid by the first account of a local chain."""
    made = artifact(name)
    factory = web3.eth.contract(abi=made["abi"], bytecode=made["bytecode"])
    sent = factory.constructor(*arguments).transact({"from": web3.eth.accounts[0]})
    receipt = web3.eth.wait_for_transaction_receipt(sent)
    return web3.eth.contract(address=receipt["contractAddress"], abi=made["abi"])


@dataclass(frozen=True)
class Deployment:
    """Where the three contracts are on one chain; checksummed addresses."""

    chain_id: int
    hub: str
    collector: str
    token: str
    web3: Web3 = field(repr=False, compare=False)

    @cached_property
    def channels(self) -> Contract:
        """The hub, to call."""
        return self._at(self.hub, "PaymentChannels")

    @cached_property
    def usdc(self) -> Contract:
        """The token, to call; anyone may mint, pause and blacklist."""
        return self._at(self.token, "TestUSDC")

    def _at(self, address: str, name: str) -> Contract:
        return self.web3.eth.contract(address=to_checksum_address(address), abi=artifact(name)["abi"])

    def fund(self, address: str, *, eth_wei: int = 0, usdc_micros: int = 0) -> None:
        """Give an account ether for gas, and money; returns when both are in a block."""
        first = self.web3.eth.accounts[0]
        to = to_checksum_address(address)
        if eth_wei:
            sent = self.web3.eth.send_transaction({"from": first, "to": to, "value": eth_wei})
            self.web3.eth.wait_for_transaction_receipt(sent)
        if usdc_micros:
            sent = self.usdc.functions.mint(to, usdc_micros).transact({"from": first})
            self.web3.eth.wait_for_transaction_receipt(sent)

    def balance(self, address: str) -> int:
        """What an account has, in micros."""
        held: int = self.usdc.functions.balanceOf(to_checksum_address(address)).call()
        return held


def deployed(chain: Web3 | str) -> Deployment:
    """Hub, collector and token on a local chain (its Web3, or the URL of an anvil), at fresh addresses."""
    web3 = Web3(HTTPProvider(chain)) if isinstance(chain, str) else chain
    token = deploy(web3, "TestUSDC")
    hub = deploy(web3, "PaymentChannels")
    collector = deploy(web3, "DepositCollector", hub.address)
    return Deployment(web3.eth.chain_id, hub.address, collector.address, token.address, web3)


def in_process() -> Web3:
    """A chain inside of this process (eth-tester on py-evm), ten rich unlocked accounts, a block per transaction."""
    return Web3(EthereumTesterProvider())


def travel(web3: Web3, seconds: int) -> None:
    """Move the clock of a local chain on by at least so much, into a block of its own."""
    if not isinstance(web3.provider, EthereumTesterProvider):
        asked(web3, "evm_increaseTime", [seconds])
        asked(web3, "evm_mine", [])
        return
    tester: Any = web3.provider.ethereum_tester
    wanted = web3.eth.get_block("latest")["timestamp"] + seconds
    # Blocks come by the clock of this machine, which may have gone further in the meantime; back it cannot go.
    if web3.eth.get_block("pending")["timestamp"] < wanted:
        tester.time_travel(wanted)
    tester.mine_block()


def asked(web3: Web3, method: str, params: list[Any]) -> Any:
    """One call of a method that web3 has no name for. Raises RuntimeError with the chain's own words."""
    answer = web3.provider.make_request(method, params)  # type: ignore[arg-type]
    if "error" in answer:
        raise RuntimeError(f"{method}: {answer['error']}")
    return answer.get("result")


class Anvil:
    """A real Ethereum node of its own chain, with the usual ten test accounts unlocked and a block per transaction.

    With `block_time_s`, blocks come by the clock instead; with `mining=False`, only by `mine`. A chain that is stopped
    (`stop`) goes on where it was, on the same port, with `start`; one that is killed begins anew.
    """

    def __init__(
        self,
        chain_id: int = BASE_SEPOLIA,
        *,
        mining: bool = True,
        block_time_s: int | None = None,
        state: Path | None = None,
    ) -> None:
        self.chain_id = chain_id
        self.port = 0
        self._options = [] if mining else ["--no-mining"]
        if block_time_s is not None:
            self._options += ["--block-time", str(block_time_s)]
        if state is not None:
            self._options += ["--state", str(state)]
        self._process: subprocess.Popen[str] | None = None
        self._words: deque[str] = deque(maxlen=40)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def start(self) -> None:
        """Start the process and wait until it answers. Raises RuntimeError with its last words if it does not."""
        program = install_evm.anvil()
        if program is None:
            raise RuntimeError("no anvil: python tools/install_evm.py")
        command = [program, "--host", "127.0.0.1", "--port", self.port, "--chain-id", self.chain_id, *self._options]
        self._process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        listening: Future[int] = Future()
        # It writes a line per request; unread, the pipe would fill up and stop it.
        threading.Thread(target=self._read, args=(self._process, listening), daemon=True).start()
        try:
            self.port = listening.result(START_LIMIT_S)
        except (TimeoutError, EOFError):
            self.kill()
            raise RuntimeError("anvil did not start:\n" + "".join(self._words)) from None

    def _read(self, process: subprocess.Popen[str], listening: Future[int]) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                self._words.append(line)
                found = re.match(r"Listening on 127\.0\.0\.1:(\d+)", line)
                if found and not listening.done():
                    listening.set_result(int(found[1]))
        if not listening.done():
            listening.set_exception(EOFError())

    @property
    def url(self) -> str:
        """Where it answers over HTTP."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def websocket_url(self) -> str:
        """Where it answers over a web socket."""
        return f"ws://127.0.0.1:{self.port}"

    @cached_property
    def web3(self) -> Web3:
        """A blocking connection, for the test itself."""
        return Web3(HTTPProvider(self.url))

    def ask(self, method: str, *params: Any) -> Any:
        """Any method of the process, such as `anvil_dropTransaction`."""
        return asked(self.web3, method, list(params))

    def mine(self, blocks: int = 1) -> None:
        """Add blocks, with what waits in the first."""
        self.ask("anvil_mine", hex(blocks))

    def travel(self, seconds: int) -> None:
        """Move the chain's clock on, into a block of its own."""
        travel(self.web3, seconds)

    def reorg(self, depth: int) -> None:
        """Replace the last blocks by as many empty ones, as if another branch had won."""
        self.ask("anvil_reorg", depth, [])

    def set_code(self, address: str, code: str) -> None:
        """Place code at an address."""
        self.ask("anvil_setCode", address, code)

    def snapshot(self) -> str:
        """Remember this state of the chain, for `restore`."""
        remembered: str = self.ask("evm_snapshot")
        return remembered

    def restore(self, snapshot: str) -> None:
        """Go back to a remembered state, once."""
        if not self.ask("evm_revert", snapshot):
            raise RuntimeError("no such snapshot")

    def pause(self) -> None:
        """Stop answering, with connections left open, as a machine that hangs does."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Answer again after `pause`."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def stop(self) -> None:
        """End the process in order; with a `state` file the chain is kept."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """End the process at once. Harmless when it is gone."""
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_LIMIT_S)


def canonical(chain: Anvil, *, token: str = BASE_SEPOLIA_USDC) -> Deployment:
    """Hub, collector and token where public networks have them, so that built-in tables of addresses hold."""
    web3 = chain.web3
    chain.set_code(CANONICAL_HUB, artifact("PaymentChannels")["deployedBytecode"])
    chain.set_code(token, artifact("TestUSDC")["deployedBytecode"])
    # The collector's code carries the hub it was made for.
    elsewhere = deploy(web3, "DepositCollector", CANONICAL_HUB)
    chain.set_code(CANONICAL_COLLECTOR, web3.eth.get_code(elsewhere.address).to_0x_hex())
    return Deployment(web3.eth.chain_id, CANONICAL_HUB, CANONICAL_COLLECTOR, to_checksum_address(token), web3)
