"""UPnP Internet Gateway Device: for routers that know neither PCP nor NAT-PMP.

Devices are looked for by SSDP (UPnP Device Architecture 2.0, 1.3.2): a question by multicast, and one to the router
itself. Whatever answers names the URL of its description; only a plain http URL of the very machine that answered is
followed, and only on the router's own network, so that nobody has us ask somebody else. The rest is net/upnp_child's.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from collections.abc import Mapping as Mappings
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from meshnode.net import upnp_child
from meshnode.net.gateway import Gateway
from meshnode.net.mapping import WANTED_LIFETIME_S, Mapping, NoMapping, granted, outside

WAY = "upnp"
GROUP, SSDP_PORT = "239.255.255.250", 1900
DEVICE_TYPES = ("InternetGatewayDevice:1", "InternetGatewayDevice:2")
SEARCH_S = 1.2
"""Devices wait up to a second (MX) before they answer."""
CHILD_LIMIT_S = 5.0
MOST_ANSWERS = 32
MOST_DEVICES = 3
MOST_URL_CHARS = 200
MOST_OUTPUT_BYTES = 4096


def search_request(device_type: str) -> bytes:
    """The M-SEARCH for one type of device."""
    lines = [
        "M-SEARCH * HTTP/1.1",
        f"HOST: {GROUP}:{SSDP_PORT}",
        f"ST: urn:schemas-upnp-org:device:{device_type}",
        'MAN: "ssdp:discover"',
        "MX: 1",
    ]
    return "\r\n".join([*lines, "", ""]).encode()


def location(answer: bytes, source: str, gateway: Gateway) -> str | None:
    """The URL of a description in an answer to M-SEARCH from `source`; None if it is not to be followed."""
    try:
        head, *lines = answer[:2048].decode("ascii").split("\r\n")
    except UnicodeDecodeError:
        return None
    if not head.startswith("HTTP/1.1 200"):
        return None
    fields = {name.strip().upper(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    url = fields.get("LOCATION", "")
    if not 0 < len(url) <= MOST_URL_CHARS or not url.isprintable() or " " in url:
        return None
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    followed = parts.scheme == "http" and parts.hostname == source and parts.username is None and port != 0
    return url if followed and gateway.is_near(source) else None


async def find_devices(gateway: Gateway, *, search_s: float = SEARCH_S) -> list[str]:
    """URLs of descriptions, the router's own first. Ends as soon as the router itself has answered."""
    loop = asyncio.get_running_loop()
    found: dict[str, str] = {}
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as asking:
        try:
            asking.setblocking(False)
            asking.bind((gateway.own, 0))
            asking.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(gateway.own))
            asking.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 2)
        except OSError as error:
            raise NoMapping(f"the local network cannot be asked: {error.strerror}", answered=False) from None
        for kind in DEVICE_TYPES:
            for host in (GROUP, gateway.host):
                with suppress(OSError):  # one that cannot be reached does not keep the other from answering
                    asking.sendto(search_request(kind), (host, SSDP_PORT))
        with suppress(TimeoutError):
            async with asyncio.timeout(search_s):
                for _ in range(MOST_ANSWERS):
                    try:
                        data, (source, _) = await loop.sock_recvfrom(asking, 2048)
                    except OSError:
                        continue
                    url = location(data, source, gateway)
                    if url is not None:
                        found.setdefault(source, url)
                    if source == gateway.host and url is not None:
                        break
    return [found[source] for source in sorted(found, key=lambda source: source != gateway.host)][:MOST_DEVICES]


async def map_port(
    gateway: Gateway, port: int, before: Mapping | None = None, *, search_s: float = SEARCH_S
) -> Mapping:
    """Ask for the port, or to renew `before`. Raises NoMapping.

    The URL of the device is what `secret` holds.
    """
    urls = [before.secret.decode()] if before else await find_devices(gateway, search_s=search_s)
    reason = NoMapping("no router on the local network knows UPnP", answered=False)
    for url in urls:
        try:
            outside(_text(await _run({"do": "look", "url": url}), "host"))
            order = {
                "do": "map",
                "url": url,
                "own": gateway.own,
                "port": port,
                "external_port": before.external.port if before else port,
                "lifetime_s": WANTED_LIFETIME_S,
            }
            answer = await _run(order)
            host, external_port = _text(answer, "host"), _number(answer, "external_port")
            return granted(host, external_port, port, _number(answer, "lifetime_s"), WAY, url.encode())
        except NoMapping as found:
            reason = found
    raise reason


async def unmap_port(gateway: Gateway, mapping: Mapping) -> None:
    """Give it back. Raises NoMapping when that fails."""
    order = {"do": "unmap", "url": mapping.secret.decode(), "external_port": mapping.external.port}
    await _run(order)


async def _run(order: Mappings[str, Any]) -> dict[str, Any]:
    """Have the child carry out one order."""
    # Isolated (-I): neither the current folder nor the environment decides what is imported.
    command = [sys.executable, "-I", str(Path(upnp_child.__file__))]
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.DEVNULL)
    assert child.stdin is not None and child.stdout is not None
    try:
        async with asyncio.timeout(CHILD_LIMIT_S):
            child.stdin.write(json.dumps(order).encode())
            child.stdin.close()
            output = await child.stdout.read(MOST_OUTPUT_BYTES)
            while len(output) < MOST_OUTPUT_BYTES and (more := await child.stdout.read(MOST_OUTPUT_BYTES)):
                output += more
            await child.wait()
    except (TimeoutError, OSError):
        raise NoMapping("the router does not come to an end with UPnP") from None
    finally:
        with suppress(ProcessLookupError):
            child.kill()
        await child.wait()
    try:
        answer = json.loads(output)
    except ValueError:
        raise NoMapping("what the router says in UPnP cannot be read") from None
    if "error" in answer:
        raise NoMapping(f"the router refuses: {answer['error']}")
    return dict(answer)


def _text(answer: dict[str, Any], name: str) -> str:
    found = answer.get(name)
    if not isinstance(found, str):
        raise NoMapping("the router names an outside address that is none")
    return found


def _number(answer: dict[str, Any], name: str) -> int:
    found = answer.get(name)
    if not isinstance(found, int):
        raise NoMapping("the router names an outside port that is none")
    return found
