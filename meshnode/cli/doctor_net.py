"""`meshnode doctor --net`: how this machine is reached, and what would help (see connectivity.py)."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from meshnode.cli.client import find_node
from meshnode.config import Places, Settings
from meshnode.connectivity import Connectivity, Remark, looked_up, mapping_offer, remarks
from meshnode.errors import MeshnodeError, NodeNotRunning

PORT_WHERE_ANY = 9338
"""Asked for where the settings leave the port to chance: a router may treat low ports otherwise."""


def look(places: Places, settings: Settings) -> tuple[Connectivity, list[Remark]]:
    """What the running node says; without one, what can be said alone. With `port_map` off no router is asked."""
    try:
        status: dict[str, Any] | None = find_node(places).call("GET", "/api/status")
    except NodeNotRunning:
        status = None
    found = looked_up(status)
    if status is None:
        found = _with_offer(found, settings)
    return found, remarks(found)


def _with_offer(found: Connectivity, settings: Settings) -> Connectivity:
    if settings.port_map == "off":
        return replace(found, mapping={"state": "off", "sentence": "not asked for: port_map is off"})
    try:
        offer = asyncio.run(mapping_offer(settings.public_port or PORT_WHERE_ANY))
    except (OSError, MeshnodeError) as reason:
        return replace(found, mapping={"state": "off", "sentence": f"the router could not be asked: {reason}"})
    if offer["state"] == "mapped":
        offer["sentence"] = f"the router would forward {offer['external']} to this machine ({offer['way']})"
    return replace(found, mapping=offer)
