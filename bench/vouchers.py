"""What a voucher costs to sign and to check, with libsecp256k1 (coincurve) and with OpenSSL alone; opening keystores.

    python -m bench.vouchers                 half a minute
    python -m bench.vouchers --quick         does it work at all

A voucher is its EIP-712 digest and a signature of it: signing and checking here do both, each time of another amount.
Both libraries take turns, round by round; a figure is the median of all, its bounds are the medians of the fastest and
the slowest round. eth-account, which web3 brings, does the same work for comparison. bench/README.md has the method.
"""

from __future__ import annotations

import argparse
import secrets
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from eth_account import Account

from bench.figures import quantile
from bench.record import Figure, Run
from meshnode.settlement import keys, keystore_v3
from meshnode.settlement.addresses import shown
from meshnode.settlement.keys import Verifier, VoucherKey
from meshnode.settlement.keystore_v3 import KDFS
from meshnode.settlement.networks import DEFAULT, NETWORKS
from meshnode.settlement.typed_data import HUB_NAME, HUB_VERSION, voucher_digest

NETWORK = NETWORKS[DEFAULT]
CHANNEL = bytes(range(32))
DIGEST_MS = 0.05
SIGN_MS = {True: 1.0, False: 6.0}
VERIFY_MS = {True: 0.5, False: 6.0}
"""What must be reached with libsecp256k1, and without it."""
LIBRARIES = {True: "libsecp256k1", False: "OpenSSL"}
VOUCHER = [{"name": "channelId", "type": "bytes32"}, {"name": "maxClaimableAmount", "type": "uint128"}]


@dataclass(frozen=True, slots=True)
class Effort:
    """Rounds, vouchers in each, and keystores opened."""

    rounds: int = 20
    vouchers: int = 100
    keystores: int = 5


QUICK = Effort(rounds=2, vouchers=20, keystores=1)


def digest(cumulative: int) -> bytes:
    """What is signed for a voucher of this amount."""
    return voucher_digest(CHANNEL, cumulative, NETWORK.chain, NETWORK.hub)


def timed_ms(work: Callable[[int], object], times: int) -> list[float]:
    """How long each of `times` calls took; each is given another number."""
    found = []
    for number in range(times):
        begun = time.perf_counter()
        work(number)
        found.append((time.perf_counter() - begun) * 1000)
    return found


@dataclass(frozen=True, slots=True)
class Ways:
    """The work with one library; checking begins with a verifier that knows the key, as from the second voucher on."""

    native: bool
    key: VoucherKey

    def sign(self, times: int) -> list[float]:
        """Digests made and signed."""
        return timed_ms(lambda number: self.key.sign(digest(number)), times)

    def verify(self, times: int) -> list[float]:
        """Digests made and their signatures checked."""
        verifier = Verifier(self.key.address, native=self.native)
        signatures = [self.key.sign(digest(number)) for number in range(times)]
        if not verifier.verify(digest(0), signatures[0]):
            raise RuntimeError("a good voucher was refused")
        return timed_ms(lambda number: verifier.verify(digest(number), signatures[number]), times)

    def first(self, times: int) -> list[float]:
        """The first voucher of a channel, whose key is still unknown."""
        signature = self.key.sign(digest(0))
        return timed_ms(lambda _: Verifier(self.key.address, native=self.native).verify(digest(0), signature), times)


def report(run: Run, name: str, rounds: Sequence[Sequence[float]], limit: float | None = None) -> None:
    """One figure of all rounds."""
    run.raw[f"{name}, ms"] = [quantile(values, 0.5) for values in rounds]
    every = [value for values in rounds for value in values]
    middles = [statistics.median(values) for values in rounds]
    note = f"{len(every)} vouchers, p99 {quantile(every, 0.99):.3g} ms"
    run.add(Figure(name, statistics.median(every), "ms", limit, low=min(middles), high=max(middles), note=note))


def vouchers(run: Run, effort: Effort) -> None:
    """Signing and checking, by both libraries in turns."""
    secret = secrets.token_bytes(32)
    libraries = [True, False] if keys.native() else [False]
    ways = {native: Ways(native, VoucherKey.from_secret(secret, native=native)) for native in libraries}
    found: dict[tuple[str, bool], list[list[float]]] = {}
    digests: list[list[float]] = []
    for number in range(effort.rounds):
        digests.append(timed_ms(digest, effort.vouchers))
        for native in libraries if number % 2 == 0 else libraries[::-1]:
            found.setdefault(("sign", native), []).append(ways[native].sign(effort.vouchers))
            found.setdefault(("verify", native), []).append(ways[native].verify(effort.vouchers))
            found.setdefault(("first", native), []).append(ways[native].first(max(1, effort.vouchers // 10)))
    report(run, "the digest of a voucher", digests, DIGEST_MS)
    for native in libraries:
        report(run, f"sign, {LIBRARIES[native]}", found["sign", native], SIGN_MS[native])
        report(run, f"verify, {LIBRARIES[native]}", found["verify", native], VERIFY_MS[native])
        report(run, f"verify the first of a channel, {LIBRARIES[native]}", found["first", native])


def compare(run: Run, effort: Effort) -> None:
    """The same voucher by eth-account, with the library that it finds."""
    account = Account.create()
    hub = shown(NETWORK.hub)
    domain = {"name": HUB_NAME, "version": HUB_VERSION, "chainId": NETWORK.chain, "verifyingContract": hub}

    def sign(number: int) -> None:
        account.sign_typed_data(domain, {"Voucher": VOUCHER}, {"channelId": CHANNEL, "maxClaimableAmount": number})

    rounds = [timed_ms(sign, max(1, effort.vouchers // 5)) for _ in range(effort.rounds)]
    report(run, "sign, eth-account (for comparison)", rounds)


def opening_ms(text: str, times: int) -> list[float]:
    """How long it took to open a keystore, each of `times` times."""
    return timed_ms(lambda _: keystore_v3.opened(text, b"password"), times)


def keystores(run: Run, effort: Effort) -> None:
    """Opening a key with its password, once at a start."""
    key = VoucherKey.generate()
    for name, kdf in KDFS.items():
        text = keystore_v3.sealed(key, b"password", kdf)
        values = opening_ms(text, effort.keystores)
        run.add(Figure(f"open a keystore, {name}", statistics.median(values), "ms", low=min(values), high=max(values)))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few of each kind; nothing is saved")
    parser.add_argument("--out", type=Path, help="folder for the result (bench/results)")
    options = parser.parse_args()
    run, effort = Run("vouchers", quick=options.quick), QUICK if options.quick else Effort()
    keys.prepare()
    for part in (vouchers, compare, keystores):
        part(run, effort)
    run.finish(options.out)


if __name__ == "__main__":
    main()
