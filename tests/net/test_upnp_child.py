"""The program that talks UPnP, in a process of its own as it is used, with a device that the test makes up."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from meshnode.net import upnp_child
from tests.net.fake_igd import FakeIgd, igd

FAR_OFF = "http://192.0.2.1:80/ctl"


@pytest.fixture
def device() -> Iterator[FakeIgd]:
    with igd() as fake:
        yield fake


def order(device: FakeIgd, do: str = "map", **more: Any) -> dict[str, Any]:
    facts = {"url": device.url, "own": "127.0.0.1", "port": 9337, "external_port": 9337, "lifetime_s": 7200}
    return {"do": do, **facts, **more}


def carry_out(given: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, "-I", upnp_child.__file__]
    done = subprocess.run(command, input=json.dumps(given), capture_output=True, text=True, timeout=30)
    return dict(json.loads(done.stdout))


def test_a_mapping(device: FakeIgd) -> None:
    assert carry_out(order(device)) == {"host": "11.7.1.2", "external_port": 9337, "lifetime_s": 7200}
    made = device.mappings[9337]
    assert (made["NewInternalClient"], made["NewInternalPort"], made["NewProtocol"]) == ("127.0.0.1", "9337", "UDP")
    assert made["NewLeaseDuration"] == "7200"
    assert carry_out(order(device, "unmap")) == {}
    assert device.mappings == {}


def test_looking_changes_nothing(device: FakeIgd) -> None:
    assert carry_out(order(device, "look")) == {"host": "11.7.1.2"}
    assert device.mappings == {}


def test_a_router_that_knows_no_leases(device: FakeIgd) -> None:
    """Error 725: it maps for ever or not at all."""
    device.only_permanent = True
    answer = carry_out(order(device))
    assert answer["lifetime_s"] == upnp_child.PERMANENT_LIFETIME_S
    assert device.mappings[9337]["NewLeaseDuration"] == "0"


def test_a_port_that_another_machine_has(device: FakeIgd) -> None:
    """Error 718: the next one."""
    device.taken = {9337}
    answer = carry_out(order(device))
    assert answer["external_port"] != 9337
    assert list(device.mappings) == [answer["external_port"]]


@pytest.mark.parametrize(("code", "words"), [(501, "Failed"), (606, "authorized"), (718, "Conflict")])
def test_refusals(code: int, words: str, device: FakeIgd) -> None:
    device.refusal = code
    answer = carry_out(order(device))
    assert words.lower() in answer["error"].lower()
    assert len(device.asked) < 10


@pytest.mark.parametrize("where", ["control", "base"])
def test_a_description_that_leads_elsewhere(where: str, device: FakeIgd) -> None:
    """Nobody is asked there."""
    if where == "control":
        device.control = FAR_OFF
    else:
        device.base = f"<URLBase>{FAR_OFF}</URLBase>"
    answer = carry_out(order(device))
    assert answer["error"] == "its description leads to another machine"
    assert device.mappings == {}


def test_a_description_that_has_moved(device: FakeIgd) -> None:
    with igd() as other:
        device.moved_to = other.url
        assert "error" in carry_out(order(device))
        assert other.asked == []


BOMB = (
    '<?xml version="1.0"?><!DOCTYPE b [<!ENTITY a0 "ha">'
    + "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 50}">' for n in range(1, 12))
    + "]><root><device><deviceType>&a11;</deviceType></device></root>"
)


@pytest.mark.parametrize(
    "description",
    [b"", b"\0" * 100_000, b"<" * 100_000, b"<a>" * 100_000, BOMB.encode(), b"<root" + b" a='1'" * 100_000],
    ids=["empty", "zeros", "brackets", "deep", "bomb", "attributes"],
)
def test_descriptions_that_are_none(description: bytes, device: FakeIgd) -> None:
    device.description = description
    assert "error" in carry_out(order(device))
    assert device.mappings == {}


@pytest.mark.parametrize("host", ["", "x" * 5000, "<b>", "1.2.3.4.5"])
def test_an_outside_that_is_anything_is_left_to_the_reader(host: str, device: FakeIgd) -> None:
    device.outside = host
    answer = carry_out(order(device, "look"))
    assert len(json.dumps(answer)) < 1000


def test_nobody_is_there(device: FakeIgd) -> None:
    assert carry_out(order(device, url="http://127.0.0.1:1/none"))["error"]


class Puppet:
    """A miniupnpc.UPnP whose device lies."""

    def __init__(self, control: str) -> None:
        self._control = control

    def selectigd(self, _: str) -> str:
        return self._control


@pytest.mark.parametrize("control", ["https://127.0.0.1/ctl", "http://127.0.0.2/ctl", "http://[::1]/ctl", "/ctl", ""])
def test_only_the_machine_that_described_itself_is_asked(control: str) -> None:
    with pytest.raises(ValueError, match="another machine"):
        upnp_child.carry_out({"do": "map", "url": "http://127.0.0.1:5000/x"}, Puppet(control))
