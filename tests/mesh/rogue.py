"""A peer that keeps to no rules: a real endpoint, admitted with a real certificate, and bare streams."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any

from meshnode.mesh.session import Session, greet
from meshnode.net.endpoint import Endpoint
from meshnode.net.link import Link
from meshnode.net.stream import MeshStream
from meshnode.wire.frames import encode_stream_header
from meshnode.wire.messages import Hello
from meshnode.wire.registry import VERSION, Role
from tests.mesh.neighbourhood import Resident


class Rogue:
    """Has the home of `resident`, whose Mesh is not started. `closed` is the code with which the victim closed."""

    def __init__(self, resident: Resident) -> None:
        self.resident = resident
        self.opened: list[MeshStream] = []
        self.closed: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.session: Session
        self.link: Link

    async def __aenter__(self) -> Rogue:
        self.endpoint = await Endpoint.open(self.resident.identity, self, host="127.0.0.1")
        return self

    async def __aexit__(self, kind: type[BaseException] | None, _: Any, __: TracebackType | None) -> None:
        await self.endpoint.close()

    async def dial(self, victim: Resident) -> Link:
        """A link, and no word."""
        self.link = await self.endpoint.dial(victim.mesh.addresses, expected=victim.id)
        return self.link

    async def enter(self, victim: Resident, role: Role = Role.MEMBER) -> Rogue:
        """Be admitted: with an invite the first time, later with the certificate."""
        await self.dial(victim)
        mine = self.resident.vault.credentials
        invite, token = victim.invite(role)
        hello = Hello(
            VERSION, invite.mesh, role, certificate=mine.certificate if mine else b"", invite=b"" if mine else token
        )
        self.session = await greet(self.link, self.resident.vault, hello=hello, mesh_name="home")
        return self

    def open(self, kind: int, data: bytes = b"") -> MeshStream:
        """A stream of a type with these bytes behind its header."""
        stream = self.link.open_stream()
        stream.write(encode_stream_header(kind, b"") + data)
        return stream

    async def was_closed(self) -> int:
        """The code with which the victim ends the link."""
        return await asyncio.wait_for(asyncio.shield(self.closed), 10)

    # net.Handler

    def link_up(self, link: Link) -> None: ...

    def link_down(self, link: Link, code: int, reason: str) -> None:
        if not self.closed.done():
            self.closed.set_result(code)

    def stream_opened(self, stream: MeshStream) -> None:
        self.opened.append(stream)

    def datagram(self, link: Link, data: bytes) -> None: ...

    def link_silent(self, link: Link, silent: bool) -> None: ...
