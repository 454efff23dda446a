"""The calls of the control API that concern the mesh: invite, revoke, join, leave, ping, pair.

Each checks its members here and hands plain values on; what they do is the node's. `/api/status` shows the results.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

from meshnode.errors import BadRequest
from meshnode.wire.registry import LIMIT_INVITE_CHARS, LIMIT_INVITE_MAX_TTL_S, LIMIT_INVITE_TTL_S

Members = Mapping[str, object]
Answer = Awaitable[dict[str, Any]]

DEFAULT_USES = 5
MOST_USES = 1000
MOST_PINGS = 100
ROLES = ("member", "client")


class MeshControls(Protocol):
    """What a node can be told about its mesh. Every method raises MeshnodeError for what cannot be done."""

    async def invite(self, *, role: str, ttl_s: int, uses: int, may_invite: bool) -> dict[str, Any]: ...
    async def revoke(self, invite_id: str) -> dict[str, Any]: ...
    async def join(self, token: str) -> dict[str, Any]: ...
    async def leave(self) -> dict[str, Any]: ...
    async def ping(self, node: str, count: int) -> dict[str, Any]: ...
    async def pair(self, code: str | None, at: str | None) -> dict[str, Any]: ...


def mesh_commands(controls: MeshControls) -> dict[str, Callable[[Members], Answer]]:
    """Path -> what to do with the members of the request's object."""

    async def invite(members: Members) -> dict[str, Any]:
        made = await controls.invite(
            role=_one_of(members, "role", ROLES),
            ttl_s=_whole(members, "ttl_s", LIMIT_INVITE_TTL_S, LIMIT_INVITE_MAX_TTL_S),
            uses=_whole(members, "uses", DEFAULT_USES, MOST_USES),
            may_invite=members.get("may_invite") is True,
        )
        if members.get("qr") is not True:
            return made
        return {**made, "qr_svg": await asyncio.to_thread(qr_svg, made["token"])}

    def ping(members: Members) -> Answer:
        return controls.ping(_text(members, "node", 200), _whole(members, "count", 4, MOST_PINGS))

    def pair(members: Members) -> Answer:
        code, at = (_text(members, name, 100) if name in members else None for name in ("code", "at"))
        return controls.pair(code, at)

    return {
        "/api/invite": invite,
        "/api/invite/revoke": lambda members: controls.revoke(_text(members, "id", 64)),
        "/api/join": lambda members: controls.join(_text(members, "token", 2 * LIMIT_INVITE_CHARS)),
        "/api/leave": lambda _: controls.leave(),
        "/api/ping": ping,
        "/api/pair": pair,
    }


@dataclass(frozen=True, slots=True)
class _NoMesh:
    reason: Callable[[], Exception]

    def __getattr__(self, name: str) -> Callable[..., Answer]:
        async def refuse(*_: object, **__: object) -> dict[str, Any]:
            raise self.reason()

        return refuse


def no_mesh(reason: Callable[[], Exception]) -> MeshControls:
    """The controls of a node without a mesh: each of them raises `reason()`."""
    return cast(MeshControls, _NoMesh(reason))


def qr_svg(token: str) -> str:
    """An invite as a picture of its own: black on white in every theme, as scanners want it, with the quiet zone of
    ISO/IEC 18004. In capitals, which a QR code packs more densely; an invite means the same in both.
    """
    import segno

    drawn = io.BytesIO()
    code = segno.make_qr(token.upper(), error="l", boost_error=False)
    code.save(drawn, kind="svg", border=4, light="#fff", dark="#000", xmldecl=False, omitsize=True, nl=False)
    return drawn.getvalue().decode()


def _text(members: Members, name: str, longest: int) -> str:
    value = members.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= longest:
        raise BadRequest(f"`{name}` must be a text of at most {longest} characters")
    return value


def _one_of(members: Members, name: str, choices: tuple[str, ...]) -> str:
    value = members.get(name, choices[0])
    if value not in choices:
        raise BadRequest(f"`{name}` must be one of {', '.join(choices)}")
    return str(value)


def _whole(members: Members, name: str, default: int, most: int) -> int:
    value = members.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise BadRequest(f"`{name}` must be a whole number from 1 to {most}")
    return value
