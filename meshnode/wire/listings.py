"""Listings: how an open mesh says on Nostr relays that it is there (protocol/12-public.md).

A listing is the content of an addressable event (kind 30078, NIP-78): one JSON object that ends with the signature of
the node that publishes it. What is signed are the bytes before that signature, with the publisher's Nostr key and the
time of the event, so that neither key can speak without the other. Everything in it is a claim: it says where to ask.

    {"v":1,"mesh":"...","name":"...","node":"...","entries":[...], ... ,"sig":"<128 hex digits>"}
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from typing import Any, TypeVar

from meshnode.wire.address import Address
from meshnode.wire.open_meshes import canonical_name, open_mesh_id
from meshnode.wire.registry import (
    LIMIT_ADDRESSES,
    LIMIT_LISTING_BYTES,
    LIMIT_LISTING_ENTRIES,
    LIMIT_LISTING_MODELS,
    LIMIT_LISTING_WANTED,
    LIMIT_MEMORY_BYTES_MAX,
    LIMIT_MODEL_NAME_CHARS,
    LIMIT_NAME_CHARS,
    LIMIT_PRICE_MICROS,
    VERSION,
)
from meshnode.wire.schema import MAX_U32, MAX_U63, ListOf, Text, UInt
from meshnode.wire.signed import KEY_BYTES, SIGNATURE_BYTES, Sign, Verify, purposed
from meshnode.wire.values import WireError

PURPOSE = "listing"
MODEL_HASH_BYTES = 16
PRICE_CHARS = 48
_END = re.compile(r',"sig":"([0-9a-f]{128})"\}')
_PRICE = re.compile(r"(0|[1-9][0-9]{0,12})/(0|[1-9][0-9]{0,12}) ([1-9][0-9]{0,18})")
_END_CHARS = len(',"sig":""}') + 2 * SIGNATURE_BYTES

T = TypeVar("T")


class ForgedListing(WireError):
    """The node that the listing names has not signed it, not for this publisher, or not at this time."""


# --- kinds of members: as those of wire/schema.py, over JSON ---------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Hex:
    """Bytes as lower-case hex digits: `length` of them, or none where `empty` is allowed."""

    length: int
    empty: bool = False

    def pack(self, value: bytes) -> str:
        return self.unpack(value.hex(), 0).hex()

    def unpack(self, plain: Any, _: int) -> bytes:
        if self.empty and plain == "":
            return b""
        if type(plain) is not str or len(plain) != 2 * self.length or not set(plain) <= set("0123456789abcdef"):
            raise WireError(f"expected {2 * self.length} hex digits")
        return bytes.fromhex(plain)

    def describe(self) -> dict[str, Any]:
        return {"type": "string", "pattern": f"^[0-9a-f]{{{2 * self.length}}}$"}


@dataclass(frozen=True, slots=True)
class _Place:
    """An address as text, such as 192.0.2.1:9338 or [2001:db8::1]:9338, in its shortest form."""

    def pack(self, value: Address) -> str:
        self.unpack(str(value), 0)
        return str(value)

    def unpack(self, plain: Any, _: int) -> Address:
        try:
            if type(plain) is not str or len(plain) > 60:
                raise ValueError("expected an address and a port")
            address = Address.from_bytes(Address.parse(plain).to_bytes())
        except ValueError as reason:
            raise WireError(str(reason)) from None
        if str(address) != plain:
            raise WireError("an address is written in its shortest form")
        return address

    def describe(self) -> dict[str, Any]:
        return {"type": "string"}


@dataclass(frozen=True, slots=True)
class _Object:
    """One of the shapes below."""

    shape: type[Any]

    def pack(self, value: Any) -> Any:
        return _packed(value)

    def unpack(self, plain: Any, _: int) -> Any:
        return _unpacked(self.shape, plain)

    def describe(self) -> dict[str, Any]:
        return {"type": "object"}


def _member(kind: Any, default: Any = MISSING) -> Any:
    if default is MISSING:
        return dataclasses.field(metadata={"kind": kind})
    return dataclasses.field(default=default, metadata={"kind": kind})


# --- what a listing says ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Entry:
    """A node at which strangers can ask, and where: nothing of it is proven before it answers."""

    node: bytes = _member(_Hex(KEY_BYTES))
    addresses: tuple[Address, ...] = _member(ListOf(_Place(), LIMIT_ADDRESSES, 1))


@dataclass(frozen=True, slots=True)
class ListedModel:
    """A model that the mesh serves. `hash` is the beginning of the SHA-256 of its weights, 16 bytes, or empty.

    `hosts` is how many nodes serve it. Prices are those of the cheapest, in micro-USDC per 1,000,000 tokens.
    """

    name: str = _member(Text(LIMIT_MODEL_NAME_CHARS, 1))
    hash: bytes = _member(_Hex(MODEL_HASH_BYTES, empty=True), b"")
    hosts: int = _member(UInt(MAX_U32), 1)
    price_in: int = _member(UInt(LIMIT_PRICE_MICROS), 0)
    price_out: int = _member(UInt(LIMIT_PRICE_MICROS), 0)


@dataclass(frozen=True, slots=True)
class Listing:
    """What `node` says of the open mesh `mesh`. `vram_bytes` is the memory of all its devices.

    `wanted` are models that its members ask for and nobody serves. `price` is that of the cheapest
    node that asks for one (`price_text`), empty where none does. `publisher` (the Nostr key, 32 bytes) and `created_at`
    (wall time in seconds) are those of the event around it.
    """

    mesh: bytes = _member(_Hex(KEY_BYTES))
    name: str = _member(Text(LIMIT_NAME_CHARS, 1))
    node: bytes = _member(_Hex(KEY_BYTES))
    entries: tuple[Entry, ...] = _member(ListOf(_Object(Entry), LIMIT_LISTING_ENTRIES, 1))
    models: tuple[ListedModel, ...] = _member(ListOf(_Object(ListedModel), LIMIT_LISTING_MODELS), ())
    wanted: tuple[str, ...] = _member(ListOf(Text(LIMIT_MODEL_NAME_CHARS, 1), LIMIT_LISTING_WANTED), ())
    vram_bytes: int = _member(UInt(LIMIT_MEMORY_BYTES_MAX), 0)
    nodes: int = _member(UInt(MAX_U32), 1)
    clients: int = _member(UInt(MAX_U32), 0)
    max_clients: int = _member(UInt(MAX_U32), 0)
    region: str = _member(Text(LIMIT_NAME_CHARS), "")
    software: str = _member(Text(LIMIT_NAME_CHARS), "")
    price: str = _member(Text(PRICE_CHARS), "")
    publisher: bytes = dataclasses.field(default=b"")
    created_at: int = dataclasses.field(default=0)


def price_text(price_in: int, price_out: int, chain: int) -> str:
    """Prices of a mesh as its listing names them, such as "200000/600000 84532"."""
    return f"{price_in}/{price_out} {chain}"


def read_price(text: str) -> tuple[int, int, int] | None:
    """(price in, price out, chain) of such a text; None for any other one, which says nothing."""
    found = _PRICE.fullmatch(text)
    if found is None:
        return None
    price_in, price_out, chain = map(int, found.groups())
    within = max(price_in, price_out) <= LIMIT_PRICE_MICROS and 0 < chain <= MAX_U63
    return (price_in, price_out, chain) if within else None


def identifier(mesh: bytes) -> str:
    """The d tag of a listing: one publisher has one listing of a mesh at a time."""
    return f"meshnode:{mesh.hex()}"


def write(listing: Listing, sign: Sign) -> str:
    """The content of the event. `sign` belongs to `listing.node`; publisher and created_at must be set.

    Raises WireError for a member out of its bounds: that is our own mistake.
    """
    _check_name(listing)
    plain = {"v": VERSION} | _packed(listing)
    unsigned = json.dumps(plain, separators=(",", ":"), ensure_ascii=False)
    signature = sign(_signed(unsigned, listing.publisher, listing.created_at))
    content = f'{unsigned[:-1]},"sig":"{signature.hex()}"}}'
    if len(content.encode("utf-8")) > LIMIT_LISTING_BYTES:
        raise WireError(f"a listing of more than {LIMIT_LISTING_BYTES} bytes")
    return content


def read(content: str, *, publisher: bytes, created_at: int, verify: Verify) -> Listing:
    """The listing in the content of an event by `publisher`. Members that are not known are passed over.

    Raises WireError for what cannot be read, ForgedListing where the signature is not that of the node it names.
    """
    if len(content) > LIMIT_LISTING_BYTES or _size_bytes(content) > LIMIT_LISTING_BYTES:
        raise WireError(f"a listing of more than {LIMIT_LISTING_BYTES} bytes")
    end = _END.fullmatch(content, max(0, len(content) - _END_CHARS))
    if end is None:
        raise WireError("a listing ends with its signature")
    try:
        plain = json.loads(content, object_pairs_hook=_object, parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise WireError("a listing is a JSON object, with no member twice") from None
    if not isinstance(plain, dict) or plain.get("v") != VERSION or type(plain["v"]) is not int:
        raise WireError("not a listing of this version")
    found = _unpacked(Listing, plain)
    _check_name(found)
    if len({entry.node for entry in found.entries}) < len(found.entries):
        raise WireError("a listing names a node twice")
    unsigned = content[:-_END_CHARS] + "}"
    if not verify(found.node, bytes.fromhex(end[1]), _signed(unsigned, publisher, created_at)):
        raise ForgedListing("its node has not signed it")
    return dataclasses.replace(found, publisher=publisher, created_at=created_at)


def _signed(unsigned: str, publisher: bytes, created_at: int) -> bytes:
    if len(publisher) != KEY_BYTES:
        raise WireError("a listing has a publisher")
    return purposed(PURPOSE, publisher + created_at.to_bytes(8, "big") + unsigned.encode("utf-8"))


def _check_name(listing: Listing) -> None:
    """An open mesh is named by its name: no listing can put another name on it."""
    try:
        right = canonical_name(listing.name) == listing.name and open_mesh_id(listing.name) == listing.mesh
    except ValueError:
        right = False
    if not right:
        raise WireError("the name is not that of the mesh")


def _size_bytes(text: str) -> int:
    try:
        return len(text.encode("utf-8"))
    except UnicodeEncodeError:
        raise WireError("half a surrogate pair is no text") from None


# --- shapes to JSON and back ------------------------------------------------------------------------------------------


def _packed(value: Any) -> dict[str, Any]:
    """Members in the order of their declaration; those that equal their default are left out."""
    plain = {}
    for item in dataclasses.fields(value):
        given = getattr(value, item.name)
        if "kind" in item.metadata and (item.default is MISSING or given != item.default):
            plain[item.name] = item.metadata["kind"].pack(given)
    return plain


def _unpacked(shape: type[T], plain: Any) -> T:
    if not isinstance(plain, Mapping):
        raise WireError(f"{shape.__name__} is not an object")
    found: dict[str, Any] = {}
    for item in dataclasses.fields(shape):  # type: ignore[arg-type]  # every shape of this module is a dataclass
        if "kind" not in item.metadata:
            continue
        if item.name in plain:
            found[item.name] = item.metadata["kind"].unpack(plain[item.name], 0)
        elif item.default is MISSING:
            raise WireError(f"{shape.__name__} lacks {item.name}")
    return shape(**found)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a member twice")
    return found


def _no_number(_: str) -> Any:
    raise ValueError("not a number")
