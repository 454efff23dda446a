"""The benchmark of vouchers: both libraries do the same work, and every figure is there."""

from __future__ import annotations

import pytest

from bench import vouchers
from bench.record import Run
from meshnode.settlement import keys
from meshnode.settlement.keys import VoucherKey
from meshnode.settlement.keystore_v3 import Pbkdf2, Scrypt
from meshnode.settlement.native_curve import library

LITTLE = vouchers.Effort(rounds=2, vouchers=3, keystores=1)


def names(run: Run) -> list[str]:
    return [figure.name for figure in run.figures]


def test_both_libraries_take_turns() -> None:
    run = Run("vouchers", quick=True, machine={})
    vouchers.vouchers(run, LITTLE)
    libraries = ["libsecp256k1", "OpenSSL"] if keys.native() else ["OpenSSL"]
    whats = ("sign", "verify", "verify the first of a channel")
    assert names(run) == ["the digest of a voucher", *(f"{what}, {name}" for name in libraries for what in whats)]
    assert all(0 < (figure.low or 0) <= figure.value <= (figure.high or 0) for figure in run.figures)
    assert len(run.raw["sign, OpenSSL, ms"]) == LITTLE.rounds


def test_without_the_native_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.vouchers.keys.native", lambda: False)
    run = Run("vouchers", quick=True, machine={})
    vouchers.vouchers(run, LITTLE)
    assert len(run.figures) == 4


def test_a_key_that_signs_nothing_good_is_noticed() -> None:
    wrong = vouchers.Ways(native=library() is not None, key=VoucherKey.generate())
    assert len(wrong.verify(2)) == 2
    wrong.key.address = bytes(20)
    with pytest.raises(RuntimeError, match="refused"):
        wrong.verify(2)


def test_the_comparison_and_the_keystores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vouchers, "KDFS", {"scrypt": Scrypt(n=2), "pbkdf2": Pbkdf2(rounds=1)})
    run = Run("vouchers", quick=True, machine={})
    vouchers.compare(run, LITTLE)
    vouchers.keystores(run, LITTLE)
    assert names(run) == ["sign, eth-account (for comparison)", "open a keystore, scrypt", "open a keystore, pbkdf2"]
