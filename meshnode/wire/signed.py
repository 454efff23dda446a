"""Signed bytes: a payload in canonical form after the Ed25519 signature (RFC 8032) over it and its purpose.

    signature 64 | payload

The purpose is part of what is signed, so that no signature is ever good for something else. A reader checks the bytes
it received, never an encoding of its own. Keys stay outside: `Sign` and `Verify` are handed in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from meshnode.wire import schema
from meshnode.wire.values import WireError

Sign = Callable[[bytes], bytes]
"""Message to signature of 64 bytes."""
Verify = Callable[[bytes, bytes, bytes], bool]
"""Whether the key (32 bytes) made the signature of the message."""

SIGNATURE_BYTES = 64
KEY_BYTES = 32

T = TypeVar("T")


def purposed(purpose: str, payload: bytes) -> bytes:
    """The bytes that are signed."""
    return b"meshnode/1 " + purpose.encode("ascii") + b"\0" + payload


def seal(purpose: str, value: Any, sign: Sign) -> bytes:
    """Signature and payload of a shape."""
    payload = schema.write(value)
    return sign(purposed(purpose, payload)) + payload


def payload_of(signed: bytes) -> bytes:
    """The payload, unchecked. Raises WireError when there is none."""
    if len(signed) <= SIGNATURE_BYTES:
        raise WireError("too short to be signed")
    return signed[SIGNATURE_BYTES:]


def open_payload(shape: type[T], signed: bytes, *, limit_bytes: int) -> T:
    """The value of the payload; its signature has yet to be checked. Raises WireError."""
    return schema.read(shape, payload_of(signed), limit_bytes=limit_bytes)


def is_signed_by(key: bytes, purpose: str, signed: bytes, verify: Verify) -> bool:
    """Whether `key` signed these bytes for this purpose."""
    return verify(key, signed[:SIGNATURE_BYTES], purposed(purpose, signed[SIGNATURE_BYTES:]))
