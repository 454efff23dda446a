"""Vectors of vouchers: channel ids, the digests that are signed (EIP-712), and signatures (secp256k1, RFC 6979).

Hash and curve are written out once more, so that the vectors do not follow from the code they test. The keys are made
from names and are worth nothing.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Any

from cases_payments import CHAIN, HUB, TOKEN

P = 2**256 - 2**32 - 977
N = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
G = (
    0x79BE667EF9DCBBAC55A06295CE870B07029BFCDB2DCE28D959F2815B16F81798,
    0x483ADA7726A3C4655DA4FBFC0E1108A8FD17B448A68554199C47D08FFB10D4B8,
)
Point = tuple[int, int] | None
CODE = "protocol_error"


# --- Keccak-256, as before it became SHA-3 (FIPS 202 pads otherwise) ------------------------------------------------


def _rounds() -> list[int]:
    constants, state = [], 1
    for _ in range(24):
        constant = 0
        for bit in range(7):
            if state & 1:
                constant |= 1 << ((1 << bit) - 1)
            state = (state << 1) ^ (0x171 if state & 0x80 else 0)
        constants.append(constant)
    return constants


_ROUNDS = _rounds()
_MASK = (1 << 64) - 1


def _turned(word: int, by: int) -> int:
    return (word << by | word >> (64 - by)) & _MASK


def _permuted(lanes: list[list[int]]) -> list[list[int]]:
    for constant in _ROUNDS:
        columns = [lanes[x][0] ^ lanes[x][1] ^ lanes[x][2] ^ lanes[x][3] ^ lanes[x][4] for x in range(5)]
        for x in range(5):
            mixed = columns[x - 1] ^ _turned(columns[(x + 1) % 5], 1)
            lanes[x] = [lane ^ mixed for lane in lanes[x]]
        x, y, current = 1, 0, lanes[1][0]
        for step in range(24):
            x, y = y, (2 * x + 3 * y) % 5
            current, lanes[x][y] = lanes[x][y], _turned(current, (step + 1) * (step + 2) // 2 % 64)
        for y in range(5):
            row = [lanes[x][y] for x in range(5)]
            for x in range(5):
                lanes[x][y] = row[x] ^ (~row[(x + 1) % 5] & _MASK & row[(x + 2) % 5])
        lanes[0][0] ^= constant
    return lanes


def keccak(data: bytes) -> bytes:
    """Keccak-256."""
    rate = 136
    padded = bytearray(data + b"\1" + bytes(-(len(data) + 1) % rate))
    padded[-1] |= 0x80
    lanes = [[0] * 5 for _ in range(5)]
    for at in range(0, len(padded), rate):
        for place in range(rate // 8):
            lanes[place % 5][place // 5] ^= int.from_bytes(padded[at + 8 * place : at + 8 * place + 8], "little")
        lanes = _permuted(lanes)
    return b"".join(lanes[place % 5][place // 5].to_bytes(8, "little") for place in range(4))


# --- secp256k1 -------------------------------------------------------------------------------------------------------


def _sum(one: Point, other: Point) -> Point:
    if one is None or other is None:
        return one or other
    if one[0] == other[0] and (one[1] + other[1]) % P == 0:
        return None
    if one == other:
        slope = 3 * one[0] ** 2 * pow(2 * one[1], -1, P)
    else:
        slope = (other[1] - one[1]) * pow(other[0] - one[0], -1, P)
    x = (slope**2 - one[0] - other[0]) % P
    return x, (slope * (one[0] - x) - one[1]) % P


def _times(scalar: int, point: Point = G) -> tuple[int, int]:
    found: Point = None
    while scalar:
        found, point, scalar = _sum(found, point) if scalar & 1 else found, _sum(point, point), scalar >> 1
    assert found is not None
    return found


def _nonce(secret: int, digest: bytes) -> int:
    """RFC 6979, 3.2, for SHA-256; a first candidate out of range has never been seen."""
    seed = secret.to_bytes(32, "big") + (int.from_bytes(digest, "big") % N).to_bytes(32, "big")
    key, value = bytes(32), b"\1" * 32
    for mark in (b"\0", b"\1"):
        key = hmac.digest(key, value + mark + seed, "sha256")
        value = hmac.digest(key, value, "sha256")
    found = int.from_bytes(hmac.digest(key, value, "sha256"), "big")
    assert 0 < found < N
    return found


class EvmKey:
    """A secp256k1 key made from a name."""

    def __init__(self, name: str) -> None:
        self._secret = int.from_bytes(hashlib.sha256(b"meshnode vectors " + name.encode()).digest(), "big") % N
        x, y = _times(self._secret)
        self.address = keccak(x.to_bytes(32, "big") + y.to_bytes(32, "big"))[12:]

    def sign(self, digest: bytes, *, low: bool = True) -> bytes:
        """r, s, v; `low` False gives the twin that must be refused."""
        nonce = _nonce(self._secret, digest)
        x, y = _times(nonce)
        s = pow(nonce, -1, N) * (int.from_bytes(digest, "big") + x % N * self._secret) % N
        odd = y & 1
        if (s > N // 2) == low:
            s, odd = N - s, odd ^ 1
        return (x % N).to_bytes(32, "big") + s.to_bytes(32, "big") + bytes([27 + odd])


# --- what is signed ---------------------------------------------------------------------------------------------------


def _word(value: int | bytes) -> bytes:
    return value.to_bytes(32, "big") if isinstance(value, int) else value.rjust(32, b"\0")


def _struct(kind: str, *values: int | bytes) -> bytes:
    return keccak(keccak(kind.encode()) + b"".join(map(_word, values)))


def _typed(struct: bytes, chain: int, hub: bytes) -> bytes:
    domain = _struct(
        "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)",
        keccak(b"x402 Batch Settlement"),
        keccak(b"1"),
        chain,
        hub,
    )
    return keccak(b"\x19\x01" + domain + struct)


def channel_id(config: dict[str, Any], chain: int, hub: bytes) -> bytes:
    """The id of a channel."""
    kind = (
        "ChannelConfig(address payer,address payerAuthorizer,address receiver,address receiverAuthorizer,"
        "address token,uint40 withdrawDelay,bytes32 salt)"
    )
    return _typed(_struct(kind, *config.values()), chain, hub)


def voucher_digest(channel: bytes, cumulative: int, chain: int, hub: bytes) -> bytes:
    """What a voucher signs."""
    return _typed(_struct("Voucher(bytes32 channelId,uint128 maxClaimableAmount)", channel, cumulative), chain, hub)


def refund_digest(channel: bytes, nonce: int, amount: int, chain: int, hub: bytes) -> bytes:
    """What the question for a refund signs."""
    kind = "RefundRequest(bytes32 channelId,uint256 nonce,uint128 amount)"
    return _typed(_struct(kind, channel, nonce, amount), chain, hub)


PAYER, AUTHORIZER, RECEIVER, CLAIMER, THIEF = (EvmKey(f"evm {name}") for name in ("a", "b", "c", "d", "e"))
CONFIG: dict[str, Any] = {
    "payer": PAYER.address,
    "payer_authorizer": AUTHORIZER.address,
    "receiver": RECEIVER.address,
    "receiver_authorizer": CLAIMER.address,
    "token": TOKEN,
    "withdraw_delay_s": 86_400,
    "salt": bytes(range(32)),
}


def files() -> dict[str, dict[str, Any]]:
    """The file of this layer."""
    return {
        "vouchers.json": {
            "about": "vouchers (`cumulative`) and questions for a refund (`nonce`, `amount`) over a channel, signed by "
            "`payer_authorizer`: 15-payments.md",
            "valid": [_valid(comment, **case) for comment, case in _vouchers().items()],
            "invalid": _invalid(),
        }
    }


def _said(
    chain: int = CHAIN,
    hub: bytes = HUB,
    changed: dict[str, Any] | None = None,
    cumulative: int = 1_200,
    refund: tuple[int, int] | None = None,
) -> tuple[dict[str, Any], bytes, bytes]:
    """(what a case says, the channel id, the digest)."""
    config = CONFIG | (changed or {})
    channel = channel_id(config, chain, hub)
    said: dict[str, Any] = {"chain": chain, "hub": hub.hex()}
    said["config"] = {name: value.hex() if isinstance(value, bytes) else value for name, value in config.items()}
    if refund is None:
        return said | {"cumulative": cumulative}, channel, voucher_digest(channel, cumulative, chain, hub)
    return said | {"nonce": refund[0], "amount": refund[1]}, channel, refund_digest(channel, *refund, chain, hub)


def _valid(comment: str, signer: EvmKey = AUTHORIZER, **case: Any) -> dict[str, Any]:
    said, channel, digest = _said(**case)
    about = {"channel": channel.hex(), "digest": digest.hex(), "signature": signer.sign(digest).hex()}
    return {"comment": comment, **said, **about}


def _vouchers() -> dict[str, dict[str, Any]]:
    return {
        "a voucher": {},
        "the next one of that channel": {"cumulative": 1_214},
        "for nothing": {"cumulative": 0},
        "the greatest": {"cumulative": 10**15},
        "on another chain": {"chain": 8453},
        "in another contract": {"hub": b"\x55" * 20},
        "of another channel of the same two": {"changed": {"salt": bytes(32)}},
        "with the shortest delay": {"changed": {"withdraw_delay_s": 900}},
        "by a payer that signs for itself": {"changed": {"payer": AUTHORIZER.address}},
        "by another authorizer": {"changed": {"payer_authorizer": THIEF.address}, "signer": THIEF},
        "a refund": {"refund": (1, 500_000)},
        "all of it, with the greatest number": {"refund": ((1 << 53) - 1, 10**15)},
    }


def _invalid() -> list[dict[str, Any]]:
    said, channel, digest = _said()
    good = AUTHORIZER.sign(digest)
    wrong = {
        "signed by the payer, not by its authorizer": PAYER.sign(digest),
        "signed by the receiver": RECEIVER.sign(digest),
        "signed by anyone": THIEF.sign(digest),
        "for another sum": AUTHORIZER.sign(voucher_digest(channel, 1_199, CHAIN, HUB)),
        "for another channel": AUTHORIZER.sign(voucher_digest(bytes(32), 1_200, CHAIN, HUB)),
        "for another chain": AUTHORIZER.sign(voucher_digest(channel, 1_200, 8453, HUB)),
        "for another contract": AUTHORIZER.sign(voucher_digest(channel, 1_200, CHAIN, b"\x55" * 20)),
        "signed as a refund": AUTHORIZER.sign(refund_digest(channel, 1, 1_200, CHAIN, HUB)),
        "its twin, with s in the upper half": AUTHORIZER.sign(digest, low=False),
        "v of 0 or 1": good[:64] + bytes([good[64] - 27]),
        "the other v": good[:64] + bytes([55 - good[64]]),
        "v of 29": good[:64] + b"\x1d",
        "64 bytes": good[:64],
        "66 bytes": good + b"\0",
        "r of 0": bytes(32) + good[32:],
        "r of the order of the group": N.to_bytes(32, "big") + good[32:],
        "s of 0": good[:32] + bytes(32) + good[64:],
        "s of the order of the group": good[:32] + N.to_bytes(32, "big") + good[64:],
        "zeros": bytes(65),
        "one bit of r changed": bytes([good[0] ^ 1]) + good[1:],
    }
    found = [{"comment": comment, **said, "signature": made.hex(), "code": CODE} for comment, made in wrong.items()]
    refund, _, asked = _said(refund=(1, 500_000))
    more = {
        "a refund that the receiver signs": CLAIMER.sign(asked),
        "a refund with another number": AUTHORIZER.sign(refund_digest(channel, 2, 500_000, CHAIN, HUB)),
        "a voucher in place of a refund": good,
    }
    found += [{"comment": comment, **refund, "signature": made.hex(), "code": CODE} for comment, made in more.items()]
    return found
