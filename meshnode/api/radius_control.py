"""How far requests of this node may go that do not say it themselves: the setting, and the call that changes it.

`POST /api/radius` with the token of the node changes it while the node runs; the setting counts again at the next
start. Nothing else does: no request, no page of the API port, no peer.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from meshnode.core.radius import RADII, Radius, parse_radius
from meshnode.errors import BadRequest
from meshnode.telemetry import LOG

Members = Mapping[str, object]


class RadiusControl:
    """The present default; call it to read it. `changed` is told when it becomes another."""

    def __init__(self, radius: str, *, changed: Callable[[], None] = lambda: None) -> None:
        """Raises ValueError for what is no radius."""
        self._radius: Radius = parse_radius(radius)
        self._changed = changed

    def __call__(self) -> Radius:
        """How far a request may go that does not say it."""
        return self._radius

    async def change(self, members: Members) -> dict[str, Any]:
        """Take the `radius` of a request's object from now on. Raises BadRequest."""
        wanted, before = members.get("radius"), self._radius
        if not isinstance(wanted, str) or wanted not in RADII:
            raise BadRequest(f"`radius` must be one of {', '.join(RADII)}")
        self._radius = parse_radius(wanted)
        if before != self._radius:
            LOG.info("requests may go as far as %s, not %s, unless they say otherwise", self._radius, before)
            self._changed()
        return {"radius": self._radius, "before": before}


def radius_commands(control: RadiusControl) -> dict[str, Callable[[Members], Awaitable[dict[str, Any]]]]:
    """Path -> what to do with the members of the request's object."""
    return {"/api/radius": control.change}
