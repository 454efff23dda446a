"""The numbers that two nodes must agree on. Generated from protocol/registry.toml; do not edit."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

VERSION: Final = 1
ALPN: Final = "meshnode/1"
INVITE_PREFIX: Final = "mn1"
OWNER_PREFIX: Final = "mo1"
MDNS_SERVICE: Final = "_meshnode._udp.local."
NOSTR_KIND: Final = 30078
NOSTR_TOPIC: Final = "meshnode"
NOSTR_VERSION_TOPIC: Final = "meshnode-v1"
PORT_API: Final = 9337
PORT_MESH: Final = 9337
PORT_CONSOLE: Final = 3131


class StreamType(IntEnum):
    """The first byte of a stream."""

    CONTROL = 0
    HTTP = 2
    RPC = 4
    BULK = 6
    PAIR = 8
    DHT = 10
    RELAY = 12
    PUNCH = 14
    INQUIRY = 16
    PAY = 18


class Role(IntEnum):
    """What a member may be."""

    MEMBER = 1
    CLIENT = 2


class MessageId(IntEnum):
    """The messages of the streams that carry frames."""

    HELLO = 0
    WELCOME = 2
    STATEMENTS = 4
    PROBE = 6
    PROBE_ACK = 8
    IHAVE = 10
    GRAFT = 12
    PRUNE = 14
    DIGEST = 16
    BUCKET = 18
    WANT = 20
    JOIN_OVERLAY = 22
    FORWARD_JOIN = 24
    NEIGHBOUR = 26
    NEIGHBOUR_REPLY = 28
    SHUFFLE = 30
    SHUFFLE_REPLY = 32
    PART = 34
    SUBSCRIBE = 36
    VIEW = 38
    MEASURE = 40
    MEASURED = 42
    RENEW = 44
    RENEWED = 46
    PAIR_OFFER = 64
    PAIR_CONFIRM = 66
    PAIR_ACCEPT = 68
    LEASE_ASK = 80
    LEASE_GRANTED = 82
    LEASE_REFUSED = 84
    LEASE_WEIGHTS = 86
    LEASE_READY = 88
    LEASE_LEAVING = 90
    LEASE_END = 92
    INQUIRY = 96
    PROSPECT = 98
    DHT_FIND = 100
    DHT_FOUND = 102
    DHT_STORE = 104
    DHT_STORED = 106
    RELAY_RESERVE = 108
    RELAY_RESERVED = 110
    RELAY_CONNECT = 112
    RELAY_FLOW = 114
    RELAY_REFUSED = 116
    RELAY_END = 118
    PUNCH_OFFER = 120
    PUNCH_ANSWER = 122
    PUNCH_DONE = 124
    PAY_HTTP = 126
    PAY_ASK = 128
    PAY_QUOTE = 130
    PAY_VOUCHER = 132
    PAY_DUE = 134
    PAY_RECEIPT = 136
    PAY_REFUSED = 138
    PAY_TERMS = 140
    PAY_STATE = 142
    PAY_STAND = 144
    PAY_OPEN = 146
    PAY_OPENED = 148
    PAY_REFUND = 150
    PAY_REFUNDED = 152


class StatementKind(IntEnum):
    """What a signed statement says."""

    IDENTITY = 0
    DYNAMIC = 2
    DEMAND = 4
    ACCUSE = 6
    LEAVE = 8


class RpcKind(IntEnum):
    """What an `rpc` stream is for."""

    LEASE = 0
    TUNNEL = 2
    PUSH = 4


class LeaseCode(IntEnum):
    """Why a lease is refused or ends."""

    RELEASED = 0
    NOT_LENT = 1
    OTHER_VERSION = 2
    NO_MEMORY = 3
    NO_ENGINE = 4
    TOO_MANY = 5
    TOO_OFTEN = 6
    LEAVING = 7
    BAD_ASK = 8
    TAKEN = 9
    CRASHED = 10
    IDLE = 11
    TOO_SLOW = 12
    NO_WEIGHTS = 13


class BulkKind(IntEnum):
    """What a `bulk` stream asks for."""

    MANIFEST = 0
    CHUNKS = 2
    HAVE = 4


class RelayCode(IntEnum):
    """Why a node does not carry a flow, or carries it no more."""

    DONE = 0
    NOT_RELAYING = 1
    NOT_CONNECTED = 2
    TOO_MANY = 3
    QUOTA = 4
    REFUSED = 5
    IDLE = 6
    LEAVING = 7


class PayCode(IntEnum):
    """Why a payment, or what is asked about one, is refused."""

    PRICE_ABOVE_CEILING = 0
    CAP_REACHED = 1
    CHANNEL_BUSY = 2
    CUM_MISMATCH = 3
    INSUFFICIENT_BALANCE = 4
    WITHDRAW_PENDING = 5
    QUOTE_EXPIRED = 6
    BAD_SIGNATURE = 7
    UNSUPPORTED_NETWORK = 8
    UNKNOWN_CHANNEL = 9
    NOT_SELLING = 10
    TOO_SMALL = 11
    TOO_OFTEN = 12
    NO_VOUCHER = 13
    CHAIN_DOWN = 14
    BAD_ASK = 15
    CHAIN_REFUSED = 16


class Nat(IntEnum):
    """What a node knows of the address translation before it."""

    UNKNOWN = 0
    NONE = 1
    CONE = 2
    SYMMETRIC = 3


class Close(IntEnum):
    """Application close codes of a connection (RFC 9000, 20.2)."""

    DONE = 0x100
    DUPLICATE = 0x101
    WRONG_PEER = 0x102
    NO_CERTIFICATE = 0x103
    BAD_VERSION = 0x104
    PROTOCOL_ERROR = 0x105
    FLOOD = 0x106
    NOT_ADMITTED = 0x110
    INVITE_INVALID = 0x111
    INVITE_EXPIRED = 0x112
    INVITE_REVOKED = 0x113
    INVITE_USED = 0x114
    CERTIFICATE_EXPIRED = 0x115
    WRONG_MESH = 0x116
    ROLE_REFUSED = 0x117
    ADMISSION_TIMEOUT = 0x118
    BANNED = 0x119
    SUPERSEDED = 0x11A
    NO_ROOM = 0x11B
    PAIRING_FAILED = 0x120
    PAIRING_CLOSED = 0x121
    INTERNAL = 0x1FF


class Reset(IntEnum):
    """Application codes with which one stream is reset."""

    CANCELLED = 0x10
    REFUSED = 0x11
    OVERLOAD = 0x12
    MALFORMED = 0x13
    UNKNOWN_TYPE = 0x14
    UPSTREAM_BROKEN = 0x15
    TOO_SLOW = 0x16


MAY_OPEN: Final[dict[StreamType, frozenset[Role]]] = {
    StreamType.CONTROL: frozenset({Role.MEMBER, Role.CLIENT}),
    StreamType.HTTP: frozenset({Role.MEMBER, Role.CLIENT}),
    StreamType.RPC: frozenset({Role.MEMBER}),
    StreamType.BULK: frozenset({Role.MEMBER}),
    StreamType.PAIR: frozenset(),
    StreamType.DHT: frozenset({Role.MEMBER, Role.CLIENT}),
    StreamType.RELAY: frozenset({Role.MEMBER, Role.CLIENT}),
    StreamType.PUNCH: frozenset({Role.MEMBER, Role.CLIENT}),
    StreamType.INQUIRY: frozenset(),
    StreamType.PAY: frozenset({Role.MEMBER, Role.CLIENT}),
}
"""Which roles may open a stream of each type."""
BEFORE_ADMISSION: Final = frozenset({StreamType.CONTROL, StreamType.PAIR, StreamType.INQUIRY})

LEASE_TEXTS: Final[dict[int, str]] = {
    0: "the host needs it no more",
    1: "this node does not lend its memory",
    2: "the engines of the two nodes do not understand each other",
    3: "there is not enough free memory",
    4: "the engine of this node is not ready",
    5: "this node works for as many splits as it may",
    6: "the host asks too often",
    7: "the node is leaving",
    8: "what is asked for makes no sense",
    9: "another host has a lease for this plan",
    10: "the rpc-server stopped",
    11: "no tunnel came",
    12: "it took too long",
    13: "the weights cannot be had",
}
RELAY_TEXTS: Final[dict[int, str]] = {
    0: "the flow is needed no more",
    1: "this node relays for nobody",
    2: "the peer that is meant is not connected here",
    3: "as many flows as this node carries are open",
    4: "the peer has used up what this node carries for it",
    5: "the peer that is meant does not want it",
    6: "nothing came for too long",
    7: "the relay is leaving",
}
PAY_TEXTS: Final[dict[int, str]] = {
    0: "the price is above the ceiling of who pays",
    1: "who pays may spend no more",
    2: "the channel is in use as often as it may be",
    3: "the two ends do not agree on the amount or the count of tokens",
    4: "the channel does not hold as much",
    5: "who pays is withdrawing from the channel",
    6: "the quote is over",
    7: "the signature is wrong",
    8: "this node is not paid over that chain, contract or token",
    9: "no such channel is known here",
    10: "this node sells nothing of the kind",
    11: "the amount is too small",
    12: "the peer asks too often",
    13: "no voucher came in time",
    14: "the chain cannot be reached or does not agree with itself",
    15: "what is asked makes no sense",
    16: "the chain would refuse or has refused the transaction",
}
CLOSE_TEXTS: Final[dict[int, str]] = {
    0x100: "the node is leaving",
    0x101: "another connection to the same peer is kept",
    0x102: "the peer is not the one that was meant",
    0x103: "the peer has proven no key",
    0x104: "no common version of the protocol",
    0x105: "a message breaks the rules",
    0x106: "too many messages",
    0x110: "not a member of this mesh",
    0x111: "the invite is malformed or its signature is wrong",
    0x112: "the invite has expired",
    0x113: "the invite has been revoked",
    0x114: "the invite has been used up",
    0x115: "the membership has expired",
    0x116: "the peer belongs to another mesh",
    0x117: "the role of this peer does not allow it",
    0x118: "no proof of membership came in time",
    0x119: "the peer has broken the rules lately",
    0x11A: "this key has been replaced by its owner",
    0x11B: "there is no room here for one more stranger",
    0x120: "the pairing code is wrong",
    0x121: "pairing is not open",
    0x1FF: "a fault of the node",
}
RESET_TEXTS: Final[dict[int, str]] = {
    0x10: "nobody waits for it any more",
    0x11: "not allowed",
    0x12: "too many streams",
    0x13: "the bytes break the rules of this stream",
    0x14: "no such type of stream",
    0x15: "what stood behind the stream broke",
    0x16: "nothing was read or written for too long",
}

LIMIT_FRAME_BYTES: Final = 65536
LIMIT_STREAM_HEADER_BYTES: Final = 4096
LIMIT_DATAGRAM_BYTES: Final = 1100
LIMIT_STATEMENT_BYTES: Final = 1200
LIMIT_CERTIFICATE_BYTES: Final = 700
LIMIT_INVITE_CHARS: Final = 900
LIMIT_ADDRESSES: Final = 8
LIMIT_NAME_CHARS: Final = 40
LIMIT_MODELS: Final = 16
LIMIT_MODEL_NAME_CHARS: Final = 64
LIMIT_DEVICES: Final = 16
LIMIT_MONITORS: Final = 16
LIMIT_NEIGHBOURS: Final = 16
LIMIT_DEMANDS: Final = 32
LIMIT_STATEMENTS_A_FRAME: Final = 48
LIMIT_IHAVE_IDS: Final = 4096
LIMIT_WANT_IDS: Final = 1024
LIMIT_SHUFFLE_PEERS: Final = 12
LIMIT_VIEW_STATEMENTS: Final = 64
LIMIT_CLOCK_SKEW_S: Final = 60
LIMIT_INCARNATION_JUMP: Final = 1000
LIMIT_INVITE_TTL_S: Final = 86400
LIMIT_INVITE_MAX_TTL_S: Final = 7776000
LIMIT_CERTIFICATE_TTL_S: Final = 7776000
LIMIT_ADMISSION_TIMEOUT_S: Final = 10
LIMIT_BAN_S: Final = 600
LIMIT_TOMBSTONE_S: Final = 600
LIMIT_LINKS: Final = 256
LIMIT_STREAMS_A_LINK: Final = 320
LIMIT_HTTP_STREAMS: Final = 256
LIMIT_HTTP_HEAD_BYTES: Final = 16384
LIMIT_MEMORY_BYTES_MAX: Final = 1125899906842624
LIMIT_CLAIMS: Final = 4
LIMIT_PLAN_WORKERS: Final = 16
LIMIT_WEIGHTS: Final = 16
LIMIT_LEASE_TEXT_CHARS: Final = 200
LIMIT_LEASE_FRAME_BYTES: Final = 4096
LIMIT_BULK_CHUNKS: Final = 64
LIMIT_BULK_STREAMS: Final = 8
LIMIT_PROSPECT_STATEMENTS: Final = 32
LIMIT_DHT_PEERS: Final = 20
LIMIT_DHT_RECORDS: Final = 16
LIMIT_DHT_RECORD_BYTES: Final = 600
LIMIT_RELAY_FLOWS: Final = 64
LIMIT_CANDIDATES: Final = 16
LIMIT_PUBLIC_IDENTITIES_A_PREFIX: Final = 4
LIMIT_PUBLIC_CERTIFICATE_TTL_S: Final = 1209600
LIMIT_LISTING_BYTES: Final = 16384
LIMIT_LISTING_TTL_S: Final = 180
LIMIT_LISTING_WORK_BITS: Final = 16
LIMIT_LISTING_ENTRIES: Final = 4
LIMIT_LISTING_MODELS: Final = 32
LIMIT_LISTING_WANTED: Final = 16
LIMIT_OWNER_BYTES: Final = 240
LIMIT_OWNER_TTL_S: Final = 31536000
LIMIT_PAY_HTTP_BYTES: Final = 60000
LIMIT_PAY_FRAME_BYTES: Final = 4096
LIMIT_PAY_TEXT_CHARS: Final = 200
LIMIT_PAY_AHEAD_TOKENS: Final = 256
LIMIT_PAY_CREDIT_TOKENS: Final = 64
LIMIT_PAY_STALL_S: Final = 20
LIMIT_MONEY_MICROS: Final = 1000000000000000
LIMIT_PRICE_MICROS: Final = 1000000000000
LIMIT_QUOTE_BYTES: Final = 800
LIMIT_QUOTE_TTL_S: Final = 60
LIMIT_RECEIPT_BYTES: Final = 2048
LIMIT_WITHDRAW_DELAY_MIN_S: Final = 900
LIMIT_WITHDRAW_DELAY_MAX_S: Final = 2592000
