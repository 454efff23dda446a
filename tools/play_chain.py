"""A chain of your own with play money, to try payments: contracts deployed, nothing worth anything.

    python -m tools.play_chain                      starts it, until Ctrl-C; writes play-chain/network.json
    python -m tools.play_chain give ADDRESS USD     play dollars, and play ether for fees, to an address
    python -m tools.play_chain balance ADDRESS      what an address has, in micro-USDC

Nodes take part with `--network play --rpc URL` and MESHNODE_NETWORK_FILE=play-chain/network.json. The chain is a real
Ethereum node (anvil, from tools/install_evm.py) that listens on loopback only, and forgets everything at its end.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
from pathlib import Path

from web3 import HTTPProvider, Web3

from tests.lab.evm import Anvil, Deployment, asked, deployed

CHAIN_ID = 31337
NAME = "play"
FOLDER = Path("play-chain")
NETWORK_FILE, URL_FILE = "network.json", "url"
ETHER = 10**18
MICROS = 10**6
BASE_FEE_WEI = 5_000_000
FEE_BLOCKS = 12
"""Wallets look at the tips of fewer."""


def network_of(contracts: Deployment, name: str = NAME) -> dict[str, object]:
    """The network as `--network-file` reads it (protocol/15-payments.md)."""
    return {
        "name": name,
        "chain": contracts.chain_id,
        "testnet": True,
        "token": contracts.token,
        "token_name": "USDC",
        "token_version": "2",
        "hub": contracts.hub,
        "collector": contracts.collector,
    }


def run(folder: Path, port: int) -> None:
    """Start the chain and keep it until a signal comes."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    chain = Anvil(CHAIN_ID)
    chain.port = port
    with chain:
        contracts = deployed(chain.web3)
        make_cheap(contracts)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / NETWORK_FILE).write_text(json.dumps(network_of(contracts), indent=2) + "\n", "utf-8")
        (folder / URL_FILE).write_text(chain.url + "\n", "utf-8")
        print(f"play chain {CHAIN_ID} on {chain.url}", flush=True)
        print(f"  export MESHNODE_NETWORK=play MESHNODE_NETWORK_FILE={folder / NETWORK_FILE} MESHNODE_RPC={chain.url}")
        print(f"  python -m tools.play_chain give ADDRESS 5 --folder {folder}", flush=True)
        stop.wait()


def make_cheap(contracts: Deployment) -> None:
    """Let fees be those of a rollup: a low base fee, and no blocks with the tips of this tool's own transactions."""
    asked(contracts.web3, "anvil_setNextBlockBaseFeePerGas", [hex(BASE_FEE_WEI)])
    asked(contracts.web3, "anvil_mine", [hex(FEE_BLOCKS)])


def contracts_of(folder: Path) -> Deployment:
    """Those of a chain that runs. Raises OSError where there is none."""
    network = json.loads((folder / NETWORK_FILE).read_text("utf-8"))
    web3 = Web3(HTTPProvider((folder / URL_FILE).read_text("utf-8").strip()))
    return Deployment(network["chain"], network["hub"], network["collector"], network["token"], web3)


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tools.play_chain", description=__doc__.split("\n", 1)[0])
    parser.add_argument("do", nargs="?", choices=("run", "give", "balance"), default="run")
    parser.add_argument("address", nargs="?", help="0x and 40 hex digits")
    parser.add_argument("usd", nargs="?", type=int, default=0, help="whole play dollars")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--port", type=int, default=0, help="of the chain (0: any free one)")
    given = parser.parse_args(arguments)
    if given.do == "run":
        run(given.folder, given.port)
        return
    if not given.address:
        parser.error("an address is missing")
    try:
        contracts = contracts_of(given.folder)
        if given.do == "give":
            contracts.fund(given.address, eth_wei=ETHER, usdc_micros=given.usd * MICROS)
            make_cheap(contracts)
        print(contracts.balance(given.address))
    except OSError as reason:
        sys.exit(f"no play chain runs with the folder {given.folder}: {reason}")


if __name__ == "__main__":
    main()
