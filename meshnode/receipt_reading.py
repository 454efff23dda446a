"""Receipts from outside, verified without any network: what a provider has signed, and whether its sums can be.

A receipt proves that a node has signed these figures. That the node is who it should be, and the answer what its hash
says, is for whoever has both to compare: `verify` hands them on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final

from meshnode import identity
from meshnode.errors import ReceiptInvalid
from meshnode.wire import receipts
from meshnode.wire.values import WireError

MOST_TEXT_BYTES: Final = 32 << 20
MOST_RECEIPTS: Final = 100_000


@dataclass(frozen=True, slots=True)
class Judged:
    """One receipt: its facts when it is genuine, and why not otherwise."""

    number: int
    facts: dict[str, Any] | None
    fault: str

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {"number": self.number, "genuine": self.facts is not None, "fault": self.fault, "receipt": self.facts}


def verify(text: bytes) -> dict[str, Any]:
    """What a signed receipt says, bytes as hex digits. Raises ReceiptInvalid."""
    try:
        found = receipts.read_genuine(text, identity.verify)
    except WireError as reason:
        raise ReceiptInvalid(str(reason)) from None
    facts = {name: value.hex() if isinstance(value, bytes) else value for name, value in asdict(found).items()}
    return facts | {name: f"0x{facts[name]}" for name in ("payer", "channel", "hub")}


def judged(text: bytes) -> Iterator[Judged]:
    """Every receipt of a text, each by itself; none of a list that is empty. Raises ReceiptInvalid for no text."""
    for number, signed in enumerate(_signed_texts(text), 1):
        try:
            yield Judged(number, verify(signed), "")
        except ReceiptInvalid as reason:
            yield Judged(number, None, reason.detail)


def _signed_texts(text: bytes) -> Iterator[bytes]:
    """Receipts as they were signed: of what `meshnode receipts list --json` prints, or one on each line."""
    if len(text) > MOST_TEXT_BYTES:
        raise ReceiptInvalid(f"more than {MOST_TEXT_BYTES >> 20} MiB cannot be receipts")
    listed = _listed(text)
    if listed is not None:
        yield from listed
        return
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise ReceiptInvalid("there is no receipt in it")
    if len(lines) > MOST_RECEIPTS:
        raise ReceiptInvalid(f"more than {MOST_RECEIPTS} receipts at once")
    yield from lines


def _listed(text: bytes) -> list[bytes] | None:
    """The receipts of an answer of the control API; None for any other text."""
    if b'"receipts"' not in text:
        return None
    try:
        facts = json.loads(text)
        found = [entry["signed"].encode() for entry in facts["receipts"]]
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return None
    return found
