"""`meshnode discover` as a person and as a script meet it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from meshnode.cli.discover import discover, show_discovery
from meshnode.core.choosing import Candidate, Probe
from meshnode.discovering import open_relays
from meshnode.finding import Finding
from tests.lab.nostr_relays import start_embedded, url_of
from tests.wire.listing_samples import ALICE, BOB, listing
from tests.wire.samples import Signer


@pytest.fixture
def relay() -> Iterator[str]:
    """An empty relay, which runs in threads of its own."""
    relay = asyncio.run(start_embedded())
    yield asyncio.run(url_of(relay))
    relay.shutdown()


def publish(url: str, folder: Path, node: Signer = ALICE, **changes: object) -> None:
    async def run() -> None:
        relays = open_relays([url], folder / f"{node.node.hex()[:8]}.key")
        (report,) = await relays.publish(listing(node, **changes), node.sign)
        assert report.state == "ok"
        await relays.close()

    asyncio.run(run())


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> dict[str, Probe]:
    """What meshes show, by their names; the others do not answer."""
    found: dict[str, Probe] = {}

    async def probe(_: Finding, candidate: Candidate) -> Probe | None:
        return found.get(candidate.name)

    monkeypatch.setattr(Finding, "probe", probe)
    return found


def run(home: Path, relays: str, *arguments: str) -> Result:
    environment = {"MESHNODE_HOME": str(home), "MESHNODE_NOSTR_RELAY": relays, "MESHNODE_BIND_HOST": "127.0.0.1"}
    return CliRunner(env=environment | {"NO_COLOR": "1"}).invoke(discover, arguments)


SHOWN = Probe(0.0123, 3, 2, frozenset({"demo", bytes(range(16)).hex()}), 24_000_000_000, True)


def test_a_table_of_meshes_and_a_line_for_each_relay(relay: str, tmp_path: Path, answers: dict[str, Probe]) -> None:
    publish(relay, tmp_path, name="home", region="eu-west")
    publish(relay, tmp_path, BOB, name="other")
    answers["home"] = SHOWN
    result = run(tmp_path, f"{relay},ws://127.0.0.1:9", "--region", "eu-west")
    assert result.exit_code == 0, result.stderr
    header, *rows = result.stdout.splitlines()
    assert header.split() == ["NAME", "MODELS", "NODES", "FREE", "MEMORY", "PRICE", "REGION", "RTT", "SCORE", "WHY"]
    assert rows[0].split()[:8] == ["home", "demo", "3", "2", "24", "GB", "free", "eu-west"]
    assert rows[0].endswith("1 model served")
    assert rows[1].split()[:6] == ["other", "(demo)", "(3)", "-", "(24", "GB)"]
    assert rows[1].endswith("nobody answers")
    lines = result.stderr.splitlines()
    assert lines[0].startswith(f"{relay}: ok, 2 listings (")
    assert lines[1].startswith("ws://127.0.0.1:9: down, ")


def test_json_is_one_object(relay: str, tmp_path: Path, answers: dict[str, Probe]) -> None:
    publish(relay, tmp_path, name="home")
    answers["home"] = SHOWN
    result = run(tmp_path, relay, "--json", "--model", "demo", "--min-vram", "8")
    facts = json.loads(result.stdout)
    assert (result.exit_code, result.stderr) == (0, "")
    assert facts["schema"] == 1
    assert [mesh["name"] for mesh in facts["meshes"]] == ["home"]
    assert facts["meshes"][0]["reasons"][0] == "serves demo"
    assert [report["state"] for report in facts["relays"]] == ["ok"]
    assert (facts["dropped"], facts["error"]) == ({}, None)


def test_no_relay(tmp_path: Path) -> None:
    result = run(tmp_path, "ws://127.0.0.1:9")
    assert result.exit_code == 5
    assert result.stdout == ""
    assert "None of the Nostr relays answers" in result.stderr
    assert "(no-nostr-relay)" in result.stderr
    facts = json.loads(run(tmp_path, "ws://127.0.0.1:9", "--json").stdout)
    assert facts["error"]["code"] == "no-nostr-relay"
    assert facts["relays"][0]["state"] == "down"


def test_no_mesh(relay: str, tmp_path: Path) -> None:
    result = run(tmp_path, relay)
    assert result.exit_code == 5
    assert "(no-public-mesh)" in result.stderr
    assert f"{relay}: empty" in result.stderr


def test_a_mesh_that_nobody_answers_for(relay: str, tmp_path: Path) -> None:
    """Asked for real: nobody listens at its entry."""
    publish(relay, tmp_path, name="gone")
    result = run(tmp_path, relay)
    assert result.exit_code == 5
    assert "gone: nobody answers" in result.stderr
    assert result.stdout.splitlines()[1].split()[0] == "gone"


def test_words_of_strangers_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    hostile = "\x1b[2J\u202e\n" + "x" * 500
    listed = {"models": [{"name": hostile, "price_in": 0, "price_out": 600_000}], "nodes": 1, "vram_bytes": 0}
    mesh = {"name": hostile, "region": hostile, "refusal": hostile, "reasons": [], "score": 0}
    relay = {"url": "ws://x", "state": "refused", "text": hostile, "count": 0, "elapsed_s": 0.1}
    show_discovery({"meshes": [mesh | {"listed": listed, "shown": None}], "relays": [relay], "drops": [hostile]})
    told = capsys.readouterr()
    assert (told.out + told.err).replace("\n", "").replace("\u2026", "").isascii()
    assert "\x1b" not in told.out + told.err
    assert len(told.out.splitlines()) == 2


@pytest.mark.parametrize(
    ("prices", "shown"),
    [
        ([(0, 0)], "free"),
        ([(200_000, 600_000)], "$0.20 in, $0.60 out"),
        ([(200_000, 600_000), (0, 0), (1, 0)], "$0.000001 in, $0.00 out, some free"),
        ([], "free"),
    ],
)
def test_what_a_mesh_costs(prices: list[tuple[int, int]], shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    models = [{"name": "m", "price_in": low_in, "price_out": low_out} for low_in, low_out in prices]
    listed = {"models": models, "nodes": 1, "vram_bytes": 0}
    mesh = {"name": "one", "region": "", "refusal": "", "reasons": [], "score": 0, "listed": listed, "shown": None}
    show_discovery({"meshes": [mesh], "relays": [], "drops": []})
    assert shown in capsys.readouterr().out


@pytest.mark.parametrize("amount", ["x", "0", "-1", "8 parsecs"])
def test_an_amount_that_is_none(amount: str, tmp_path: Path) -> None:
    result = run(tmp_path, "ws://127.0.0.1:9", "--min-vram", amount)
    assert result.exit_code == 2
    assert "--min-vram" in result.stderr
