"""Vectors of pairing: SPAKE2 messages, the key and the proofs that follow, with scalars made from names."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from typing import Any

from cases_signed import ALICE, BOB, CAROL
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from spake2 import SPAKE2_Symmetric

EXPORTER = bytes(range(32))
ORDER = (1 << 252) + 27742317777372353535851937790883648493


@dataclass
class Side:
    """One end of an exchange."""

    node: bytes
    peer: bytes
    code: str
    scalar: int
    exporter: bytes = EXPORTER

    def __post_init__(self) -> None:
        self._spake = SPAKE2_Symmetric(self.code.encode(), idSymmetric=b"meshnode-pair-1")
        self._spake.start()
        self._spake.xy_scalar = self.scalar
        self._spake.xy_elem = self._spake.params.group.Base.scalarmult(self.scalar)
        self._spake.compute_outbound_message()
        self.message: bytes = self._spake.side + self._spake.outbound_message
        self.secret = self.key = b""

    def finish(self, message: bytes) -> None:
        """Take the other side's message."""
        self.secret = self._spake.finish(message)
        context = b"meshnode/1 pair\0" + b"".join(sorted((self.node, self.peer))) + self.exporter
        self.key = HKDF(SHA256(), 32, salt=None, info=context).derive(self.secret)

    def proof(self, node: bytes | None = None) -> bytes:
        """That `node`, this one unless said otherwise, knows the key."""
        return hmac.digest(self.key, b"confirm\0" + (self.node if node is None else node), "sha256")


def scalar(name: str) -> int:
    """A scalar made from a name."""
    return int.from_bytes(hashlib.sha512(b"meshnode pairing " + name.encode()).digest(), "big") % ORDER


def exchange(code: str, host_code: str | None = None, **guest_changes: Any) -> tuple[Side, Side]:
    """Host and guest after their offers."""
    host = Side(ALICE.public, BOB.public, host_code or code, scalar(f"host {code}"))
    guest = Side(**{"node": BOB.public, "peer": ALICE.public, "code": code, "scalar": scalar("guest"), **guest_changes})
    host.finish(guest.message)
    guest.finish(host.message)
    return host, guest


def files() -> dict[str, dict[str, Any]]:
    """The file of pairing."""
    about = "what a host that shows `pairing_code` makes of a guest's message and proof: 08-pairing.md"
    return {"pairing.json": {"about": about, "valid": _valid(), "invalid": _invalid()}}


def _told(comment: str, host: Side, message: bytes, proof: bytes) -> dict[str, Any]:
    return {
        "comment": comment,
        "pairing_code": host.code,
        "host": host.node.hex(),
        "guest": host.peer.hex(),
        "exporter": host.exporter.hex(),
        "host_scalar": host.scalar.to_bytes(32, "little").hex(),
        "guest_message": message.hex(),
        "guest_proof": proof.hex(),
    }


def _valid() -> list[dict[str, Any]]:
    found = []
    for code in ("7-amber-falcon", "1-abacus-zodiac", "99-kiwi-kiwi", "42-zenith-acorn", "10-magnet-tulip"):
        host, guest = exchange(code)
        assert host.key == guest.key
        case = _told("two that know the code", host, guest.message, guest.proof())
        case |= {"host_message": host.message.hex(), "secret": host.secret.hex(), "key": host.key.hex()}
        found.append({**case, "host_proof": host.proof().hex()})
    return found


def _invalid() -> list[dict[str, Any]]:
    code = "7-amber-falcon"
    found = []
    for comment, (host, guest) in (
        ("the guest has another word", exchange("7-amber-feast", host_code=code)),
        ("the guest has the words in another order", exchange("7-falcon-amber", host_code=code)),
        ("the guest has another number", exchange("8-amber-falcon", host_code=code)),
        ("the guest has another connection", exchange(code, exporter=bytes(32))),
        ("the guest means another host", exchange(code, peer=CAROL.public)),
        ("the guest is another node", exchange(code, node=CAROL.public)),
    ):
        found.append({**_told(comment, host, guest.message, guest.proof()), "code": "pairing_failed"})
    host, guest = exchange(code)
    right = guest.proof()
    for comment, proof in (
        ("the host's own proof", host.proof()),
        ("a proof with one bit changed", bytes((right[0] ^ 1,)) + right[1:]),
        ("a proof of zeros", bytes(32)),
    ):
        found.append({**_told(comment, host, guest.message, proof), "code": "pairing_failed"})
    for comment, message in (
        ("the host's own message", host.message),
        ("a message of another side", b"A" + guest.message[1:]),
        ("a message without its side", guest.message[1:]),
        ("a message cut short", guest.message[:-1]),
        ("no point of the curve", b"S" + (2).to_bytes(32, "little")),
        ("the neutral element", b"S" + (1).to_bytes(32, "little")),
        ("a point of order two", b"S" + ((1 << 255) - 20).to_bytes(32, "little")),
        ("a coordinate above the field", b"S" + b"\xff" * 32),
    ):
        found.append({**_told(comment, host, message, right), "code": "protocol_error"})
    return found
