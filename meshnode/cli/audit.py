"""Commands that look at the audit log: show, verify, export. They read the files, so no node needs to run."""

from __future__ import annotations

import json
import time
from typing import Any

import click

from meshnode.audit_reading import Verified, last_records, records, verify
from meshnode.cli.render import command_errors, emit, say, table, write_line
from meshnode.config import find_places
from meshnode.errors import AuditBroken

NODE_DIGITS = 10
MOST_SHOWN = 1000


@click.group()
def audit() -> None:
    """Every request that went to a stranger, and every stranger that was served. Never a prompt or an answer."""


@audit.command()
@click.option("-n", "--lines", default=20, show_default=True, type=click.IntRange(1, MOST_SHOWN), help="how many")
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
@command_errors
def show(lines: int, as_json: bool) -> None:
    """The last records, the newest last."""
    found = list(reversed(last_records(find_places().home, lines)))
    if as_json:
        emit({"records": found})
    elif found:
        table(
            ["WHEN", "WHAT", "NODE", "MODEL", "TOKENS IN", "OUT", "OUTCOME", "VERDICT", "REQUEST"],
            [_row(record) for record in found],
        )
    else:
        say("nothing went to strangers and nothing came from them so far")


def _row(record: dict[str, Any]) -> list[str]:
    def text(name: str) -> str:
        value = record.get(name)
        return "-" if value is None or value == "" else str(value)

    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record["at"]))
    outcome = text("reason") if record["kind"] in ("broken", "repaired") else text("outcome")
    return [
        *(when, str(record["kind"]), text("node")[:NODE_DIGITS], text("model")),
        *(text("tokens_in"), text("tokens_out"), outcome, text("verdict"), text("request")),
    ]


@audit.command("verify")
@click.option("--hash", "kept", default="", help="of a record, as it was written down once: it must still be there")
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
@command_errors
def verify_log(kept: str, as_json: bool) -> None:
    """Check that no record was changed, removed, inserted or moved; the number and hash of the last one."""
    found = verify(find_places().home, kept.strip().lower())
    if as_json:
        emit(found.as_dict())
    else:
        _tell(found)
    if found.findings:
        first = found.findings[0]
        if as_json:
            raise SystemExit(AuditBroken.exit_code)
        raise AuditBroken(f"{first.file}, line {first.line}: {first.text}")


def _tell(found: Verified) -> None:
    for finding in found.findings:
        write_line(f"{finding.file}, line {finding.line}: {finding.text}")
    if found.findings:
        return
    records, files = _count(found.records, "record"), _count(len(found.files), "file")
    write_line(f"{records} in {files}, none changed, removed or moved")
    if found.records:
        write_line(f"the last one is number {found.head.count - 1}, with the hash {found.head.digest}")
        say("keep that hash elsewhere, for `meshnode audit verify --hash`: a log that is written anew does not have it")
    if found.torn_bytes:
        say(f"{found.torn_bytes} bytes of an unfinished line stand at the end; the next start of the node removes them")


@audit.command()
@click.option("--kind", default="", help="only records of this kind, such as served or asked")
@click.option("--after", default=-1, type=int, help="only records with a greater number")
@command_errors
def export(kind: str, after: int) -> None:
    """Every record as a line of JSON on stdout, the oldest first."""
    for record in records(find_places().home):
        if record["n"] > after and kind in ("", record["kind"]):
            click.echo(json.dumps(record))


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
