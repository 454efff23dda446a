"""Terms and quotes, without a journal."""

from __future__ import annotations

from dataclasses import replace

import pytest

from meshnode.core.credit import CLEAN_HISTORY_MICROS, Credit
from meshnode.core.windows import MOST_AHEAD_TOKENS, MOST_UNPAID_TOKENS
from meshnode.earning_accounts import Account
from meshnode.earning_terms import MOST_RUNNING, Conditions, Terms
from meshnode.errors import PaymentRefused
from meshnode.settlement.store_channels import Channel
from meshnode.wire import quotes
from meshnode.wire.registry import PayCode
from tests.lab.paying_ends import CHANNEL, CONFIG, CONTENT_HASH, MODEL, NETWORK, PRICE, RECEIVER
from tests.money_stage import NOVEMBER, SELLING_NODE, voucher

CONDITIONS = Conditions(RECEIVER.address, RECEIVER.address, least_deposit_micros=1000)
TERMS = Terms(SELLING_NODE.node_id, NETWORK, CONDITIONS, lambda: NOVEMBER)
NODE = bytes([7]) * 32


def account(**amounts: int) -> Account:
    line = Channel(CHANNEL, "receiver", NODE, NETWORK.chain, NETWORK.hub, CONFIG, state="open")
    if vouched := amounts.get("vouched_micros", 0):
        line = replace(line, signed_micros=vouched, signature=voucher(vouched).signature)
    return Account(line, Credit(CHANNEL, **{"balance_micros": 1_000_000, **amounts}))  # type: ignore[arg-type]


def code_of(terms: Terms, found: Account, node: bytes = NODE, least_micros: int = 2) -> PayCode:
    with pytest.raises(PaymentRefused) as refused:
        terms.check_room(found, node, least_micros)
    return PayCode(refused.value.pay_code)


def test_a_config_is_taken_as_it_is_or_refused() -> None:
    assert TERMS.checked(CONFIG) is CONFIG
    for wrong in (None, replace(CONFIG, payer=CONFIG.receiver), replace(CONFIG, payer=bytes(20))):
        with pytest.raises(PaymentRefused):
            TERMS.checked(wrong)


def test_room_on_a_channel() -> None:
    TERMS.check_room(account(), NODE, 2)
    TERMS.check_room(account(vouched_micros=999_990, settled_micros=999_990), NODE, 10)
    used_up = account(vouched_micros=999_990, settled_micros=999_990)
    assert code_of(TERMS, used_up, least_micros=11) == PayCode.INSUFFICIENT_BALANCE
    assert code_of(TERMS, account(balance_micros=999)) == PayCode.TOO_SMALL
    assert code_of(TERMS, account(vouched_micros=5), node=bytes(32)) == PayCode.UNKNOWN_CHANNEL
    busy = account()
    for number in range(MOST_RUNNING):
        busy.credit.open(str(number), PRICE)
    assert code_of(TERMS, busy) == PayCode.CHANNEL_BUSY


def test_headroom_is_no_reason_to_refuse() -> None:
    """All of the deposit is vouched for, and little of it used."""
    TERMS.check_room(account(vouched_micros=1_000_000, settled_micros=5), NODE, 2)


def test_a_quote_says_what_this_channel_is_trusted_with() -> None:
    first = account()
    first.credit.open("r", PRICE, first.credit.unpaid_tokens)
    stranger = TERMS.quote(MODEL, CONTENT_HASH, PRICE, first, "r")
    assert (stranger.credit_tokens, stranger.unpaid_prefill_tokens) == (0, 2048)
    known = account(vouched_micros=CLEAN_HISTORY_MICROS, settled_micros=CLEAN_HISTORY_MICROS)
    known.credit.open("r", PRICE, known.credit.unpaid_tokens)
    trusted = TERMS.quote(MODEL, CONTENT_HASH, PRICE, known, "r")
    assert (trusted.credit_tokens, trusted.ahead_tokens) == (MOST_UNPAID_TOKENS, MOST_AHEAD_TOKENS)
    assert (trusted.charged, trusted.vouched) == (CLEAN_HISTORY_MICROS, CLEAN_HISTORY_MICROS)
    lost = account(written_off_micros=5)
    lost.credit.open("r", PRICE, 64)
    warned = TERMS.quote(MODEL, CONTENT_HASH, PRICE, lost, "r")
    assert (warned.credit_tokens, warned.unpaid_prefill_tokens) == (0, 0)
    for quote in (stranger, trusted, warned, TERMS.quote("", b"", replace(PRICE, tokens_in=0, tokens_out=0))):
        assert quotes.read(quotes.issue(quote, SELLING_NODE.sign)) == quote
