"""An internet in namespaces: sites with routers of the common kinds of NAT, real packet filters, nothing simulated.

    with NatLab({"a": "symmetric", "b": "full", "relay": "open"}, loss=20) as lab:
        with lab.inside("a"):                       # this thread's new sockets and processes belong to a's host
            node = subprocess.Popen(...)
        lab.address("relay")                        # where the internet sees a site: 11.7.3.2

Each site has a /24 of global unicast addresses of its own (RFC 4787 speaks of "endpoints", limits by prefix speak of
/24), the internet is a router between them. Behind a NAT the host has 10.0.N.2 or 192.168.N.2. TYPES:

    open              no router: the host has the public address
    full              endpoint-independent mapping to other ports, endpoint-independent filtering
    port_restricted   endpoint-independent mapping to other ports, address- and port-dependent filtering
    masquerade        what Linux routers do: the port is kept where it can be, filtering as above
    symmetric         a random port for every destination, filtering as above
    carrier           masquerade at home, behind a port-restricted NAT of the carrier (100.64.N.0/24); not one of TYPES

Routers drop what comes unasked from outside, as firewalls at home do: were it let in, a punch that comes too early
would occupy the mapping that it asks for. All that netfilter needs is in the kernel; nothing of the machine itself is
touched. Everything else, names and removal among it, is as in tests/lab/namespaces.py.
"""

from __future__ import annotations

import itertools
import os
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from tests.lab import namespaces
from tests.lab.namespaces import PREFIX, Network, run_ip

TYPES = ("open", "full", "port_restricted", "masquerade", "symmetric")
CARRIER = "carrier"
INTERNET = "internet"
MOST_SITES = 200
LAN, WAN = "lan", "wan"
FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
"""Of the namespace that the reading thread is in."""
BUILDERS = 4
_labs = itertools.count()
MINIUPNPD = "miniupnpd"
MAPPING_RULES = """
table inet miniupnpd {
 chain forward { type filter hook forward priority -10; policy accept; jump upnp_forward; }
 chain prerouting { type nat hook prerouting priority dstnat; policy accept; jump upnp_prerouting; }
 chain postrouting { type nat hook postrouting priority srcnat; policy accept; jump upnp_postrouting; }
 chain upnp_forward { }
 chain upnp_prerouting { }
 chain upnp_postrouting { }
}
"""


def why_not() -> str:
    """Why that cannot be done here, in words for a skipped test; empty when it can."""
    if reason := namespaces.why_not():
        return reason
    if shutil.which("nft") is None:
        return "routers with NAT need the program nft (package nftables)"
    try:
        with NatLab({"probe": "full"}):
            return ""
    except subprocess.CalledProcessError as error:
        return f"routers with NAT are not possible here: {error.stderr.strip()}"


def why_no_mapping() -> str:
    """Why no router here can hand out port mappings."""
    return "" if shutil.which(MINIUPNPD) else f"port mappings need {MINIUPNPD} (package miniupnpd-nftables)"


@dataclass(frozen=True, slots=True)
class _Site:
    name: str
    kind: str
    number: int
    last: int = 2

    @property
    def public(self) -> str:
        return f"11.7.{self.number}.{self.last}"

    @property
    def uplink(self) -> str:
        """The internet's end of the cable to the site."""
        return f"11.7.{self.number}.1"

    @property
    def inner(self) -> str:
        """What the network of the site's host begins with."""
        return f"10.0.{self.number}" if self.number % 2 else f"192.168.{self.number}"

    @property
    def host(self) -> str:
        return self.public if self.kind == "open" else f"{self.inner}.2"

    @property
    def gateway(self) -> str:
        return self.uplink if self.kind == "open" else f"{self.inner}.1"

    @property
    def between(self) -> str:
        """Of the network between the two routers of a site behind a carrier."""
        return f"100.64.{self.number}"

    @property
    def routers(self) -> dict[str, tuple[str, str, str, str, str]]:
        """Name -> kind of NAT, address outside, next hop, address inside, namespace at the inner end of its cable."""
        home, carrier = f"{self.name}.router", f"{self.name}.carrier"
        if self.kind == "open":
            return {}
        if self.kind == CARRIER:
            first = ("port_restricted", self.public, self.uplink, f"{self.between}.1", home)
            return {
                carrier: first,
                home: ("masquerade", f"{self.between}.2", f"{self.between}.1", self.gateway, self.name),
            }
        return {home: (self.kind, self.public, self.uplink, self.gateway, self.name)}


class NatLab(Network):
    """Sites by name, each with the type of its router. Use it as a context manager; builds in well under a second.

    Raises ValueError for an unknown type, subprocess.CalledProcessError with the words of `ip` or `nft` when it cannot
    be built.
    """

    def __init__(self, sites: Mapping[str, str], *, loss: int = 0) -> None:
        unknown = set(sites.values()) - {*TYPES, CARRIER}
        if unknown or len(sites) > MOST_SITES:
            raise ValueError(f"at most {MOST_SITES} sites of the types {', '.join(TYPES)}, not {sorted(unknown)}")
        super().__init__(*sites)
        self._sites = {name: _Site(name, kind, number) for number, (name, kind) in enumerate(sites.items(), 1)}
        self._loss = loss
        self._groups: dict[str, int] = {}
        self._lab = next(_labs)
        self._numbers = itertools.count(1000)

    def namespace(self, host: str) -> str:
        """The name that `ip netns` knows a host or a router by; labs of one process may have sites of one name."""
        return f"{PREFIX}-{os.getpid()}-{self._lab}-{host}"

    # --- where things are -------------------------------------------------------------------------------------------

    def address(self, host: str) -> str:
        """Where the internet sees the site."""
        return self._sites[host].public

    def host_address(self, host: str) -> str:
        """The address that the site's host itself has."""
        return self._sites[host].host

    def gateway(self, host: str) -> str:
        """The next hop of the site's host: its router, or the internet's end of its cable."""
        return self._sites[host].gateway

    def router(self, host: str) -> str:
        """The name of the router that the site's host is behind, for `inside`."""
        return f"{host}.router"

    # --- what goes wrong --------------------------------------------------------------------------------------------

    def lose(self, percent: int) -> None:
        """Drop that share of all packets between sites, in each direction; 0 stops it."""
        self._loss = percent
        self._filter()

    def split(self, *groups: Iterable[str]) -> None:
        """From now on sites reach only those of their own group; those that are not named form one group."""
        self._groups = {host: number for number, group in enumerate(groups, 1) for host in group}
        self._filter()

    def renumber(self, host: str, *, last: int = 3) -> None:
        """The site gets the public address 11.7.N.`last`, as after a redial; its router forgets all mappings."""
        before = self._sites[host]
        site = self._sites[host] = replace(before, last=last)
        outer, device = next(((router, WAN) for router in site.routers), (host, "eth0"))
        lines = [f"addr del {before.public}/24 dev {device}", f"addr add {site.public}/24 dev {device}"]
        run_ip(*lines, f"route replace default via {site.uplink} dev {device}", namespace=self.namespace(outer))
        if site.routers:
            self._rules(outer, f"flush ruleset\n{router_rules(site.routers[outer][0], site.public)}")
            with self.inside(outer):
                forget_connections()

    # --- port mappings ----------------------------------------------------------------------------------------------

    @contextmanager
    def mapping(self, host: str, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
        """The site's router answers PCP, NAT-PMP and UPnP within the block (a real miniupnpd). Files go to `folder`."""
        site = self._sites[host]
        router = self.router(host)
        outside = site.routers[router][1]
        self._rules(router, MAPPING_RULES)
        configuration = folder / f"{MINIUPNPD}-{host}.conf"
        settings = {
            "ext_ifname": WAN,
            "ext_ip": outside,
            "listening_ip": LAN,
            "http_port": "5000",
            "enable_natpmp": "yes",
            "enable_upnp": "yes",
            "secure_mode": "yes",
            "min_lifetime": "2",
            "max_lifetime": "7200",
            "uuid": f"00000000-0000-4000-8000-{site.number:012d}",
            "lease_file": str(folder / f"{MINIUPNPD}-{host}.leases"),
            "upnp_table_name": "miniupnpd",
            "upnp_nat_table_name": "miniupnpd",
            "upnp_forward_chain": "upnp_forward",
            "upnp_nat_chain": "upnp_prerouting",
            "upnp_nat_postrouting_chain": "upnp_postrouting",
        }
        rule = f"allow 1024-65535 {site.inner}.0/24 1024-65535\ndeny 0-65535 0.0.0.0/0 0-65535\n"
        configuration.write_text("".join(f"{key}={value}\n" for key, value in settings.items()) + rule)
        command = [MINIUPNPD, "-d", "-f", str(configuration), "-P", str(folder / f"{MINIUPNPD}-{host}.pid")]
        with self.inside(router), (folder / f"{MINIUPNPD}-{host}.log").open("wb") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.terminate()
            process.wait(timeout=10)

    # --- building ---------------------------------------------------------------------------------------------------

    def _build(self) -> None:
        spaces = self._spaces()
        lines = [f"netns add {self.namespace(space)}" for space in spaces]
        for site in self._sites.values():
            outer = site.name
            for number, (router, (*_, inner)) in enumerate(site.routers.items()):
                outer = router if number == 0 else outer
                lines.append(self._cable(router, LAN, inner, "eth0" if inner == site.name else WAN))
            port = _port(site)
            lines.append(self._cable(INTERNET, port, outer, "eth0" if outer == site.name else WAN))
        run_ip(*lines)
        with ThreadPoolExecutor(BUILDERS) as builders:
            jobs = [builders.submit(self._set_up_site, site) for site in self._sites.values()]
            jobs.append(builders.submit(self._set_up_internet))
            for job in jobs:
                job.result()

    def _cable(self, one: str, device: str, other: str, far_device: str) -> str:
        # Ends of equal numbers look like a lone device to the kernel (linkwatch), which then takes up to a second to
        # say that the link is up; nodes name no addresses of a link that is down.
        ends = f"name {device} index {next(self._numbers)} netns {self.namespace(one)} type veth peer name {far_device}"
        return f"link add {ends} netns {self.namespace(other)}"

    def _set_up_internet(self) -> None:
        lines = ["link set lo up"]
        for site in self._sites.values():
            lines += [f"addr add {site.uplink}/24 dev {_port(site)}", f"link set {_port(site)} up"]
        run_ip(*lines, namespace=self.namespace(INTERNET))
        with self.inside(INTERNET):
            FORWARDING.write_text("1")
        if self._loss:
            self._filter()

    def _set_up_site(self, site: _Site) -> None:
        for router, (kind, outside, hop, inside, _) in site.routers.items():
            lines = ["link set lo up", f"addr add {outside}/24 dev {WAN}", f"link set {WAN} up"]
            lines += [f"addr add {inside}/24 dev {LAN}", f"link set {LAN} up", f"route add default via {hop}"]
            run_ip(*lines, namespace=self.namespace(router))
            with self.inside(router):
                FORWARDING.write_text("1")
            self._rules(router, router_rules(kind, outside))
        lines = ["link set lo up", f"addr add {site.host}/24 dev eth0", "link set eth0 up"]
        run_ip(*lines, f"route add default via {site.gateway}", namespace=self.namespace(site.name))

    def _rules(self, space: str, rules: str) -> None:
        with self.inside(space):
            subprocess.run(["nft", "-f", "-"], input=rules, check=True, capture_output=True, text=True)

    def _filter(self) -> None:
        """Put loss and splits in force, where all packets between sites pass."""
        rules = [f"numgen random mod 100 < {self._loss} drop"] if self._loss else []
        groups: dict[int, list[str]] = {}
        for host in self._sites:
            groups.setdefault(self._groups.get(host, 0), []).append(f'"{_port(self._sites[host])}"')
        for number, ports in groups.items():
            others = [port for other, found in groups.items() if other != number for port in found]
            if others:
                rules.append(f"iifname {{ {', '.join(ports)} }} oifname {{ {', '.join(others)} }} drop")
        chain = "\n".join(["type filter hook forward priority 0; policy accept;", *rules])
        self._rules(
            INTERNET, f"table ip lab\ndelete table ip lab\ntable ip lab {{\nchain forward {{\n{chain}\n}}\n}}\n"
        )

    def _spaces(self) -> list[str]:
        return [INTERNET, *self._sites, *(router for site in self._sites.values() for router in site.routers)]

    def _remove(self) -> None:
        spaces = self._spaces()
        with ThreadPoolExecutor(BUILDERS) as builders:
            list(builders.map(lambda space: namespaces.remove_namespace(self.namespace(space)), spaces))


def forget_connections() -> None:
    """Empty the connection table of the namespace that this thread is in (ctnetlink: IPCTNL_MSG_CT_DELETE of all)."""
    netfilter, delete_of_conntrack, request_and_acknowledge = 12, 1 << 8 | 2, 0x5
    message = struct.pack("=IHHIIBBH", 20, delete_of_conntrack, request_and_acknowledge, 1, 0, socket.AF_INET, 0, 0)
    with closing(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, netfilter)) as opened:
        opened.settimeout(5)
        opened.send(message)
        error = struct.unpack_from("=i", opened.recv(4096), 16)[0]
    if error:
        raise OSError(-error, "the connection table cannot be emptied")


def _port(site: _Site) -> str:
    """The internet's end of the cable to a site."""
    return f"site{site.number}"


def router_rules(kind: str, outside: str) -> str:
    """The rules of a router of that type for `nft -f -`; `outside` is its address on WAN.

    Mappings of `full` and `port_restricted` are kept in a map of our own, as conntrack alone maps per destination: the
    first packet of a socket draws a port, all later ones find it. `full` learns the way back from what left.
    """
    udp_out = f'oifname "{WAN}" meta l4proto udp'
    ports = "map ports { type ipv4_addr . inet_service : inet_service; flags dynamic,timeout; timeout 1h; size 65536; }"
    draw = f"{udp_out} add @ports {{ ip saddr . udp sport : numgen inc mod 20000 offset 20000 }}"
    translate = f"{udp_out} snat to {outside} : ip saddr . udp sport map @ports"
    pool = "map inward { type inet_service : ipv4_addr . inet_service; flags dynamic,timeout; timeout 1h; size 65536; }"
    learn = f"{udp_out} update @inward {{ udp sport : ct original ip saddr . ct original proto-src }}"
    back = f'iifname "{WAN}" ip daddr {outside} meta l4proto udp dnat to udp dport map @inward'
    source = {
        "full": [draw, translate, f'oifname "{WAN}" snat to {outside}'],
        "port_restricted": [draw, translate, f'oifname "{WAN}" snat to {outside}'],
        "masquerade": [f'oifname "{WAN}" masquerade'],
        "symmetric": [f'oifname "{WAN}" masquerade random,fully-random'],
    }[kind]
    full = kind == "full"
    unasked = [] if full else [f'iifname "{WAN}" ct state established,related accept', f'iifname "{WAN}" drop']
    asked = [f'iifname "{WAN}" ct state established,related accept', f'iifname "{WAN}" meta l4proto icmp accept']
    chains = {
        "before": ["type nat hook prerouting priority dstnat; policy accept;", *([back] if full else [])],
        "after": ["type nat hook postrouting priority srcnat; policy accept;", *source],
        "learning": ["type filter hook postrouting priority 110; policy accept;", *([learn] if full else [])],
        "through": ["type filter hook forward priority 0; policy accept;", "ct status dnat accept", *unasked],
        "own": ["type filter hook input priority 0; policy accept;", *asked, f'iifname "{WAN}" drop'],
    }
    maps = [ports, pool] if kind in ("full", "port_restricted") else []
    text = "\n".join([*maps, *(f"chain {name} {{\n" + "\n".join(rules) + "\n}" for name, rules in chains.items())])
    return f"table ip router {{\n{text}\n}}\n"
