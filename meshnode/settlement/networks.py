"""The chains on which strangers can be paid: where the token and the payment contracts are, and whether that is true.

The table has what public sources say (Circle's list of USDC contracts; x402, whose contracts have one address on every
chain). A table can be wrong and an endpoint can lie, so `checked` compares it with the chain before money depends on
it: the chain's number, code at each address, the code's hash where it is known, and the EIP-712 domains of token and
hub, which are in everything that is signed.

Further chains, for example one on loopback, come from a file: one JSON object, or an array of them.

    {"name": "loopback", "chain": 31337, "testnet": true, "token": "0x…", "token_name": "USDC", "token_version": "2",
     "hub": "0x…", "collector": "0x…", "title": "…", "l1_fee_oracle": "0x…", "code_hashes": {"0x…": "0x…"}}

The last three may be left out. A chain of the table that carries money cannot be given other contracts, and one that
is known to carry money cannot be called a testnet.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Protocol

from meshnode.errors import SettingsError, TransactionFailed, WrongNetwork
from meshnode.settlement.addresses import parse, shown
from meshnode.settlement.keccak import DIGEST_BYTES, keccak256, selector
from meshnode.settlement.typed_data import HUB_NAME, HUB_VERSION, domain_separator, hub_domain

DEFAULT = "base-sepolia"
ENDPOINTS: Mapping[str, tuple[str, ...]] = {
    "base-sepolia": ("https://sepolia.base.org", "https://base-sepolia-rpc.publicnode.com"),
    "base": ("https://mainnet.base.org", "https://base-rpc.publicnode.com"),
}
"""Where a chain is asked unless other endpoints are set, of two different hands: only by a node that pays or sells."""
DECIMALS = 6
"""Of USDC: a micro is its smallest unit."""
MOST_CHAIN = (1 << 63) - 1
MOST_FILE_BYTES = 65_536
MOST_NETWORKS = 16
MOST_TEXT = 64
_MOST_ANSWER_BYTES = 4096
_ALL_OF_THE_DOMAIN = 0x0F
"""The bits of `fields` (EIP-5267) for name, version, chain id and contract."""


@dataclass(frozen=True, slots=True)
class Network:
    """One chain with its token, its payment hub and the collector that takes deposits into it by EIP-3009.

    `testnet`: nothing on it is worth anything. `l1_fee_oracle` is the contract that knows what part of a fee goes to
    the chain below, on chains of the OP Stack. `code_hashes` pins the Keccak-256 of the code at an address.
    """

    name: str
    title: str
    chain: int
    testnet: bool
    token: bytes
    token_name: str
    token_version: str
    hub: bytes
    collector: bytes
    l1_fee_oracle: bytes | None = None
    code_hashes: Mapping[bytes, bytes] = field(default_factory=lambda: MappingProxyType({}), hash=False)

    @property
    def caip2(self) -> str:
        """Its name among all chains (CAIP-2)."""
        return f"eip155:{self.chain}"

    @property
    def token_domain(self) -> bytes:
        """The EIP-712 domain of the token."""
        return domain_separator(self.token_name, self.token_version, self.chain, self.token)

    @property
    def hub_domain(self) -> bytes:
        """The EIP-712 domain of the hub."""
        return hub_domain(self.chain, self.hub)


HUB: Final = bytes.fromhex("4020074e9df2ce1dee5a9c1b5c3f541d02a10003")
COLLECTOR: Final = bytes.fromhex("4020806089470a89826cb9fb1f4059150b550004")
"""x402's, at the same address on every chain where somebody has deployed them (CREATE2)."""
OP_STACK_FEES: Final = bytes.fromhex("420000000000000000000000000000000000000f")


def _usdc(
    name: str, title: str, chain: int, token: str, token_name: str, *, testnet: bool, op: bool = False
) -> Network:
    fees = OP_STACK_FEES if op else None
    return Network(name, title, chain, testnet, bytes.fromhex(token), token_name, "2", HUB, COLLECTOR, fees)


_TABLE: Final = (
    _usdc(
        "base-sepolia",
        "Base Sepolia",
        84532,
        "036cbd53842c5426634e7929541ec2318f3dcf7e",
        "USDC",
        testnet=True,
        op=True,
    ),
    _usdc("base", "Base", 8453, "833589fcd6edb6e08f4c7c32d4f71b54bda02913", "USD Coin", testnet=False, op=True),
    _usdc("ethereum", "Ethereum", 1, "a0b86991c6218b36c1d19d4a2e9eb0ce3606eb48", "USD Coin", testnet=False),
    _usdc("polygon", "Polygon PoS", 137, "3c499c542cef5e3811e1192ce70d8cc03d5c3359", "USD Coin", testnet=False),
    _usdc("arbitrum", "Arbitrum One", 42161, "af88d065e77c8cc2239327c5edb3a432268e5831", "USD Coin", testnet=False),
    _usdc(
        "arbitrum-sepolia",
        "Arbitrum Sepolia",
        421614,
        "75faf114eafb1bdbe2f0316df893fd58ce46aa4d",
        "USD Coin",
        testnet=True,
    ),
)
NETWORKS: Final[Mapping[str, Network]] = MappingProxyType({network.name: network for network in _TABLE})
"""By name. Left out are chains whose token's domain no good source states."""


WORTH_MONEY: Final = frozenset(network.chain for network in _TABLE if not network.testnet) | {
    *(10, 14, 25, 50, 56, 100, 130, 143, 146, 324, 480, 988, 999, 1329),
    *(5000, 42220, 43114, 57073, 59144, 80094, 81457, 534352),
}
"""Chains whose coins have a price, as far as they are known here."""


def by_chain(chain: int) -> Network | None:
    """The network of the table with this chain id."""
    return next((network for network in _TABLE if network.chain == chain), None)


def find(name: str, network_file: Path | None = None) -> Network:
    """The network that a setting names, of the table or of a file. Raises SettingsError for none, or a bad file."""
    known = dict(NETWORKS)
    if network_file is not None:
        try:
            with network_file.open("rb") as opened:
                text = opened.read(MOST_FILE_BYTES + 1)
        except OSError as reason:
            raise SettingsError(f"{network_file}: {reason.strerror}") from None
        try:
            known |= {network.name: network for network in read(text)}
        except ValueError as reason:
            raise SettingsError(f"{network_file}: {reason}") from None
    if name in known:
        return known[name]
    raise SettingsError(f"no network is named {name[:MOST_TEXT]!r}; there are {', '.join(known)}")


def read(text: str | bytes) -> tuple[Network, ...]:
    """The networks that a file describes. Raises ValueError, which says what is wrong."""
    if len(text) > MOST_FILE_BYTES:
        raise ValueError(f"more than {MOST_FILE_BYTES} bytes")
    try:
        plain = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("no JSON text") from None
    items = plain if isinstance(plain, list) else [plain]
    if len(items) > MOST_NETWORKS:
        raise ValueError(f"more than {MOST_NETWORKS} networks")
    networks = tuple(_network(item) for item in items)
    if len({network.name for network in networks}) < len(networks):
        raise ValueError("two networks have one name")
    return networks


def to_json(network: Network) -> str:
    """What `read` reads."""
    plain: dict[str, Any] = {
        "name": network.name,
        "title": network.title,
        "chain": network.chain,
        "testnet": network.testnet,
        "token": shown(network.token),
        "token_name": network.token_name,
        "token_version": network.token_version,
        "hub": shown(network.hub),
        "collector": shown(network.collector),
        "code_hashes": {shown(address): "0x" + code.hex() for address, code in network.code_hashes.items()},
    }
    if network.l1_fee_oracle is not None:
        plain["l1_fee_oracle"] = shown(network.l1_fee_oracle)
    return json.dumps(plain, indent=1) + "\n"


class Reader(Protocol):
    """What asks a chain. It raises ChainUnreachable and ChainDisagrees, and TransactionFailed for a call that fails."""

    async def chain_id(self) -> int:
        """The chain's number."""

    async def code(self, address: bytes, /) -> bytes:
        """The code at an address; empty where there is none."""

    async def call(self, to: bytes, data: bytes, /) -> bytes:
        """What a function of a contract returns."""


async def checked(network: Network, reader: Reader) -> None:
    """Compare the network with the chain behind `reader`. Raises WrongNetwork, and what `reader` raises."""
    chain = await reader.chain_id()
    if chain != network.chain:
        raise WrongNetwork(f"the endpoint is of chain {chain}, and {network.title} is {network.chain}")
    for what, address in (("token", network.token), ("hub", network.hub), ("collector", network.collector)):
        code = await reader.code(address)
        if not code:
            raise WrongNetwork(f"{network.title} has no {what} at {shown(address)}")
        pinned = network.code_hashes.get(address)
        if pinned is not None and keccak256(code) != pinned:
            raise WrongNetwork(f"the code of the {what} at {shown(address)} is not the one that is known")
    if await _asked(reader, network.token, "DOMAIN_SEPARATOR()") != network.token_domain:
        raise WrongNetwork(f"the token at {shown(network.token)} is not {network.token_name} {network.token_version}")
    if await _asked(reader, network.token, "decimals()") != DECIMALS.to_bytes(DIGEST_BYTES, "big"):
        raise WrongNetwork(f"the token at {shown(network.token)} has not {DECIMALS} decimals")
    if not _is_hub_domain(await _asked(reader, network.hub, "eip712Domain()"), network):
        raise WrongNetwork(f"the contract at {shown(network.hub)} is no payment hub")


async def _asked(reader: Reader, contract: bytes, function: str) -> bytes:
    """What a function without arguments returns; nothing where the contract has none of that name."""
    try:
        return (await reader.call(contract, selector(function)))[:_MOST_ANSWER_BYTES]
    except TransactionFailed:
        return b""


def _is_hub_domain(answer: bytes, network: Network) -> bool:
    """Whether this is what the hub's eip712Domain() must say (EIP-5267): fields, name, version, chain id, contract."""
    from eth_abi.abi import decode
    from eth_abi.exceptions import DecodingError

    types = ("bytes1", "string", "string", "uint256", "address", "bytes32", "uint256[]")
    try:
        fields, name, version, chain, contract, _, _ = decode(types, answer)
        at = parse(contract)
    except (DecodingError, UnicodeDecodeError, OverflowError):
        return False
    said = (fields[0] & _ALL_OF_THE_DOMAIN, name, version, chain, at)
    return bool(said == (_ALL_OF_THE_DOMAIN, HUB_NAME, HUB_VERSION, network.chain, network.hub))


_REQUIRED: Final = ("name", "chain", "testnet", "token", "token_name", "token_version", "hub", "collector")
_OPTIONAL: Final = ("title", "l1_fee_oracle", "code_hashes")


def _network(plain: Any) -> Network:
    if not isinstance(plain, dict):
        raise ValueError("a network is a JSON object")
    missing = [name for name in _REQUIRED if name not in plain]
    unknown = [str(name)[:MOST_TEXT] for name in plain if name not in (*_REQUIRED, *_OPTIONAL)]
    if missing or unknown:
        raise ValueError(f"a network lacks {', '.join(missing)}" if missing else f"unknown: {', '.join(unknown[:5])}")
    name, chain, testnet = _text(plain, "name"), plain["chain"], plain["testnet"]
    if name in NETWORKS:
        raise ValueError(f"{name} is the name of a network that is known")
    if type(chain) is not int or not 0 < chain <= MOST_CHAIN:
        raise ValueError("chain is not the number of a chain")
    if type(testnet) is not bool:
        raise ValueError("testnet is neither true nor false")
    if testnet and chain in WORTH_MONEY:
        raise ValueError(f"chain {chain} is no testnet")
    known = by_chain(chain)
    if known is not None and not known.testnet:
        raise ValueError(f"chain {chain} is {known.title}, where only the contracts that are known are used")
    oracle = None if plain.get("l1_fee_oracle") is None else _place(plain, "l1_fee_oracle")
    token, hub, collector = (_place(plain, member) for member in ("token", "hub", "collector"))
    title = _text(plain, "title") if "title" in plain else name
    names = _text(plain, "token_name"), _text(plain, "token_version")
    hashes = MappingProxyType(_hashes(plain.get("code_hashes", {})))
    return Network(name, title, chain, testnet, token, *names, hub, collector, oracle, hashes)


def _text(plain: dict[str, Any], name: str) -> str:
    value = plain[name]
    if not isinstance(value, str) or not 0 < len(value) <= MOST_TEXT or not value.isprintable():
        raise ValueError(f"{name} is not a text of 1 to {MOST_TEXT} characters")
    return value


def _place(plain: dict[str, Any], name: str) -> bytes:
    try:
        return parse(plain[name] if isinstance(plain[name], str) else "")
    except ValueError as reason:
        raise ValueError(f"{name}: {reason}") from None


def _hashes(plain: Any) -> dict[bytes, bytes]:
    if not isinstance(plain, dict):
        raise ValueError("code_hashes is not a map of addresses")
    found = {}
    for address, code in plain.items():
        digits = code.removeprefix("0x") if isinstance(code, str) else ""
        try:
            found[parse(address)] = bytes.fromhex(digits)
        except ValueError:
            digits = ""
        if len(digits) != 2 * DIGEST_BYTES:
            raise ValueError("code_hashes is not a map of addresses to hashes of 32 bytes in hexadecimal digits")
    return found
