"""The numbers: unique, sane, used, and those that the TOML file gives."""

import re
import tomllib
from enum import IntEnum
from pathlib import Path
from typing import Any

import pytest

from meshnode.wire import registry
from meshnode.wire.messages import MESSAGES
from meshnode.wire.registry import (
    BEFORE_ADMISSION,
    CLOSE_TEXTS,
    LEASE_TEXTS,
    MAY_OPEN,
    PAY_TEXTS,
    RELAY_TEXTS,
    RESET_TEXTS,
    Close,
    LeaseCode,
    MessageId,
    PayCode,
    RelayCode,
    Reset,
    Role,
    RpcKind,
    StatementKind,
    StreamType,
)
from meshnode.wire.statements import BODIES

ROOT = Path(__file__).parent.parent.parent
GIVEN = tomllib.loads((ROOT / "protocol" / "registry.toml").read_text("utf-8"))
NUMBERED = {"streams": StreamType, "roles": Role, "messages": MessageId, "statements": StatementKind, "rpc": RpcKind}
CODED = {"close": Close, "reset": Reset, "lease": LeaseCode, "pay": PayCode}


def number(value: Any) -> int:
    return int(value if isinstance(value, int) else value.get("id", value.get("code")))


@pytest.mark.parametrize(("section", "enum"), {**NUMBERED, **CODED}.items(), ids=str)
def test_the_module_says_what_the_file_says(section: str, enum: type[IntEnum]) -> None:
    assert {item.name.lower(): int(item) for item in enum} == {
        name: number(value) for name, value in GIVEN[section].items()
    }


@pytest.mark.parametrize("section", [*NUMBERED, *CODED])
def test_no_number_is_given_twice(section: str) -> None:
    """An IntEnum would silently make the second an alias of the first."""
    numbers = [number(value) for value in GIVEN[section].values()]
    assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize("section", ["messages", "statements", "streams", "rpc"])
def test_what_this_version_demands_is_even(section: str) -> None:
    """Odd numbers are for what a reader may pass over; the first version has nothing of the kind."""
    assert [name for name, value in GIVEN[section].items() if number(value) % 2] == []


def test_numbers_fit_into_their_bytes() -> None:
    assert all(0 <= item <= 0xFF for item in StreamType)
    assert all(0 <= item <= 0xFFFF for item in (*MessageId, *StatementKind))
    assert all(0 < item < 1 << 62 for item in (*Close, *Reset)), "a QUIC integer; 0 is an orderly end"
    assert not set(Close) & set(Reset), "a code says by itself what it is about"


def test_every_number_has_its_shape() -> None:
    assert set(MESSAGES) == set(MessageId)
    assert set(BODIES) == set(StatementKind)


def test_codes_have_their_words() -> None:
    tables = (CLOSE_TEXTS, RESET_TEXTS, LEASE_TEXTS, RELAY_TEXTS, PAY_TEXTS)
    for enum, texts in zip((Close, Reset, LeaseCode, RelayCode, PayCode), tables, strict=True):
        assert set(texts) == set(enum)
        assert all(text and not text.endswith(".") for text in texts.values())
        assert len(set(texts.values())) == len(texts)


def test_who_may_open_what() -> None:
    assert set(MAY_OPEN) == set(StreamType)
    assert frozenset({StreamType.CONTROL, StreamType.PAIR, StreamType.INQUIRY}) == BEFORE_ADMISSION
    for kind, roles in MAY_OPEN.items():
        assert roles or kind in BEFORE_ADMISSION, "nobody could ever open it"
    assert MAY_OPEN[StreamType.RPC] == MAY_OPEN[StreamType.BULK] == {Role.MEMBER}


def test_limits_are_given_and_hang_together() -> None:
    limits = {name[6:].lower(): value for name, value in vars(registry).items() if name.startswith("LIMIT_")}
    assert limits == GIVEN["limits"]
    assert all(value > 0 for value in limits.values())
    signed = registry.LIMIT_STATEMENT_BYTES + 3
    assert registry.LIMIT_STATEMENTS_A_FRAME * signed <= registry.LIMIT_FRAME_BYTES - 16
    assert registry.LIMIT_IHAVE_IDS * 12 <= registry.LIMIT_FRAME_BYTES - 16
    assert registry.LIMIT_LEASE_FRAME_BYTES <= registry.LIMIT_FRAME_BYTES
    assert registry.LIMIT_CERTIFICATE_BYTES < registry.LIMIT_STATEMENT_BYTES
    assert registry.LIMIT_INVITE_TTL_S <= registry.LIMIT_INVITE_MAX_TTL_S
    assert registry.LIMIT_PAY_HTTP_BYTES + 32 <= registry.LIMIT_FRAME_BYTES
    assert max(registry.LIMIT_RECEIPT_BYTES, registry.LIMIT_QUOTE_BYTES) + 16 <= registry.LIMIT_PAY_FRAME_BYTES
    assert registry.LIMIT_MONEY_MICROS < 1 << 53, "every reader of JSON keeps it"
    assert registry.LIMIT_WITHDRAW_DELAY_MIN_S < registry.LIMIT_WITHDRAW_DELAY_MAX_S


@pytest.mark.parametrize("enum", [Close, Reset, StreamType, RpcKind, LeaseCode], ids=lambda enum: enum.__name__)
def test_every_number_is_used_or_said_to_be_reserved(enum: type[IntEnum]) -> None:
    """Used in meshnode/ outside of the registry, or listed under "Reserved" in the protocol's README."""
    sources = [path for path in (ROOT / "meshnode").rglob("*.py") if path.name != "registry.py"]
    code = "\n".join(path.read_text("utf-8") for path in sources)
    used = set(re.findall(rf"\b{enum.__name__}\.([A-Z_]+)\b", code))
    readme = (ROOT / "protocol" / "README.md").read_text("utf-8")
    reserved = readme.partition("\n## Reserved\n")[2].partition("\n## ")[0]
    kept = set(re.findall(rf"^\| `{enum.__name__}\.([A-Z_]+)` \|", reserved, re.MULTILINE))
    names = {item.name for item in enum}
    assert kept <= names
    assert names - used - kept == set(), "neither used nor reserved"
    assert kept & used == set(), "reserved, but in use"
