"""One entry point for every decoder of what peers send: bytes in; a value, or the refusal that is meant for bad ones.

Anything else that happens is a finding. Each entry point also asks for what must hold of what it accepted. They are
called by test_decoders.py (kept inputs and seeded mutations) and by guided.py (atheris, for minutes or hours).
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from itertools import groupby

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from meshnode.core.effects import Send
from meshnode.core.events import PeerUp, Received, TimerFired
from meshnode.core.membership import TIMER, Membership
from meshnode.discovery.pairing import PairingRefused, parse_code
from meshnode.identity import Identity, verify
from meshnode.mesh.control import datagram_of, message_in
from meshnode.mesh.tunnel_request import END_OF_HEAD, Refusal, judge
from meshnode.models import manifest as manifests
from meshnode.rpc.codec import Unpacker
from meshnode.wire import certificates, ggml_rpc, invites, payments, quotes, receipts, statements, weights
from meshnode.wire.address import Address
from meshnode.wire.frames import HEADER_BYTES, FrameReader, decode_stream_header, encode_frame, encode_stream_header
from meshnode.wire.messages import decode_message, encode_message, message_id
from meshnode.wire.registry import LIMIT_FRAME_BYTES, BulkKind, Close, Role
from meshnode.wire.tunnel_blocks import BlockReader, PushReader, push_head
from meshnode.wire.values import WireError, decode, encode

MESH = Identity(Ed25519PrivateKey.from_private_bytes(b"\1" * 32)).node_id
ADMITTED = frozenset({("POST", "/v1/chat/completions"), ("POST", "/tokenize")})
NEIGHBOURS = (b"\2" * 32, b"\3" * 32)
MOST_BYTES = 8192
REFUSALS = {Close.PROTOCOL_ERROR, Close.NOT_ADMITTED, Close.WRONG_MESH, Close.CERTIFICATE_EXPIRED, Close.INVITE_INVALID}


def value(data: bytes) -> None:
    """Whatever is accepted has one form only."""
    found = decode(data, limit_bytes=LIMIT_FRAME_BYTES)
    assert encode(found) == data


def address(data: bytes) -> None:
    """Packed addresses, or texts; each form leads back to the same."""
    try:
        found = Address.from_bytes(data)
    except ValueError:
        try:
            found = Address.parse(data.decode("utf-8", "replace"))
        except ValueError as reason:
            raise WireError(str(reason)) from None
    else:
        assert found.to_bytes() == data
    assert Address.parse(str(found)) == found


def frames(data: bytes) -> None:
    """The first byte says how the rest is cut into pieces: the pieces make no difference."""
    size, rest = 1 + data[0] if data else 1, data[1:]
    pieces, whole = FrameReader(), FrameReader()
    found: list[tuple[int, bytes]] = []
    try:
        for at in range(0, len(rest), size):
            found += pieces.feed(rest[at : at + size])
    finally:
        expected: list[tuple[int, bytes]] = []
        try:
            expected += whole.feed(rest)
        except WireError:
            pass
        else:
            assert expected == found
            assert pieces.waiting_bytes == whole.waiting_bytes
            again = b"".join(encode_frame(number, body) for number, body in found)
            assert rest == again + rest[len(again) :]


def stream_header(data: bytes) -> None:
    """Five bytes, no more and no fewer."""
    kind, size = decode_stream_header(data)
    assert encode_stream_header(kind, bytes(size))[:HEADER_BYTES] == data


def message(data: bytes) -> None:
    """Two bytes of id, then the body."""
    number = int.from_bytes(data[:2], "big")
    found = decode_message(number, data[2:])
    if found is None:
        assert number % 2
        return
    assert message_id(found) == number
    assert decode_message(number, encode_message(found)) == found


def statement(data: bytes) -> None:
    """Read, then ask for the signature."""
    found = statements.read(data)
    assert found.signed == data
    statements.is_genuine(found, verify)


def certificate(data: bytes) -> None:
    """Against the mesh and node that it claims itself, so that the chain is looked at."""
    claimed = certificates.read(data)
    found = certificates.check(data, mesh=claimed.mesh, node=claimed.node, now_s=claimed.not_after, verify=verify)
    assert found == claimed
    assert len(certificates.replaced_keys(data)) < certificates.MAX_CHAIN


def certificate_chain(data: bytes) -> None:
    """With every signature accepted: nothing but the rules of chains stands in the way."""
    claimed = certificates.read(data)
    certificates.check(data, mesh=claimed.mesh, node=claimed.node, now_s=claimed.not_after, verify=lambda *_: True)
    assert claimed.node not in certificates.replaced_keys(data)[:1]


def invite(data: bytes) -> None:
    """As bytes, as they come in a HELLO, and as the text that a person pastes."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        text = ""
    try:
        signed = invites.to_bytes(text)
    except WireError as error:
        assert error.code is Close.INVITE_INVALID
        signed = data
    invites.read(signed, verify)


def datagram(data: bytes) -> None:
    """A message as it comes in a QUIC DATAGRAM."""
    found = message_in(data)
    assert found is None or message_in(datagram_of(found)) == found


def membership(data: bytes) -> None:
    """Frames of a neighbour, one a second, to the membership machine; every signature counts as good.

    The machine never raises, and whatever it sends can be encoded.
    """
    machine = Membership(
        node=MESH,
        incarnation=1,
        sign=lambda message: bytes(64),
        verify=lambda *_: True,
        admit=lambda _: Role.MEMBER,
        random=random.Random(1),
        now=0.0,
    )
    effects = machine.handle(PeerUp(NEIGHBOURS[0], 0.01), 0.0) + machine.handle(PeerUp(NEIGHBOURS[1], None), 0.1)
    now, accepted = 1.0, False
    for number, body in FrameReader().feed(data[:MOST_BYTES]):
        found = decode_message(number, body)
        effects += machine.handle(Received(NEIGHBOURS[int(now) % 2], found), now)
        effects += machine.handle(TimerFired(TIMER), now + 0.5)
        now, accepted = now + 1, True
    machine.snapshot()
    for effect in effects:
        if isinstance(effect, Send):
            assert len(encode_message(effect.message)) <= LIMIT_FRAME_BYTES - 2
    if not accepted:
        raise WireError("no frame")


def http_head(data: bytes) -> None:
    """The head of a request that a peer sends through a tunnel."""
    try:
        head = judge(data + END_OF_HEAD, begun=b"", admitted=ADMITTED)
    except Refusal as refusal:
        assert 400 <= refusal.status < 500
        assert json.loads(refusal.body())["error"]["message"]
        raise WireError("refused") from None
    assert (head.method, head.path) in ADMITTED
    assert data.startswith(f"{head.method} {head.path} HTTP/1.1\r\n".encode())
    assert head.request_id.isascii()


def pairing_code(data: bytes) -> None:
    """What a person types at a machine that is to be paired."""
    text = data.decode("utf-8", "replace")
    try:
        code = parse_code(text)
    except PairingRefused:
        raise WireError("refused") from None
    assert parse_code(str(code)) == code


def rpc_requests(data: bytes) -> None:
    """The first byte says which commands are treated, the second how the rest is cut; neither loses a byte."""
    treated = [each for each in ggml_rpc.Command if data[:1] and data[0] >> each % 8 & 1]
    size, rest = 1 + data[1] if len(data) > 1 else 1, data[2:]
    cutter, whole = ggml_rpc.RequestCutter(treated), ggml_rpc.RequestCutter(treated)
    cuts = [cut for at in range(0, len(rest), size) for cut in cutter.feed(rest[at : at + size])]
    expected = whole.feed(rest)
    joined = b"".join(piece for _, piece in cuts)
    assert rest.startswith(joined) and b"".join(piece for _, piece in expected) == joined
    assert cutter.frames == whole.frames
    for kind, frame in cuts:
        if kind < 0:
            continue
        ggml_rpc.reply_size_of(kind, frame)
        if kind == ggml_rpc.Command.GET_ALLOC_SIZE:
            ggml_rpc.allocation_key(frame)
            ggml_rpc.plain_size_of(frame)
        elif kind == ggml_rpc.Command.TUNNEL_PUSH:
            number, place, _, get = ggml_rpc.push_of(frame)
            assert ggml_rpc.push(number, place, get) == frame
        elif kind == ggml_rpc.Command.TUNNEL_RECV:
            assert ggml_rpc.receive(*ggml_rpc.receive_of(frame)) == frame
        elif kind == ggml_rpc.Command.TUNNEL_REF:
            assert ggml_rpc.reference(*ggml_rpc.reference_of(frame)) == frame


def rpc_replies(data: bytes) -> None:
    """The first byte says how the rest is cut; one reply of each size up to 31 is expected, again and again."""
    size, rest = 1 + data[0] if data else 1, data[1:]
    cutter: ggml_rpc.ReplyCutter[int] = ggml_rpc.ReplyCutter()
    for number in range(len(rest)):
        cutter.expect(number, number % 32)
    found = [each for at in range(0, len(rest), size) for each in cutter.feed(rest[at : at + size])]
    assert rest.startswith(b"".join(piece for _, piece, _ in found))
    assert [number for number, _, last in found if last] == list(range(len(rest) - len(cutter)))


def tunnel_blocks(data: bytes) -> None:
    """The first byte says how the rest is cut: it makes no difference, but for how large bodies pass."""
    size, rest = 1 + data[0] if data else 1, data[1:]
    pieces, whole = BlockReader(), BlockReader()
    found = [block for at in range(0, len(rest), size) for block in pieces.feed(rest[at : at + size])]

    def joined(blocks: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
        runs = groupby(blocks, lambda each: each[0])
        return [(kind, b"".join(body for _, body in run)) for kind, run in runs]

    assert joined(whole.feed(rest)) == joined(found)
    assert pieces.waiting_bytes == whole.waiting_bytes


def tunnel_packed(data: bytes) -> None:
    """Bodies of packed blocks, each after two bytes of length."""
    unpacker = Unpacker()
    while data:
        size = int.from_bytes(data[:2], "big")
        body, data = data[2 : 2 + size], data[2 + size :]
        if len(body) < 5:
            raise WireError("too short for a block")
        assert len(unpacker.unpack(body)) <= Unpacker.plain_bytes(body)


def tunnel_pushes(data: bytes) -> None:
    """The first byte says how the rest is cut into pieces: the pieces make no difference."""
    size, rest = 1 + data[0] if data else 1, data[1:]
    pieces, whole = PushReader(), PushReader()
    found = [push for at in range(0, len(rest), size) for push in pieces.feed(rest[at : at + size])]
    assert whole.feed(rest) == found
    again = b"".join(push_head(number, flags, len(body)) + body for number, flags, body in found)
    assert rest.startswith(again) and whole.is_between == (rest == again)


def manifest(data: bytes) -> None:
    """What is accepted has one form, and its chunks are its files, byte for byte."""
    try:
        found = manifests.decode(data)
    except manifests.ManifestInvalid as reason:
        raise WireError(str(reason)) from None
    assert manifests.encode(found) == data
    ends = [0] * len(found.files)
    for chunk in map(found.chunk, range(found.chunk_count)):
        assert chunk.position == ends[chunk.file] and 0 < chunk.size_bytes <= manifests.CHUNK_BYTES
        ends[chunk.file] += chunk.size_bytes
    assert ends == [file.size_bytes for file in found.files]


def quote(data: bytes) -> None:
    """With every signature accepted: what is said has one form, and does not contradict itself."""
    claimed = quotes.read(data)
    found = quotes.read_genuine(data, node=claimed.node, verify=lambda *_: True)
    assert found == claimed == quotes.read(quotes.issue(found, lambda _: bytes(64)))
    assert found.every_tokens <= found.ahead_tokens


def receipt(data: bytes) -> None:
    """With every signature accepted: one form, and nothing charged beyond what the tokens cost."""
    found = receipts.read_genuine(data, lambda *_: True)
    assert receipts.read(receipts.write(found, lambda _: bytes(64))) == found
    most = receipts.most_micros(found.price_in, found.price_out, found.tokens_in, found.tokens_out)
    assert 0 <= found.charged_micros <= min(most, found.channel_charged_micros)


def paid_stream(data: bytes) -> None:
    """The first byte says which end sends, the second how the frames are cut; each is one that may come from there."""
    table = payments.FROM_PAYER if data[:1] and data[0] % 2 else payments.FROM_PROVIDER
    size, rest = 1 + data[1] if len(data) > 1 else 1, data[2:]
    reader, sent = FrameReader(), 0
    for at in range(0, len(rest), size):
        for number, body in reader.feed(rest[at : at + size]):
            if number not in table and number % 2 == 0:
                raise WireError("it has no place here")
            found = decode_message(number, body)
            if number in table:
                assert type(found) is table[number] and decode_message(number, encode_message(found)) == found
                sent += len(getattr(found, "data", b""))
    assert sent <= len(rest)


def bulk_opening(data: bytes) -> None:
    """The header of a stream that asks for weights."""
    found = weights.read_header(data)
    kind = BulkKind(found.kind)
    again = weights.open_header(kind, model=found.model, manifest=found.manifest, chunks=found.chunks)
    assert weights.read_header(again) == found


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target
    for target in (
        value,
        address,
        frames,
        stream_header,
        message,
        statement,
        certificate,
        certificate_chain,
        invite,
        datagram,
        membership,
        http_head,
        pairing_code,
        rpc_requests,
        rpc_replies,
        tunnel_blocks,
        tunnel_packed,
        tunnel_pushes,
        manifest,
        bulk_opening,
        quote,
        receipt,
        paid_stream,
    )
}


def run(name: str, data: bytes) -> bool:
    """Whether the decoder accepted the input. Any exception is a finding."""
    try:
        TARGETS[name](data)
    except WireError as error:
        assert error.code in REFUSALS
        return False
    return True
