"""The specification: what is generated is current, another language agrees with every vector, documents say it all."""

import asyncio
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from meshnode.discovery import pairing
from meshnode.settlement import keys, typed_data
from meshnode.wire import schema
from meshnode.wire.messages import MESSAGES, OPENINGS, PairConfirm
from meshnode.wire.registry import Close, LeaseCode, MessageId, PayCode, Reset, StatementKind, StreamType
from meshnode.wire.values import WireError

ROOT = Path(__file__).parent.parent
PROTOCOL = ROOT / "protocol"
DOCUMENTS = sorted(PROTOCOL.glob("[0-9][0-9]-*.md"))
VECTORS = sorted((PROTOCOL / "vectors").glob("*.json"))
REGISTRY = tomllib.loads((PROTOCOL / "registry.toml").read_text("utf-8"))


def text(name: str) -> str:
    return (PROTOCOL / name).read_text("utf-8")


def load(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return content


# --- what is generated ------------------------------------------------------------------------------------------


def test_registry_schemas_and_vectors_are_what_they_follow_from() -> None:
    command = [sys.executable, str(PROTOCOL / "generate.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


def test_a_change_would_be_noticed(tmp_path: Path) -> None:
    """`--check` compares: with one digit changed in a copy it fails, and it writes nothing."""
    shutil.copytree(PROTOCOL, tmp_path / "protocol", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "meshnode" / "wire").mkdir(parents=True)
    shutil.copy(ROOT / "meshnode" / "wire" / "registry.py", tmp_path / "meshnode" / "wire" / "registry.py")
    changed = tmp_path / "protocol" / "vectors" / "values.json"
    changed.write_text(changed.read_text("utf-8").replace("cdffff", "cdfffe", 1), "utf-8")
    command = [sys.executable, str(tmp_path / "protocol" / "generate.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 1
    assert "values.json" in done.stderr
    assert "cdfffe" in changed.read_text("utf-8")


@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.stem)
def test_vectors_are_at_least_as_often_invalid_as_valid(path: Path) -> None:
    content = load(path)
    assert len(content["invalid"]) >= len(content["valid"]) > 4
    codes = {code.name.lower() for code in Close}
    assert {case["code"] for case in content["invalid"]} <= codes
    told = [(case.get("message"), case["comment"], case.get("text")) for case in content["invalid"]]
    assert len(set(told)) == len(told), "two cases with one name"


def test_every_message_has_its_schema() -> None:
    for number, shape in MESSAGES.items():
        found = load(PROTOCOL / "schema" / f"message-{MessageId(number).name.lower()}.json")
        assert found["id"] == number
        assert {name: found[name] for name in ("title", "type", "properties", "required")} == schema.describe(shape)
    for kind, shape in OPENINGS.items():
        found = load(PROTOCOL / "schema" / f"stream-{StreamType(kind).name.lower()}.json")
        assert found["stream"] == kind and found["properties"] == schema.describe(shape)["properties"]
    shapes = len(MESSAGES) + len(OPENINGS) + len(StatementKind) + 6
    assert len(list((PROTOCOL / "schema").glob("*.json"))) == shapes


# --- another language ---------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node 18 or later, to run the decoder in JavaScript")
def test_the_decoder_in_javascript_agrees_with_every_vector() -> None:
    command = ["node", str(PROTOCOL / "examples" / "check.mjs")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    decoded = [path for path in VECTORS if path.stem != "stream-headers"]
    cases = sum(len(load(path)["valid"]) for path in decoded)
    cases += sum(len(load(path)["invalid"]) for path in decoded if path.stem != "pairing")
    assert done.stdout == f"{cases} cases, 0 wrong\n"


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node 18 or later, to run the decoder in JavaScript")
def test_the_decoder_in_javascript_would_notice(tmp_path: Path) -> None:
    """A valid vector among the invalid ones, and the other way round, are both reported."""
    shutil.copytree(PROTOCOL, tmp_path / "protocol", ignore=shutil.ignore_patterns("__pycache__"))
    path = tmp_path / "protocol" / "vectors" / "statements.json"
    content = load(path)
    content["invalid"][0]["hex"] = content["valid"][0]["hex"]
    content["valid"][1]["hex"] = content["invalid"][1]["hex"]
    path.write_text(json.dumps(content), "utf-8")
    command = ["node", str(tmp_path / "protocol" / "examples" / "check.mjs")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "accepted" in done.stderr
    assert "refused" in done.stderr
    assert done.stdout.endswith(" 2 wrong\n")


# --- pairing ------------------------------------------------------------------------------------------------------


def host_takes(case: dict[str, Any]) -> pairing._Secret:
    """What the host of a code does with a guest's message and proof, with the scalar of the case."""
    secret = pairing._Secret(pairing.parse_code(case["pairing_code"]))
    asyncio.run(secret.start())
    spake = secret._spake
    spake.xy_scalar = int.from_bytes(bytes.fromhex(case["host_scalar"]), "little")
    spake.xy_elem = spake.params.group.Base.scalarmult(spake.xy_scalar)
    spake.compute_outbound_message()
    host, guest, exporter = (bytes.fromhex(case[name]) for name in ("host", "guest", "exporter"))
    asyncio.run(secret.finish(bytes.fromhex(case["guest_message"]), host, guest, exporter))
    secret.check(PairConfirm(bytes.fromhex(case["guest_proof"])), guest)
    return secret


@pytest.mark.parametrize(
    "case", load(PROTOCOL / "vectors" / "pairing.json")["valid"], ids=lambda case: case["pairing_code"]
)
def test_pairing(case: dict[str, Any]) -> None:
    assert host_takes(case).proof(bytes.fromhex(case["host"])).hex() == case["host_proof"]


@pytest.mark.parametrize(
    "case", load(PROTOCOL / "vectors" / "pairing.json")["invalid"], ids=lambda case: case["comment"]
)
def test_no_pairing(case: dict[str, Any]) -> None:
    with pytest.raises(pairing.PairingRefused) as caught:
        host_takes(case)
    assert caught.value.close_code == Close[case["code"].upper()]


# --- vouchers -----------------------------------------------------------------------------------------------------


def voucher_counts(case: dict[str, Any]) -> tuple[str, str]:
    """(channel id, digest) of a voucher or a question for a refund; WireError where its authorizer has not signed."""
    config, hub = case["config"], bytes.fromhex(case["hub"])
    members = [bytes.fromhex(value) if isinstance(value, str) else value for value in config.values()]
    channel = typed_data.channel_id(typed_data.ChannelConfig(*members), case["chain"], hub)
    if "cumulative" in case:
        digest = typed_data.voucher_digest(channel, case["cumulative"], case["chain"], hub)
    else:
        digest = typed_data.refund_request_digest(channel, case["nonce"], case["amount"], case["chain"], hub)
    authorizer = bytes.fromhex(config["payer_authorizer"])
    if not keys.Verifier(authorizer).verify(digest, bytes.fromhex(case["signature"])):
        raise WireError("signed by another")
    return channel.hex(), digest.hex()


@pytest.mark.parametrize(
    "case", load(PROTOCOL / "vectors" / "vouchers.json")["valid"], ids=lambda case: case["comment"]
)
def test_vouchers(case: dict[str, Any]) -> None:
    assert voucher_counts(case) == (case["channel"], case["digest"])


@pytest.mark.parametrize(
    "case", load(PROTOCOL / "vectors" / "vouchers.json")["invalid"], ids=lambda case: case["comment"]
)
def test_no_vouchers(case: dict[str, Any]) -> None:
    with pytest.raises(WireError):
        voucher_counts(case)


# --- the documents --------------------------------------------------------------------------------------------------


def test_the_index_names_every_document_and_file_of_vectors() -> None:
    readme = text("README.md")
    for path in DOCUMENTS:
        assert f"]({path.name})" in readme
    for path in VECTORS:
        assert f"`{path.name}`" in readme
    assert [path.name[:2] for path in DOCUMENTS] == [f"{number:02}" for number in range(1, len(DOCUMENTS) + 1)]


@pytest.mark.parametrize("path", [*DOCUMENTS, PROTOCOL / "README.md"], ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    content = path.read_text("utf-8")
    for target in re.findall(r"\]\(([^)]+)\)", content):
        file, _, anchor = target.partition("#")
        found = path if not file else PROTOCOL / file
        assert found.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", found.read_text("utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}
            assert anchor in anchors, target


def test_lines_of_the_documents_are_no_longer_than_those_of_the_code() -> None:
    for path in DOCUMENTS:
        long = [line for line in path.read_text("utf-8").splitlines() if len(line) > 120 and not line.startswith("| ")]
        assert long == [], path.name


def test_every_message_is_explained_under_its_number() -> None:
    content = text("03-messages.md")
    for message in MessageId:
        name = message.name.lower()
        titled = re.search(rf"\b{name} \({int(message)}\)", content)
        listed = re.search(rf"^\| {int(message)} \| {name} \|", content, re.MULTILINE)
        assert titled or listed, name


def test_every_member_of_a_message_is_named_with_its_key() -> None:
    content = text("03-messages.md")
    for number, shape in MESSAGES.items():
        for key, member in schema.describe(shape)["properties"].items():
            assert f"`{member['title']} ({key})`" in content, f"{MessageId(number).name}: {member['title']}"


def test_every_kind_of_statement_is_explained() -> None:
    content = text("04-membership.md")
    for kind in StatementKind:
        assert re.search(rf"^\| {int(kind)} \| {kind.name.lower()} \|", content, re.MULTILINE), kind.name


def test_every_code_stands_in_its_table() -> None:
    content = text("01-transport.md")
    for section, enum in (("close", Close), ("reset", Reset)):
        for code in enum:
            name = code.name.lower()
            row = re.search(rf"^\| 0x{int(code):x} \| `{name}` \| ([^|]+) \|", content, re.MULTILINE)
            assert row, name
            assert row[1].startswith(REGISTRY[section][name]["text"]), name


def test_every_reason_for_the_end_of_a_lease_stands_in_its_table() -> None:
    content = text("09-splits.md")
    for code in LeaseCode:
        row = re.search(rf"^\| {int(code)} \| `{code.name.lower()}` \| ([^|]+) \|", content, re.MULTILINE)
        assert row and row[1].startswith(REGISTRY["lease"][code.name.lower()]["text"]), code.name


def test_every_reason_for_a_refused_payment_stands_in_its_table() -> None:
    content = text("15-payments.md")
    for code in PayCode:
        row = re.search(rf"^\| {int(code)} \| `{code.name.lower()}` \| ([^|]+) \|", content, re.MULTILINE)
        assert row and row[1].startswith(REGISTRY["pay"][code.name.lower()]["text"]), code.name


def test_every_limit_is_explained() -> None:
    documents = "\n".join(path.read_text("utf-8") for path in DOCUMENTS)
    numbers = re.findall(r"^(\w+) = (\d+)$", text("registry.toml").partition("[limits]")[2], re.MULTILINE)
    assert len(numbers) == len(REGISTRY["limits"])
    described = json.dumps([load(path) for path in (PROTOCOL / "schema").glob("*.json")])
    for name, value in numbers:
        assert f"`{name}`" in documents or re.search(rf": {value}\b", described), name
