"""Vectors of listings: Nostr events and what they say, or why they are dropped, at a wall time.

The signature of the event (BIP 340) is left out: it has vectors of its own. So that the file can be made in a moment,
a reader of it asks for WORK_BITS of work in place of `listing_work_bits`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from typing import Any

from cases_signed import ALICE, BOB, Key

NOW_S = 1_800_000_000
WORK_BITS = 8
PUBLISHER = hashlib.sha256(b"meshnode vectors publisher").digest()
NAME = "meshnode"
CODE = "protocol_error"


def mesh_of(name: str) -> str:
    """The id of the open mesh of a canonical name."""
    return hashlib.blake2s(b"meshnode open mesh\0" + name.encode()).hexdigest()


def files() -> dict[str, dict[str, Any]]:
    """The file of this layer."""
    return {
        "listings.json": {
            "about": f"events with listings, at the wall time `now_s`, {WORK_BITS} bits of work: 12-public.md",
            "valid": [_case(comment, made) for comment, made in _valid()],
            "invalid": [
                {"comment": comment, "now_s": NOW_S, "event": made, "reason": reason, "code": CODE}
                for comment, made, reason in _invalid()
            ],
        }
    }


def _case(comment: str, made: dict[str, Any]) -> dict[str, Any]:
    said = json.loads(made["content"])
    return {
        "comment": comment,
        "now_s": NOW_S,
        "event": made,
        "mesh": said["mesh"],
        "node": said["node"],
        "addresses": [address for entry in said["entries"] for address in entry["addresses"]],
        "models": [model["name"] for model in said.get("models", [])],
    }


def said(**changes: Any) -> dict[str, Any]:
    """What a listing says; a member that is None is left out."""
    plain = {
        "v": 1,
        "mesh": mesh_of(NAME),
        "name": NAME,
        "node": ALICE.public.hex(),
        "entries": [{"node": ALICE.public.hex(), "addresses": ["192.0.2.1:9338"]}],
    }
    return {key: value for key, value in (plain | changes).items() if value is not None}


def content(plain: dict[str, Any] | str, signer: Key = ALICE, created_at: int = NOW_S, purpose: str = "listing") -> str:
    """A listing with its signature."""
    text = plain if isinstance(plain, str) else json.dumps(plain, separators=(",", ":"), ensure_ascii=False)
    about = PUBLISHER + created_at.to_bytes(8, "big") + text.encode()
    return f'{text[:-1]},"sig":"{signer.seal(purpose, about)[:64].hex()}"}}'


def event(
    text: str | None = None,
    *,
    created_at: int = NOW_S,
    expires_at: int | str | None = None,
    kind: int = 30078,
    mesh: str = mesh_of(NAME),
    topics: tuple[str, ...] = ("meshnode", "meshnode-v1"),
    bits: int = WORK_BITS,
    aimed: int | None = None,
) -> dict[str, Any]:
    """An event with so much work behind it, and no more than that."""
    text = content(said(), created_at=created_at) if text is None else text
    tags = [["d", f"meshnode:{mesh}"], *(["t", topic] for topic in topics)]
    if expires_at != "":
        tags.append(["expiration", str(created_at + 180 if expires_at is None else expires_at)])
    for number in itertools.count():
        mined = [*tags, ["nonce", str(number), str(bits if aimed is None else aimed)]]
        array = [0, PUBLISHER.hex(), created_at, kind, mined, text]
        digest = hashlib.sha256(json.dumps(array, separators=(",", ":"), ensure_ascii=False).encode()).digest()
        if 256 - int.from_bytes(digest, "big").bit_length() == bits:
            break
    about = {"pubkey": PUBLISHER.hex(), "created_at": created_at, "kind": kind}
    return {"id": digest.hex(), **about, "tags": mined, "content": text, "sig": "00" * 64}


def _valid() -> list[tuple[str, dict[str, Any]]]:
    entries = [
        {"node": key.public.hex(), "addresses": ["198.51.100.7:1", "[2001:db8::1]:65535", "127.0.0.1:9338"]}
        for key in (ALICE, BOB)
    ]
    priced = {"name": "llama-8b", "price_in": 10**12, "price_out": 600_000}
    models = [{"name": "qwen3-8b", "hash": "0f" * 16, "hosts": 3}, {"name": "demo"}, priced]
    numbers = {"vram_bytes": 1 << 50, "nodes": (1 << 32) - 1, "clients": 63, "max_clients": 64}
    texts = {"wanted": ["llama-70b"], "region": "eu-west", "software": "meshnode", "price": "200000/600000 84532"}
    full = said(entries=entries, models=models, **numbers, **texts)
    longest = content(said(later="x" * (16384 - len(content(said(later=""))))))
    assert len(longest) == 16384
    return [
        ("only what must be there", event()),
        ("everything", event(content(full))),
        ("a member that is not known", event(content(said(later={"deep": [1.5, None]})))),
        ("made a minute ahead of the reader", event(created_at=NOW_S + 60)),
        ("in its last second", event(created_at=NOW_S - 179)),
        ("ends sooner than it must", event(expires_at=NOW_S + 1)),
        ("without the topic of all versions", event(topics=("meshnode-v1",))),
        ("more work than it must have", event(bits=10)),
        ("a name of another script", event(content(said(name="küche", mesh=mesh_of("küche"))), mesh=mesh_of("küche"))),
        ("a price of no known form", event(content(said(price="cheap")))),
        ("a node that is no entry itself", event(content(said(entries=entries[1:])))),
        ("the longest", event(longest)),
    ]


def _invalid() -> list[tuple[str, dict[str, Any], str]]:
    good = event()
    body = json.dumps(said(), separators=(",", ":"))
    wrong: list[tuple[str, dict[str, Any], str]] = [
        ("another content under its id", good | {"content": content(said(nodes=2))}, "forged"),
        ("another time under its id", good | {"created_at": NOW_S + 1}, "forged"),
        ("the event of another kind", event(kind=30079), "wrong_tag"),
        ("without the topic of this version", event(topics=("meshnode",)), "wrong_tag"),
        ("a minute and a second ahead", event(created_at=NOW_S + 61), "future"),
        ("expired this second", event(created_at=NOW_S - 180), "expired"),
        ("expired by its own word", event(expires_at=NOW_S, created_at=NOW_S - 60), "expired"),
        ("without an end", event(expires_at=""), "malformed"),
        ("an end that is no number", event(expires_at="soon"), "malformed"),
        ("an end that is too far ahead", event(expires_at=NOW_S + 181), "malformed"),
        ("an end before its beginning", event(expires_at=NOW_S), "malformed"),
        ("too little work", event(bits=WORK_BITS - 1), "no_work"),
        ("luck in place of work", event(aimed=WORK_BITS - 1), "no_work"),
        ("signed by another than its node", event(content(said(), BOB)), "impostor"),
        ("signed for another purpose", event(content(said(), purpose="invite")), "impostor"),
        ("signed for another time", event(content(said(), created_at=NOW_S - 1)), "impostor"),
        ("changed after it was signed", event(content(said()).replace("192.0.2.1", "192.0.2.2")), "impostor"),
        ("one byte too long", event(content(said(later="x" * 16384))[-16385:]), "too_large"),
        ("named as another mesh", event(mesh=mesh_of("another")), "malformed"),
    ]
    texts: dict[str, str] = {
        "nothing": "",
        "without a signature": body,
        "a space behind it": content(said()) + " ",
        "its signature before the end": content(said()).replace("{", '{"sig":"",', 1),
        "a member twice": content(body.replace('"v":1', '"v":1,"v":1')),
        "no JSON": content(body.replace('"v":1', '"v":')),
        "an array": content("[1]"),
    }
    changes: dict[str, dict[str, Any]] = {
        "another version": {"v": 2},
        "no mesh": {"mesh": None},
        "a name that is not that of the mesh": {"name": "another"},
        "a name in another spelling": {"name": "Meshnode"},
        "no entries": {"entries": []},
        "an entry twice": {"entries": said()["entries"] * 2},
        "five entries": {"entries": [{"node": f"{n:064x}", "addresses": ["192.0.2.1:1"]} for n in range(5)]},
        "an entry without addresses": {"entries": [{"node": "00" * 32, "addresses": []}]},
        "a host name in place of an address": {"entries": [{"node": "00" * 32, "addresses": ["relay.example:1"]}]},
        "an address of no node": {"entries": [{"node": "00" * 32, "addresses": ["0.0.0.0:1"]}]},
        "a port that is 0": {"entries": [{"node": "00" * 32, "addresses": ["192.0.2.1:0"]}]},
        "a model without a name": {"models": [{"hosts": 1}]},
        "a model with an escape sequence in its name": {"models": [{"name": "\x1b[2J"}]},
        "a hash of one byte": {"models": [{"name": "m", "hash": "00"}]},
        "a price above the greatest": {"models": [{"name": "m", "price_in": 10**12 + 1}]},
        "a price that is a text": {"models": [{"name": "m", "price_out": "1"}]},
        "a price of 49 characters": {"price": "1" * 49},
        "33 models": {"models": [{"name": "m"}] * 33},
        "17 wishes": {"wanted": ["m"] * 17},
        "more than 1 PiB": {"vram_bytes": (1 << 50) + 1},
        "half a byte": {"vram_bytes": 0.5},
        "a number as a text": {"nodes": "3"},
        "a region of 41 characters": {"region": "x" * 41},
    }
    wrong += [(comment, event(text), "malformed") for comment, text in texts.items()]
    wrong += [(comment, event(content(said(**change))), "malformed") for comment, change in changes.items()]
    return wrong
