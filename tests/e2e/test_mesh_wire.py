"""What two nodes say to each other is unreadable to whoever carries it, and is written down nowhere.

All datagrams between the nodes go through a relay that keeps them: the nodes are bound to different address families,
so that there is no other way from one to the other.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import NodeProcess, StartNode
from tests.e2e.meshes import SMALL, mesh_of, until_hosts
from tests.e2e.relayed import invite_through, relay_to
from tests.e2e.waiting import eventually
from tests.lab.rogue_peer import what_it_says
from tests.lab.udp_relay import UdpRelay

pytestmark = pytest.mark.engine

CANARY = "xylophonequartz"
"""Stands in the prompt, and nowhere else in the world."""
MESH = "wisteriamesh"
NAME = "tangerinenode"


class Pair:
    """A node that serves, a client that asks it, and all that has passed between them."""

    def __init__(self, server: NodeProcess, asker: NodeProcess, relay: UdpRelay, token: str) -> None:
        self.server = server
        self.asker = asker
        self.relay = relay
        self.token = token

    @property
    def wire(self) -> bytes:
        """Every byte so far, in both directions."""
        return b"\n".join(self.relay.recorded)


@pytest.fixture(scope="module")
def pair(start_shared_node: StartNode) -> Iterator[Pair]:
    with relay_to(start_shared_node, "--model", "demo", record=True, mesh_name=MESH, name=NAME) as (server, relay):
        token = invite_through(server, relay)
        asker = start_shared_node("--client", "--join", token, "--name", "apricotnode", environment=SMALL)
        until_hosts(asker, {"demo": 1})
        yield Pair(server, asker, relay, token)
        asker.end()
        server.end()


def ask(node: NodeProcess, **changes: Any) -> bytes:
    """The whole answer, as it comes, to a prompt with the canary in it."""
    system = {"role": "system", "content": CANARY}
    body = {"model": "demo", "messages": [system, {"role": "user", "content": "count from 1 to 40"}], **changes}
    asked = urllib.request.Request(
        f"{node.base_url}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(asked, timeout=30) as answer:
        return bytes(answer.read())


def test_there_is_no_other_way_between_them(pair: Pair) -> None:
    """Otherwise the relay would prove nothing."""
    before = len(pair.wire)
    answer = json.loads(ask(pair.asker))["choices"][0]["message"]["content"]
    assert answer and len(pair.wire) > before + len(answer)
    (peer,) = mesh_of(pair.asker)["peers"]
    assert peer["address"] == "{}:{}".format(*pair.relay.address)


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
def test_wire_shows_neither_prompt_nor_answer_nor_names(pair: Pair, stream: bool) -> None:
    answer = ask(pair.asker, stream=stream, max_tokens=60)
    invite = what_it_says(pair.token)
    secrets = {
        "prompt": CANARY.encode(),
        "question": b"count from 1",
        "model": b'"demo"',
        "path": b"/v1/chat/completions",
        "header": b"HTTP/1.1",
        "mesh name": MESH.encode(),
        "server's name": NAME.encode(),
        "asker's name": b"apricotnode",
        "invite": pair.token.encode(),
        "invite's id": invite.id,
        "mesh id": invite.mesh,
        "server's id": invite.issuer,
        "asker's id": bytes.fromhex(pair.asker.status()["node"]["id"]),
    }
    if not stream:
        said = json.loads(answer)["choices"][0]["message"]["content"].encode()
        assert len(said) > 12
        secrets["answer"] = said[:12]
    wire = pair.wire
    assert len(wire) > 10_000
    assert [what for what, secret in secrets.items() if secret in wire] == []


def test_pieces_of_the_secrets_are_not_there_either(pair: Pair) -> None:
    """Ciphertext holds a given four bytes by chance; eight of the prompt it does not."""
    ask(pair.asker, stream=True)
    wire, prompt = pair.wire, f"{CANARY} count from 1 to 40".encode()
    assert not any(prompt[at : at + 8] in wire for at in range(len(prompt) - 8))


def test_what_is_readable_is_found(pair: Pair) -> None:
    """The head of a first QUIC packet is in the clear: so the relay has seen the beginning, and the search can find."""
    first = pair.relay.recorded[0]
    assert first[0] & 0xC0 == 0xC0 and first[1:5] == b"\0\0\0\1"
    assert first[:16] in pair.wire and first[-16:] in pair.wire


@pytest.mark.parametrize("which", ["server", "asker"])
def test_prompt_and_invite_are_written_down_nowhere(pair: Pair, which: str) -> None:
    ask(pair.asker)
    node: NodeProcess = getattr(pair, which)
    eventually(lambda: pair.server.status()["requests"]["active"] == 0)
    files = [file for file in node.home.rglob("*") if file.is_file()]
    assert files
    found = {
        (file.relative_to(node.home), secret)
        for file in files
        for secret in (CANARY, pair.token, "count from 1 to 40")
        if secret.encode() in file.read_bytes()
    }
    assert found == set()
    for path in ("/api/status", "/api/problems", "/metrics"):
        try:
            with urllib.request.urlopen(f"{node.console_url}{path}", timeout=10) as answer:
                shown = answer.read()
        except urllib.error.HTTPError as refusal:
            shown = refusal.read()
        assert CANARY.encode() not in shown and pair.token.encode() not in shown


def test_logs_hold_no_prompt(pair: Pair) -> None:
    """`meshnode logs` is what people send to others."""
    ask(pair.asker)
    for node in (pair.server, pair.asker):
        shown = node.command("logs")
        assert CANARY not in shown.stdout + shown.stderr and pair.token not in shown.stdout + shown.stderr


def test_key_files_are_the_owners_alone(pair: Pair) -> None:
    for node in (pair.server, pair.asker):
        assert not [path for path in _everything(node.home / "mesh") if path.stat().st_mode & 0o077]


def _everything(folder: Path) -> list[Path]:
    found = [folder, *folder.rglob("*")]
    assert len(found) > 1
    return found
