"""What a node's place on the internet looks like, in facts and in words."""

from __future__ import annotations

import ipaddress
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from meshnode.connectivity import Connectivity, looked_up, remarks, with_status
from tests.e2e.waiting import eventually
from tests.lab.nat_lab import CARRIER, NatLab, why_no_mapping, why_not
from tests.loopback import LOOPBACK_ONLY

HOME = Connectivity(ipv4=("192.168.1.7",), router="192.168.1.1")
RELAY = "ab" * 32


def nat(kind: str, **more: Any) -> dict[str, Any]:
    return {"kind": kind, "observed": [], "mapped": [], "relays": [], **more}


def lines(found: Connectivity) -> dict[str, tuple[str, str, str]]:
    return {remark.about: (remark.verdict, remark.seen, remark.fix) for remark in remarks(found)}


def test_alone_at_home() -> None:
    """No node has spoken with anybody: what the router said is all there is."""
    refused = {"state": "refused", "sentence": "the router 192.168.1.1 forwards no port; pcp: silence"}
    found = lines(Connectivity(ipv4=HOME.ipv4, router=HOME.router, mapping=refused))
    assert found["IPv4"] == ("ok", "192.168.1.7, behind the router 192.168.1.1", "")
    assert found["IPv6"] == ("ok", "no address of the internet", "")
    assert found["NAT"][:2] == ("ok", "not known: peers tell a node, and none runs here")
    assert found["port"][:2] == ("warn", "the router 192.168.1.1 forwards no port; pcp: silence")
    assert "UPnP or PCP" in found["port"][2] and "IPv6" in found["port"][2]
    assert "relays" not in found and "peers" not in found


def test_a_machine_of_the_internet_needs_nothing() -> None:
    found = Connectivity(ipv4=("11.7.1.2",), router="11.7.1.1", mapping={"state": "needless", "sentence": "fine"})
    assert found.reached
    assert all(verdict == "ok" and not fix for verdict, _, fix in lines(found).values())


def test_no_network_at_all() -> None:
    found = lines(Connectivity(mapping={"state": "no-router", "sentence": "no router"}))
    assert found["IPv4"] == ("warn", "no address", "look at the network connection")
    assert found["port"][0] == "warn"


def test_ipv6_is_help_enough_to_leave_out() -> None:
    found = Connectivity(
        ipv4=HOME.ipv4, ipv6=("fd00::1", "2a00::7"), mapping={"state": "refused", "sentence": "no"}, nat="symmetric"
    )
    assert lines(found)["IPv6"] == ("ok", "2a00::7", "")
    assert "IPv6" not in lines(found)["NAT"][2]


def test_a_running_node_behind_a_symmetric_router() -> None:
    status = {
        "mesh": {
            "nat": nat("symmetric", observed=["11.7.1.2:5", "11.7.1.2:6"], relays=[RELAY]),
            "peers": [{"path": "direct"}, {"path": "relayed"}, {"path": "relayed"}, {"path": None}, {}],
        },
        "swarm": None,
    }
    found = with_status(HOME, status)
    assert (found.nat, found.relays, found.peers) == ("symmetric", (RELAY,), {"direct": 1, "relayed": 2})
    assert not found.reached
    told = lines(found)
    assert told["NAT"][0] == "warn" and "11.7.1.2:5" in told["NAT"][1] and "forward" in told["NAT"][2]
    assert told["relays"][1] == "reachable through ababababab"
    assert told["peers"][1] == "1 reached directly, 2 through a relay"


def test_a_port_that_is_forwarded_outweighs_the_kind_of_nat() -> None:
    status = {"mesh": None, "swarm": {"nat": nat("symmetric", mapped=["11.7.1.2:9338"]), "peers": []}}
    found = with_status(HOME, status)
    assert found.reached and found.mapping["external"] == "11.7.1.2:9338"
    assert all(verdict == "ok" for verdict, _, _ in lines(found).values())


def test_what_the_mapper_itself_says_is_shown() -> None:
    said = {"state": "refused", "sentence": "the router forwards no port; pcp: it is not allowed to"}
    status = {"swarm": {"nat": nat("symmetric", mapping=said), "peers": []}}
    found = with_status(HOME, status)
    assert found.mapping == said
    assert lines(found)["port"][0] == "warn"


def test_the_mesh_that_knows_is_believed() -> None:
    status = {"swarm": {"nat": nat("unknown"), "peers": []}, "mesh": {"nat": nat("cone"), "peers": []}}
    assert with_status(HOME, status).nat == "cone"


@pytest.mark.parametrize("status", [{}, {"mesh": None}, {"mesh": {}}, {"mesh": {"nat": None, "peers": None}}])
def test_a_node_that_says_little(status: dict[str, Any]) -> None:
    found = with_status(HOME, status)
    assert found.nat == "unknown" and found.running
    assert lines(found)["NAT"][1].startswith("not known: it takes two peers")
    assert lines(found)["port"] == ("ok", "the node has not asked for one (port_map)", "")


def test_a_kind_from_another_version_is_not_known() -> None:
    assert "not known" in lines(with_status(HOME, {"mesh": {"nat": nat("quantum")}}))["NAT"][1]


def test_facts_are_plain() -> None:
    facts = json.loads(json.dumps(with_status(HOME, {"mesh": {"nat": nat("cone")}}).facts()))
    assert facts["nat"] == "cone" and facts["ipv4"] == ["192.168.1.7"] and facts["reached"] is False


def test_this_machine() -> None:
    found = looked_up()
    assert not found.running and found.nat == "unknown"
    for host in (*found.ipv4, *found.ipv6):
        assert not ipaddress.ip_address(host).is_loopback


def told_in(lab: NatLab, site: str, home: Path) -> dict[str, Any]:
    """What `meshnode doctor --net --json` says on that site's host."""
    command = [sys.executable, "-m", "meshnode", "doctor", "--net", "--json"]
    environment = {**os.environ, **LOOPBACK_ONLY, "MESHNODE_PORT_MAP": "auto", "MESHNODE_HOME": str(home)}
    with lab.inside(site):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout)["net"])


@pytest.mark.skipif(bool(why_not() or why_no_mapping()), reason=why_not() or why_no_mapping())
def test_machines_behind_several_routers(tmp_path: Path) -> None:
    with NatLab({"a": "symmetric", "b": CARRIER, "far": "open"}) as lab:
        with lab.mapping("a", tmp_path):
            eventually(lambda: told_in(lab, "a", tmp_path)["mapping"]["state"] == "mapped")
            found = told_in(lab, "a", tmp_path)
        assert (found["ipv4"], found["router"]) == ([lab.host_address("a")], lab.gateway("a"))
        assert found["mapping"]["external"] == f"{lab.address('a')}:9338" and found["reached"]
        found = told_in(lab, "far", tmp_path)
        assert found["mapping"]["state"] == "needless" and found["reached"]
        found = told_in(lab, "b", tmp_path)
        assert found["mapping"]["state"] == "refused" and lab.gateway("b") in found["mapping"]["sentence"]
        assert not found["reached"]
