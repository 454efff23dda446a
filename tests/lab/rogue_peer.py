"""A peer that keeps to no rules: a real endpoint with a real key, admitted with a real invite, and then bare bytes.

It lives in the test's own process and talks to a node in another one, so that nothing is shared but the wire:

    async with rogue(folder) as peer:
        await peer.join(token)                           # HELLO and WELCOME as by the book
        peer.open(StreamType.HTTP, b"GET / HTTP/1.1...")  # and from here on anything
        code = await peer.was_closed()
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from meshnode.identity import Identity, verify
from meshnode.mesh.control import datagram_of, frame_of
from meshnode.mesh.session import Session, greet
from meshnode.mesh.vault import Vault
from meshnode.net.endpoint import Endpoint, EndpointOptions
from meshnode.net.link import Link
from meshnode.net.stream import MeshStream, StreamReset
from meshnode.wire import invites, statements
from meshnode.wire.frames import FrameReader, encode_frame, encode_stream_header
from meshnode.wire.invites import Invite
from meshnode.wire.messages import Hello, decode_message
from meshnode.wire.registry import VERSION, Role, StreamType
from meshnode.wire.statements import Statement

LIMIT_S = 15.0


def new_identity() -> Identity:
    """A key that nobody has seen."""
    return Identity(Ed25519PrivateKey.generate())


def what_it_says(token: str) -> Invite:
    """What an invite says. Raises WireError."""
    return invites.read(invites.to_bytes(token), verify)


class RoguePeer:
    """See the module. `opened` are the streams that the node opened, `datagrams` what it sent unreliably.

    `on_stream` is called with each stream that somebody opens.
    """

    def __init__(self, identity: Identity, vault: Vault) -> None:
        self.identity = identity
        self.vault = vault
        self.opened: list[MeshStream] = []
        self.datagrams: list[bytes] = []
        self.on_stream: Callable[[MeshStream], object] = lambda stream: None
        self.endpoint: Endpoint
        self.link: Link
        self.session: Session
        self._closed: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._number = 0

    # --- coming in --------------------------------------------------------------------------------------------------

    async def dial(self, token: str) -> Link:
        """A link to the issuer of the invite, and no word."""
        invite = what_it_says(token)
        self.link = await self.endpoint.dial(invite.addresses, expected=None, timeout_s=LIMIT_S)
        return self.link

    async def join(self, token: str, role: Role = Role.MEMBER, **changes: Any) -> Session:
        """Be admitted with an invite; `changes` are made to the HELLO. Raises what `greet` raises."""
        await self.dial(token)
        values = {"mesh": what_it_says(token).mesh, "role": role, "invite": invites.to_bytes(token)}
        hello = Hello(VERSION, **{**values, **changes})
        self.session = await greet(self.link, self.vault, hello=hello, mesh_name="home")
        return self.session

    # --- saying things ----------------------------------------------------------------------------------------------

    def say(self, message: Any) -> None:
        """One message on the control stream, in due form."""
        self.session.stream.write(frame_of(message))

    def say_bytes(self, data: bytes) -> None:
        """Anything on the control stream."""
        self.session.stream.write(data)

    def say_frame(self, number: int, body: bytes) -> None:
        """A frame with any id and any body."""
        self.say_bytes(encode_frame(number, body))

    def throw(self, message: Any) -> bool:
        """One message as a datagram."""
        return self.link.send_datagram(datagram_of(message))

    def statement(self, body: Any, *, incarnation: int, by: Identity | None = None, origin: bytes = b"") -> Statement:
        """The next statement of this peer; signed `by` another key, or as one of another `origin`, if told so."""
        self._number += 1
        signer = by or self.identity
        return statements.make(
            body,
            origin=origin or self.identity.node_id,
            incarnation=incarnation,
            number=self._number,
            sign=signer.sign,
        )

    async def hear(self, wanted: Callable[[Any], bool]) -> Any:
        """Read the control stream until a message comes that is `wanted`."""
        frames = FrameReader()
        async with asyncio.timeout(LIMIT_S):
            while data := await self.session.stream.read(1 << 16):
                for number, body in frames.feed(data):
                    message = decode_message(number, body)
                    if wanted(message):
                        return message
        raise ConnectionError("the node has ended the control stream")

    # --- streams ----------------------------------------------------------------------------------------------------

    def open(self, kind: int, data: bytes = b"", *, header: bytes = b"") -> MeshStream:
        """A stream of a type, with these bytes behind its header."""
        stream = self.link.open_stream()
        stream.write(encode_stream_header(kind, header) + data)
        return stream

    async def ask(self, raw: bytes, *, end: bool = False) -> bytes:
        """What the tunnel answers to these very bytes. Raises StreamReset when that is no answer."""
        stream = self.open(StreamType.HTTP, raw)
        if end:
            stream.write_eof()
        async with asyncio.timeout(LIMIT_S):
            pieces = []
            while piece := await stream.read(1 << 16):
                pieces.append(piece)
        return b"".join(pieces)

    # --- what the node does about it --------------------------------------------------------------------------------

    async def was_closed(self) -> int:
        """The code with which the node ends the link."""
        return await asyncio.wait_for(asyncio.shield(self._closed), LIMIT_S)

    @property
    def is_in(self) -> bool:
        """Whether the node has kept the link so far."""
        return self.link.alive and not self._closed.done()

    # net.Handler

    def link_up(self, link: Link) -> None: ...

    def link_down(self, link: Link, code: int, reason: str) -> None:
        if not self._closed.done():
            self._closed.set_result(code)

    def stream_opened(self, stream: MeshStream) -> None:
        self.opened.append(stream)
        self.on_stream(stream)

    def datagram(self, link: Link, data: bytes) -> None:
        self.datagrams.append(data)

    def link_silent(self, link: Link, silent: bool) -> None: ...


@asynccontextmanager
async def rogue(folder: Path, identity: Identity | None = None) -> AsyncIterator[RoguePeer]:
    """A peer with a key of its own and a home in `folder`; gone at the end."""
    identity = identity or new_identity()
    home = folder / identity.node_id.hex()[:16]
    peer = RoguePeer(identity, await asyncio.to_thread(Vault, home, identity))
    peer.endpoint = await Endpoint.open(identity, peer, host="127.0.0.1", options=EndpointOptions(fast=False))
    try:
        yield peer
    finally:
        await peer.endpoint.close()


async def type_of(stream: MeshStream) -> int:
    """What a stream that the node opened is for."""
    async with asyncio.timeout(LIMIT_S):
        return (await stream.read_exactly(1))[0]


async def reset_code(stream: MeshStream) -> int:
    """The code with which the node resets a stream."""
    async with asyncio.timeout(LIMIT_S):
        reason = await stream.broken()
    assert isinstance(reason, StreamReset), reason
    return reason.code


async def reset_codes(streams: Sequence[MeshStream]) -> list[int]:
    """The same of several."""
    return list(await asyncio.gather(*(reset_code(stream) for stream in streams)))
