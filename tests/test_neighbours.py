"""Neighbours on loopback: machines that pair by a code, and members that find each other, over real QUIC and mDNS."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from meshnode.discovery.mdns import Lan
from meshnode.discovery.pairing import PairingRefused
from meshnode.errors import AlreadyInMesh, BadRequest, MayNotInvite, PairingFailed
from meshnode.identity import ephemeral
from meshnode.mesh.stranger import open_pairing, visit
from meshnode.net.stream import LinkLost
from meshnode.wire.address import Address
from meshnode.wire.registry import Close
from tests.stage import Stage, running, token_of, until

pytestmark = pytest.mark.anyio


def state(stage: Stage) -> tuple[str, str]:
    pairing = stage.facts()["pairing"]
    return pairing["state"], pairing["detail"]


async def test_a_code_and_an_address_make_two_machines_one(tmp_path: Path) -> None:
    async with running(tmp_path / "a", private_mesh_name="home") as a, running(tmp_path / "b") as b:
        assert state(a) == ("none", "")
        shown = await a.meshing.pair(None)
        assert state(a) == ("waiting", "")
        assert 100 < a.facts()["pairing"]["expires_s"] <= shown["expires_s"] <= 120
        joined = await b.meshing.pair(shown["code"].upper(), shown["addresses"][0])
        assert (joined["name"], joined["joined"]) == ("home", True)
        assert joined["mesh"] == a.facts()["id"] == b.facts()["id"]
        await until(lambda: state(a) == ("paired", ""))
        await until(lambda: bool(a.facts()["peers"]))
        (invite,) = a.facts()["invites"]
        assert (invite["uses"], invite["uses_left"]) == (1, 0)


async def test_the_local_network_finds_who_shows_the_code(tmp_path: Path) -> None:
    async with (
        running(tmp_path / "a", private_mesh_name="home", lan="on") as a,
        running(tmp_path / "other", lan="on") as other,
        running(tmp_path / "b", lan="on") as b,
    ):
        await other.meshing.pair(None)
        shown = await a.meshing.pair(None)
        assert (await b.meshing.pair(shown["code"]))["name"] == "home"
        assert state(other)[0] == "waiting", "a code with another number is not spent"


async def test_a_wrong_word_spends_the_code(tmp_path: Path) -> None:
    async with running(tmp_path / "a") as a, running(tmp_path / "b") as b:
        shown = await a.meshing.pair(None)
        nameplate, first, second = shown["code"].split("-")
        wrong = f"{nameplate}-{second}-{first}" if first != second else f"{nameplate}-{first}-abacus"
        with pytest.raises(PairingRefused, match="wrong"):
            await b.meshing.pair(wrong, shown["addresses"][0])
        await until(lambda: state(a)[0] == "failed")
        with pytest.raises(PairingFailed, match="open"):
            await b.meshing.pair(shown["code"], shown["addresses"][0])
        assert a.facts()["id"] != b.facts()["id"]
        assert not a.facts()["invites"]


async def test_whoever_has_no_mesh_takes_the_invite_of_the_other(tmp_path: Path) -> None:
    async with running(tmp_path / "a") as a, running(tmp_path / "b", private_mesh_name="theirs") as b:
        vault = a.meshing._vault
        assert vault is not None and a.meshing._mesh is not None
        await a.meshing._mesh.leave()
        vault.forget()
        assert a.meshing._neighbours is not None
        shown = await a.meshing._neighbours.show()
        joined = await b.meshing.pair(shown["code"], shown["addresses"][0])
        assert (joined["name"], joined["joined"]) == ("theirs", False)
        await until(lambda: a.meshing.facts() is not None and a.facts()["name"] == "theirs")


async def test_while_no_code_is_shown_strangers_are_sent_away_at_once(tmp_path: Path) -> None:
    async with running(tmp_path) as stage:
        address = Address.parse(stage.facts()["addresses"][0])
        async with visit(ephemeral(), [address], host="127.0.0.1") as link:
            with pytest.raises(LinkLost) as closed:
                await open_pairing(link).read(1)
        assert closed.value.code == Close.PAIRING_CLOSED


async def test_who_may_not_invite_shows_no_code(tmp_path: Path) -> None:
    async with running(tmp_path / "a") as a, running(tmp_path / "b", join=await token_of(a)) as b:
        with pytest.raises(MayNotInvite):
            await b.meshing.pair(None)


async def test_a_mesh_with_others_in_it_is_not_given_up(tmp_path: Path) -> None:
    async with (
        running(tmp_path / "a") as a,
        running(tmp_path / "b", join=await token_of(a)),
        running(tmp_path / "c") as c,
    ):
        await until(lambda: bool(a.facts()["peers"]))
        shown = await c.meshing.pair(None)
        with pytest.raises(AlreadyInMesh) as refused:
            await a.meshing.pair(shown["code"], shown["addresses"][0])
        assert "meshnode pair" in refused.value.fix
        assert state(c)[0] == "waiting"


@pytest.mark.parametrize("at", ["studio:9337", "192.0.2.7", "192.0.2.7:0", "[fe80::1%eth0]:9337"])
async def test_an_address_must_be_one(tmp_path: Path, at: str) -> None:
    async with running(tmp_path) as stage:
        with pytest.raises(BadRequest):
            await stage.meshing.pair("7-amber-falcon", at)


async def test_without_the_local_network_an_address_is_needed(tmp_path: Path) -> None:
    async with running(tmp_path) as stage:
        with pytest.raises(PairingFailed) as refused:
            await stage.meshing.pair("7-amber-falcon")
        assert "--at" in refused.value.fix


async def test_nobody_shows_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshnode.neighbours.FIND_S", 0.2)
    async with running(tmp_path, lan="on") as stage:
        await until(lambda: stage.meshing._neighbours is not None and stage.meshing._neighbours._lan is not None)
        with pytest.raises(PairingFailed, match="no machine"):
            await stage.meshing.pair("7-amber-falcon")


async def test_trouble_on_the_local_network_costs_neither_pairing_nor_an_orderly_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = asyncio.Event()

    async def broken(*_: object, **__: object) -> Lan:
        tried.set()
        raise ZeroDivisionError("of a library")

    monkeypatch.setattr(Lan, "open", broken)
    async with running(tmp_path / "a", lan="on") as a, running(tmp_path / "b") as b:
        await tried.wait()
        shown = await a.meshing.pair(None)
        assert (await b.meshing.pair(shown["code"], shown["addresses"][0]))["joined"]


async def test_a_goodbye_that_fails_does_not_keep_the_mesh_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    close = Lan.close

    async def broken(lan: Lan) -> None:
        await close(lan)
        raise ZeroDivisionError("of a library")

    monkeypatch.setattr(Lan, "close", broken)
    async with running(tmp_path / "a") as a:
        async with running(tmp_path / "b", lan="on", join=await token_of(a)) as b:
            await until(lambda: b.meshing._neighbours is not None and b.meshing._neighbours._lan is not None)
            await until(lambda: bool(a.facts()["peers"]))
        await until(lambda: [peer["state"] for peer in a.facts()["peers"]] == ["left"], 3)


async def test_members_with_new_addresses_find_each_other(tmp_path: Path) -> None:
    async with running(tmp_path / "a", lan="on") as a, running(tmp_path / "b", join=await token_of(a)):
        await until(lambda: bool(a.facts()["peers"]))
    # Both come back at ports that the other one has never heard of.
    async with running(tmp_path / "a", lan="on") as a, running(tmp_path / "b", lan="on") as b:
        await until(lambda: a.facts()["state"] == b.facts()["state"] == "joined")
