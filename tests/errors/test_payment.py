"""Errors of money: codes, statuses and exit codes are an interface, and do not change by accident."""

from __future__ import annotations

from meshnode.errors import payment
from tests.errors.families import table_of

CODES = {
    "PaymentError": ("payment", 402, 8),
    "PaymentRequired": ("payment-required", 402, 8),
    "PaymentsOff": ("payments-off", 402, 8),
    "PriceAboveCeiling": ("price-above-ceiling", 402, 8),
    "MonthlyCapReached": ("monthly-cap-reached", 402, 8),
    "GasCapReached": ("gas-cap-reached", 402, 8),
    "NoChannel": ("no-channel", 402, 8),
    "PaymentRefused": ("payment-refused", 402, 8),
    "ReceiptInvalid": ("receipt-invalid", 400, 8),
    "NoWallet": ("no-wallet", 409, 8),
    "WalletLocked": ("wallet-locked", 409, 8),
    "WalletInUse": ("wallet-in-use", 409, 8),
    "WrongPassword": ("wrong-password", 400, 8),
    "KeystoreInvalid": ("keystore-invalid", 400, 8),
    "NotTerminal": ("not-a-terminal", 403, 8),
    "LedgerDamaged": ("ledger-damaged", 500, 8),
    "WrongNetwork": ("wrong-network", 503, 8),
    "ChainUnreachable": ("chain-unreachable", 503, 8),
    "ChainDisagrees": ("chain-disagrees", 503, 8),
    "TransactionFailed": ("transaction-failed", 502, 8),
}


def test_codes_statuses_and_exit_codes() -> None:
    assert table_of(payment) == CODES


def test_what_a_peer_said_goes_with_the_error() -> None:
    assert payment.PaymentRefused("x", pay_code=5, fix="y").pay_code == 5
    assert payment.PaymentRefused().pay_code == 0


def test_all_money_is_one_family() -> None:
    """Whoever refuses to spend catches one class; scripts see one exit code."""
    for name in CODES:
        assert issubclass(getattr(payment, name), payment.PaymentError)
