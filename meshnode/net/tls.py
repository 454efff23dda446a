"""TLS 1.3 as meshnode uses it: what is proven is a key, never a name.

Every node presents a self-signed certificate around its Ed25519 key (RFC 8410). Its other contents are the same for
all nodes and nobody reads them: the handshake proves the possession of the key (CertificateVerify, RFC 8446, 4.4.3),
and the key is the NodeId.
"""

from __future__ import annotations

import datetime
from typing import Any

from aioquic.tls import hkdf_expand_label
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from meshnode.identity import Identity, NodeId

_NAME = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "meshnode")])
_NOT_BEFORE = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
_NOT_AFTER = datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)
"""No well-defined end (RFC 5280, 4.1.2.5): the clock of a node says nothing about its key."""


def certificate(identity: Identity) -> x509.Certificate:
    """The self-signed certificate that carries the key of `identity`."""
    key = identity.private_key
    builder = x509.CertificateBuilder(_NAME, _NAME, key.public_key(), 1, _NOT_BEFORE, _NOT_AFTER)
    return builder.sign(key, None)


def node_id(presented: x509.Certificate | None) -> NodeId | None:
    """The key in a certificate; None for no certificate and for any other kind of key."""
    if presented is None:
        return None
    try:
        key: Any = presented.public_key()
    except (ValueError, UnsupportedAlgorithm):
        return None
    return NodeId(key.public_bytes(Encoding.Raw, PublicFormat.Raw)) if isinstance(key, Ed25519PublicKey) else None


def exported(algorithm: hashes.HashAlgorithm, exporter_secret: bytes, label: str, length: int) -> bytes:
    """`length` bytes of keying material for `label`, with an empty context (RFC 8446, 7.5)."""
    empty = hashes.Hash(algorithm).finalize()
    secret = hkdf_expand_label(algorithm, exporter_secret, label.encode("ascii"), empty, algorithm.digest_size)
    return hkdf_expand_label(algorithm, secret, b"exporter", empty, length)
