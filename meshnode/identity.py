"""Who this node is: an Ed25519 key on disk, and the NodeId that follows from it.

The key file is PKCS #8 in PEM (RFC 8410), mode 0600, written and synced before the key is used for the first time,
so that a crash leaves either no identity or a whole one.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import NewType

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from meshnode import durable
from meshnode.errors import StateError

NodeId = NewType("NodeId", bytes)
"""The 32 bytes of the public key."""

SHORT_DIGITS = 10
MAX_KEY_FILE_BYTES = 4096


def short(node_id: NodeId) -> str:
    """The form that people see: the first ten hex digits."""
    return node_id.hex()[:SHORT_DIGITS]


@dataclass(frozen=True, slots=True)
class Identity:
    """The key of this node. The private half leaves this object only for the TLS handshake."""

    _key: Ed25519PrivateKey

    @property
    def node_id(self) -> NodeId:
        """The public key."""
        return NodeId(self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))

    @property
    def private_key(self) -> Ed25519PrivateKey:
        """The key itself, for the TLS handshake alone: everything else signs with `sign`."""
        return self._key

    def sign(self, message: bytes) -> bytes:
        """A 64-byte signature (RFC 8032)."""
        return self._key.sign(message)

    def __repr__(self) -> str:
        return f"Identity({short(self.node_id)})"


def ephemeral() -> Identity:
    """A key for one purpose, never written anywhere."""
    return Identity(Ed25519PrivateKey.generate())


def verify(node_id: bytes, signature: bytes, message: bytes) -> bool:
    """Whether `node_id` signed `message`. False for anything malformed."""
    try:
        Ed25519PublicKey.from_public_bytes(node_id).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def load_or_create(file: Path) -> Identity:
    """The identity kept in `file`, made on first use.

    Raises HomeNotWritable when it cannot be written, StateError for a file that is no key or that others may read.
    """
    try:
        return load(file)
    except FileNotFoundError:
        return create(file)


def load(file: Path) -> Identity:
    """The identity kept in `file`. Raises FileNotFoundError, or StateError as `load_or_create`."""
    try:
        with file.open("rb") as opened:
            mode = stat.S_IMODE(os.fstat(opened.fileno()).st_mode)
            text = opened.read(MAX_KEY_FILE_BYTES)
    except FileNotFoundError:
        raise
    except OSError as reason:
        raise StateError(f"{file} cannot be read: {reason.strerror}") from None
    if mode & 0o077:
        raise StateError(f"others can read the key {file}", fix=f"chmod 600 {file}")
    try:
        key = load_pem_private_key(text, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise StateError(
            f"{file} is not the key of a node",
            fix="restore it from a backup, or remove it: the node then gets a new identity",
        )
    return Identity(key)


def create(file: Path) -> Identity:
    """A new identity, kept in `file` in place of what is there. Raises HomeNotWritable."""
    key = Ed25519PrivateKey.generate()
    durable.write(file, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return Identity(key)
