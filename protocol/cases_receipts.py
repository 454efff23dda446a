"""Vectors of receipts: texts that anyone can verify by the key in them. The keys are made from names."""

from __future__ import annotations

import json
from typing import Any

from cases_payments import CHAIN, CHANNEL, CONTENT, HUB, MODEL
from cases_signed import ALICE, BOB, NOW_S, Key
from cases_values import CODE

from meshnode.wire.registry import LIMIT_RECEIPT_BYTES


def files() -> dict[str, dict[str, Any]]:
    """The file of this layer."""
    return {
        "receipts.json": {
            "about": "texts that prove what a request came to, by the key in them: 15-payments.md",
            "valid": [
                {"comment": comment, "text": receipt(said, signer), "receipt": dict(sorted(said.items()))}
                for comment, said, signer in _receipts()
            ],
            "invalid": [{"comment": comment, "text": text, "code": CODE} for comment, text in _no_receipts()],
        },
    }


def said_in_receipt(node: Key = ALICE, **changed: str | None) -> dict[str, str]:
    """What a receipt says, its signature left out; what is changed to None is left out too."""
    plain: dict[str, str | None] = {
        "v": "1",
        "request": "5f0c2a.1",
        "quote": bytes(range(100, 116)).hex(),
        "node": node.public.hex(),
        "model": MODEL,
        "content_hash": CONTENT.hex(),
        "payer": "0x" + "44" * 20,
        "channel": "0x" + CHANNEL.hex(),
        "chain": str(CHAIN),
        "hub": "0x" + HUB.hex(),
        "price_in": "200000",
        "price_out": "600000",
        "tokens_in": "1001",
        "tokens_out": "500",
        "charged_micros": "501",
        "channel_charged_micros": "1701",
        "finish": "stop",
        "output_sha256": "ab" * 32,
        "at": str(NOW_S),
    }
    return {key: value for key, value in (plain | changed).items() if value is not None}


def canonical(plain: dict[str, Any]) -> str:
    """RFC 8785, for what these cases need."""
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def receipt(said: dict[str, Any], signer: Key = ALICE, purpose: str = "receipt") -> str:
    """The text of a receipt."""
    return canonical(said | {"sig": signer.seal(purpose, canonical(said).encode())[:64].hex()})


def _receipts() -> list[tuple[str, dict[str, str], Key]]:
    most = {"tokens_in": str((1 << 32) - 1), "tokens_out": str((1 << 32) - 1), "at": str((1 << 63) - 1)}
    sums = {"charged_micros": "3435974", "channel_charged_micros": str(10**15), "price_in": "200", "price_out": "600"}
    longest = said_in_receipt(later="x" * (LIMIT_RECEIPT_BYTES - len(receipt(said_in_receipt(later="")))))
    assert len(receipt(longest)) == LIMIT_RECEIPT_BYTES
    return [
        ("an answer that ended by itself", said_in_receipt(), ALICE),
        ("of another node", said_in_receipt(BOB), BOB),
        ("ended at its bound", said_in_receipt(finish="length"), ALICE),
        ("cancelled by who asked", said_in_receipt(finish="cancelled", tokens_out="33", charged_micros="220"), ALICE),
        ("broken, and nothing charged", said_in_receipt(finish="broken", charged_micros="0", tokens_out="0"), ALICE),
        ("charged less than it might", said_in_receipt(charged_micros="500"), ALICE),
        ("the only request of its channel", said_in_receipt(channel_charged_micros="501"), ALICE),
        ("a model with letters of another script", said_in_receipt(model="küche-模型-\U0001f600"), ALICE),
        ("a model with characters that JSON escapes", said_in_receipt(model='a"b\\c/d'), ALICE),
        ("the greatest numbers", said_in_receipt(**most, **sums), ALICE),
        ("members that are not known", said_in_receipt(zzz="later", a2="1", a_hint=""), ALICE),
        ("the longest", longest, ALICE),
    ]


def _no_receipts() -> list[tuple[str, str]]:
    said = said_in_receipt()
    good = receipt(said)
    texts = {
        "nothing": "",
        "no object": '["v","1"]',
        "a text": '"v"',
        "nested without end": "[" * 2000,
        "cut short": good[:-1],
        "a space behind it": good + " ",
        "a space within": good.replace(":", ": ", 1),
        "a line break before it": "\n" + good,
        "members in another order": json.dumps(dict(reversed(json.loads(good).items())), separators=(",", ":")),
        "a member twice": good.replace('"at":', '"at":"1800000000","at":', 1),
        "a character escaped that need not be": good.replace("qwen3-8b", "qwen3\\u002d8b"),
        "half a surrogate pair": good.replace("qwen3-8b", "qwen3\\ud800"),
        "without a signature": canonical(said),
        "a signature of 63 bytes": good.replace(json.loads(good)["sig"], "00" * 63),
        "a signature in upper case": good.replace(json.loads(good)["sig"], json.loads(good)["sig"].upper()),
        "another signature": good.replace(json.loads(good)["sig"], "5a" * 64),
        "signed by another than its node": receipt(said, BOB),
        "signed for another purpose": receipt(said, purpose="quote"),
        "a changed amount": good.replace('"charged_micros":"501"', '"charged_micros":"500"'),
        "a changed count": good.replace('"tokens_out":"500"', '"tokens_out":"501"'),
        "the name of another node": good.replace(ALICE.public.hex(), BOB.public.hex()),
        "an unknown member added": good.replace('"v":"1"', '"v":"1","z":"1"'),
        "one byte too long": receipt(said | {"later": "x" * LIMIT_RECEIPT_BYTES})[: LIMIT_RECEIPT_BYTES + 1],
        "one byte too long, and signed": receipt(
            said | {"later": "x" * (LIMIT_RECEIPT_BYTES + 1 - len(receipt(said | {"later": ""})))}
        ),
    }
    changes: dict[str, dict[str, Any]] = {
        "another version": {"v": "2"},
        "a version that is a number": {"v": 1},
        "an amount that is a number": {"charged_micros": 501},
        "an amount that is true": {"charged_micros": True},
        "a nested member": {"later": {"a": "b"}},
        "nil": {"later": None},
        "an unknown member with another name than it may have": {"Später": "1"},
        "a member whose name is a number": {"10": "1"},
        "a member whose name means something elsewhere": {"__proto__": "1"},
        "no request": {"request": ""},
        "a request of 65 characters": {"request": "x" * 65},
        "a request with a line break": {"request": "a\nb"},
        "a model of 65 characters": {"model": "x" * 65},
        "a model turned from right to left": {"model": "a\u202eb"},
        "a quote of 15 bytes": {"quote": "00" * 15},
        "a node in upper case": {"node": ALICE.public.hex().upper()},
        "a payer without 0x": {"payer": "44" * 20},
        "a payer of 19 bytes": {"payer": "0x" + "44" * 19},
        "a channel that is no digits": {"channel": "0x" + "zz" * 32},
        "an amount with a leading zero": {"charged_micros": "0501"},
        "an amount with a sign": {"charged_micros": "+501"},
        "a negative amount": {"charged_micros": "-1"},
        "half an amount": {"charged_micros": "0.5"},
        "an amount in other digits": {"charged_micros": "\u0665\u0660\u0661"},
        "an amount above the greatest": {"channel_charged_micros": str(10**15 + 1)},
        "a count of 2^32": {"tokens_in": str(1 << 32)},
        "a time of 2^63": {"at": str(1 << 63)},
        "an empty count": {"tokens_in": ""},
        "an end of no known way": {"finish": "tool_calls"},
        "more charged than the tokens cost": {"charged_micros": "502"},
        "more charged than the channel was": {"channel_charged_micros": "500"},
        "a hash of 31 bytes": {"output_sha256": "ab" * 31},
    }
    found = [(comment, text) for comment, text in texts.items()]
    found += [(comment, receipt(said | change)) for comment, change in changes.items()]
    return found + [
        (f"no {name}", receipt({key: value for key, value in said.items() if key != name})) for name in said
    ]
