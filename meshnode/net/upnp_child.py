"""What talks UPnP with a router: a program of its own, which net/upnp starts for each order, and ends in time.

miniupnpc reads descriptions that anybody on the local network may have written, in C, for as long as it likes. Here it
does so with bounds on memory and time, and a crash is an answer. One order as JSON on stdin, one answer on stdout:

    {"do": "map", "url": ..., "own": ..., "port": ..., "external_port": ..., "lifetime_s": ...}
    {"host": ..., "external_port": ..., "lifetime_s": ...}      or {"error": ...}
    {"do": "unmap", "url": ..., "external_port": ...}
    {}                                                          or {"error": ...}

Only the standard library and miniupnpc are imported, so that it is up at once.
"""

from __future__ import annotations

import json
import sys
from typing import Any
from urllib.parse import urlsplit

MOST_MEMORY_BYTES = 512 << 20
MOST_CPU_S = 5
MOST_ERROR_CHARS = 200
DESCRIPTION = "meshnode"
TRIES = 4
PERMANENT_LIFETIME_S = 7200
"""What is said of a mapping that never ends: it is renewed as often as others are."""
_ONLY_PERMANENT = "OnlyPermanentLeasesSupported"
_CONFLICT = "ConflictInMappingEntry"


def carry_out(order: dict[str, Any], upnp: Any) -> dict[str, Any]:
    """The answer to one order; `upnp` is a miniupnpc.UPnP. Raises whatever goes wrong.

    The description may name any address for further questions; only the host that gave the description is asked.
    """
    control = urlsplit(upnp.selectigd(order["url"]))
    if control.scheme != "http" or control.hostname != urlsplit(order["url"]).hostname:
        raise ValueError("its description leads to another machine")
    if order["do"] == "unmap":
        upnp.deleteportmapping(order["external_port"], "UDP")
        return {}
    host = upnp.externalipaddress()
    if order["do"] == "look":
        return {"host": host}
    external_port, lifetime_s = order["external_port"], order["lifetime_s"]
    for left in reversed(range(TRIES)):
        try:
            upnp.addportmapping(external_port, "UDP", order["own"], order["port"], DESCRIPTION, "", lifetime_s)
            break
        except Exception as reason:  # miniupnpc raises nothing more specific
            if not left:
                raise
            if str(reason) == _ONLY_PERMANENT:
                lifetime_s = 0
            elif str(reason) == _CONFLICT:
                external_port = 1024 + (external_port + 7919) % (65536 - 1024)
            else:
                raise
    return {"host": host, "external_port": external_port, "lifetime_s": lifetime_s or PERMANENT_LIFETIME_S}


def _limit() -> None:
    try:
        import resource
    except ImportError:  # not on every system
        return
    for kind, most in ((resource.RLIMIT_AS, MOST_MEMORY_BYTES), (resource.RLIMIT_CPU, MOST_CPU_S)):
        try:
            resource.setrlimit(kind, (most, most))
        except (OSError, ValueError):  # macOS knows no bound of the address space
            continue


def main() -> None:
    """Read the order, carry it out, write the answer."""
    _limit()
    order = json.load(sys.stdin)
    try:
        import miniupnpc

        answer = carry_out(order, miniupnpc.UPnP())
    except Exception as reason:
        # miniupnpc raises Exception("Success") where a router has nothing to say.
        text = str(reason)[:MOST_ERROR_CHARS]
        answer = {"error": "it does not say why" if text in ("", "Success") else text}
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main()
