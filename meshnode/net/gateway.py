"""The router of this machine: next hop of its default route over IPv4, from the system's routing table.

Linux says it in /proc, of the network namespace of the asking thread; elsewhere the program `route` is asked.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

ROUTES = Path("/proc/thread-self/net/route")
PROGRAM_LIMIT_S = 2.0
CONTROL_PORT = 5351
"""Where PCP and NAT-PMP are spoken."""
_UP_AND_GATEWAY = 0x3  # RTF_UP | RTF_GATEWAY


@dataclass(frozen=True, slots=True)
class Gateway:
    """`host` is the router's address on the local network, `own` this machine's there, `prefix` the length of the
    network's prefix.
    """

    host: str
    own: str
    prefix: int = 24
    control_port: int = CONTROL_PORT

    def is_near(self, host: str) -> bool:
        """Whether `host` is the router, or on its local network."""
        try:
            found = ipaddress.ip_address(host)
        except ValueError:
            return False
        return found in ipaddress.ip_network(f"{self.host}/{self.prefix}", strict=False)


def find_gateway() -> Gateway | None:
    """The router, or None where there is no default route over IPv4. Reads the system tables, some milliseconds."""
    try:
        host = default_of_linux(ROUTES.read_text("ascii")) if sys.platform == "linux" else _asked()
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    own = own_address(host) if host else None
    return Gateway(host, own, _prefix_of(own)) if host and own else None


def default_of_linux(table: str) -> str | None:
    """The next hop of the default route with the smallest metric; `table` as in proc_net_route(5)."""
    found: list[tuple[int, str]] = []
    for line in table.splitlines()[1:]:
        fields = line.split()
        if len(fields) < 8 or fields[1] != "00000000" or fields[7] != "00000000":
            continue
        if int(fields[3], 16) & _UP_AND_GATEWAY == _UP_AND_GATEWAY:
            # The kernel prints the four bytes as one number of the machine's order.
            found.append((int(fields[6]), socket.inet_ntoa(int(fields[2], 16).to_bytes(4, sys.byteorder))))
    return min(found)[1] if found else None


def default_of_bsd(text: str) -> str | None:
    """The next hop in the answer of `route -n get default` of macOS and the BSDs."""
    found = re.search(r"^\s*gateway: (\d+\.\d+\.\d+\.\d+)$", text, re.MULTILINE)
    return str(ipaddress.IPv4Address(found[1])) if found else None


def own_address(towards: str) -> str | None:
    """This machine's address on the way to an IPv4 host. Asks the routing table; nothing is sent."""
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as probe:
        try:
            probe.connect((towards, 9))
        except OSError:
            return None
        return str(probe.getsockname()[0])


def _asked() -> str | None:
    command = ["route", "-n", "get", "default"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PROGRAM_LIMIT_S, stdin=subprocess.DEVNULL)
    return default_of_bsd(done.stdout)


def _prefix_of(own: str | None) -> int:
    """The length of the network that an own address is in; 24 where nothing says it."""
    import psutil

    for entries in psutil.net_if_addrs().values():
        for entry in entries:
            if entry.address == own and entry.netmask:
                return ipaddress.ip_network(f"0.0.0.0/{entry.netmask}").prefixlen
    return 24
