"""Commands by which machines come into a mesh: invite, join, pair. Each asks the node that runs here.

An invite is a secret: it is written to stdout once, alone, and is in no message on stderr.
"""

from __future__ import annotations

import io
import re
import sys
import time
from typing import Any

import click

from meshnode.cli.client import RunningNode, find_node, reported
from meshnode.cli.render import (
    command_errors,
    emit,
    human_seconds,
    human_span,
    printable,
    say,
    table,
    write_line,
)
from meshnode.errors import NodeNotRunning, NotInMesh, PairingFailed

POLL_S = 0.25
JOIN_LIMIT_S = 120.0
"""Every address of an invite is tried, and whoever shows a code is looked for; the node gives up before this."""
UNITS_S = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def to_seconds(text: str) -> int:
    """A length of time such as 30m, 24h or 7d, or plain seconds, in seconds. Raises click.BadParameter."""
    found = re.fullmatch(r"([0-9]{1,9})([smhd]?)", text.strip().lower())
    if found is None or int(found[1]) == 0:
        raise click.BadParameter(f"{text!r} is no length of time: write 30m, 24h, 7d, or a number of seconds")
    return int(found[1]) * UNITS_S[found[2]]


# --- invite ---------------------------------------------------------------------------------------------------


@click.command()
@click.option("--client", is_flag=True, help="for machines that use the models of the mesh and serve none")
@click.option(
    "--ttl",
    type=to_seconds,
    metavar="TIME",
    default="24h",
    show_default=True,
    help="how long it can be used: 30m, 24h, 7d",
)
@click.option("--uses", type=click.IntRange(1), default=5, show_default=True, help="how many machines it adds")
@click.option("--may-invite", is_flag=True, help="those who come with it may invite others")
@click.option("--qr", is_flag=True, help="draw it as a QR code too, on stderr")
@click.option("--list", "listing", is_flag=True, help="show the invites of this node instead")
@click.option("--revoke", "revoked", metavar="ID", help="end an invite instead; the beginning of its id is enough")
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
@click.pass_context
@command_errors
def invite(
    ctx: click.Context,
    client: bool,
    ttl: int,
    uses: int,
    may_invite: bool,
    qr: bool,
    listing: bool,
    revoked: str | None,
    as_json: bool,
) -> None:
    """Print an invite: whoever has it can add machines to this mesh. It stands alone on stdout."""
    given = [name for name in ctx.params if ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE]
    if (listing or revoked is not None) and len(set(given) - {"as_json"}) > 1:
        raise click.UsageError("--list and --revoke go with --json only", ctx)
    if client and may_invite:
        raise click.UsageError("a client-only node cannot invite: --client and --may-invite exclude each other", ctx)
    if listing:
        return _list_invites(find_node(), as_json=as_json)
    if revoked is not None:
        return _revoke(find_node(), revoked, as_json=as_json)
    role = "client" if client else "member"
    wish: dict[str, object] = {"role": role, "ttl_s": ttl, "uses": uses, "may_invite": may_invite}
    made = find_node().call("POST", "/api/invite", wish)
    if as_json:
        emit(made)
    else:
        write_line(made["token"])
    if qr:
        _draw(made["token"])
    if not as_json:
        _explain(made)


def _explain(made: dict[str, Any]) -> None:
    count = "one machine" if made["uses"] == 1 else f"{made['uses']} machines"
    role = "for client-only use" if made["role"] == "client" else "that may serve models"
    rights = " and invite others" if made["may_invite"] else ""
    say(f"adds {count} {role}{rights}; expires in {human_span(made['expires_at'] - time.time())}")
    say(f"  there:      meshnode {'--client ' if made['role'] == 'client' else ''}--join TOKEN")
    say(f"  to end it:  meshnode invite --revoke {made['id']}")


def _draw(token: str) -> None:
    """In capitals, which a QR code packs more densely; an invite means the same in both."""
    import segno

    code = segno.make_qr(token.upper(), error="l", boost_error=False)
    drawn = io.StringIO()
    code.terminal(out=drawn, border=2, compact=True)
    width = code.symbol_size(border=2)[0]
    room = _width_of_stderr()
    if room and width > room:
        say(f"the QR code is {width} columns wide, and this terminal has {room}: make it wider, or its letters smaller")
    else:
        say(drawn.getvalue().rstrip("\n"))


def _width_of_stderr() -> int:
    """Columns of the terminal; 0 where stderr is none."""
    import os

    return os.get_terminal_size(sys.stderr.fileno()).columns if sys.stderr.isatty() else 0


def _list_invites(node: RunningNode, *, as_json: bool) -> None:
    mesh = _mesh(node)
    if mesh is None:
        raise NotInMesh(fix="meshnode join TOKEN, or start the node without --solo")
    invites = mesh["invites"]
    if as_json:
        return emit({"may_invite": mesh["may_invite"], "invites": invites})
    now = time.time()
    rows = [
        [
            item["id"],
            item["role"] + (", may invite" if item["may_invite"] else ""),
            _state(item, now),
            f"{item['uses_left']} of {item['uses']}",
            human_span(item["expires_at"] - now),
        ]
        for item in invites
    ]
    table(["ID", "ROLE", "STATE", "USES LEFT", "EXPIRES IN"], rows)
    if not mesh["may_invite"]:
        say("this node may not invite: ask the one that founded the mesh")
    elif not invites:
        say("no invite is open; meshnode invite makes one")


def _state(item: dict[str, Any], now: float) -> str:
    if item["revoked"]:
        return "revoked"
    if item["expires_at"] <= now:
        return "expired"
    return "open" if item["uses_left"] > 0 else "used up"


def _revoke(node: RunningNode, invite_id: str, *, as_json: bool) -> None:
    ended = node.call("POST", "/api/invite/revoke", {"id": invite_id})
    if as_json:
        return emit(ended)
    say(f"invite {ended['id']} is revoked: it adds nobody any more; machines that came with it stay")


# --- join -----------------------------------------------------------------------------------------------------


@click.command()
@click.argument("token", envvar="MESHNODE_JOIN")
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
@command_errors
def join(token: str, as_json: bool) -> None:
    """Let the running node join the mesh of an invite.

    TOKEN is what `meshnode invite` printed; `-` reads it from stdin and, unlike an argument, shows in no list of
    processes. MESHNODE_JOIN may hold it too.
    """
    try:
        node = find_node()
    except NodeNotRunning as error:
        fix = "start one that joins: meshnode --join TOKEN"
        raise NodeNotRunning(error.detail, fix=fix) from None
    if token == "-":
        from meshnode.cli.serve import pasted_invite

        token = pasted_invite("meshnode invite | meshnode join -")
    if not as_json:
        say("looking for the node that made this invite ...")
    joined = node.call("POST", "/api/join", {"token": token}, timeout_s=JOIN_LIMIT_S)
    if as_json:
        return emit(joined)
    _say_joined(joined["name"], joined=True)


# --- pair -----------------------------------------------------------------------------------------------------


@click.command()
@click.argument("code", nargs=-1)
@click.option("--at", "address", metavar="HOST:PORT", help="where the machine that shows the code is")
@click.option("--json", "as_json", is_flag=True, help="print one JSON object; a new code is not waited for")
@click.pass_context
@command_errors
def pair(ctx: click.Context, code: tuple[str, ...], address: str | None, as_json: bool) -> None:
    """Add a machine by a short code instead of an invite.

    Without CODE, show a new one and wait for the other machine; there, type that code after the same command. A code
    lasts for minutes and one try.
    """
    if code:
        return _enter(find_node(), " ".join(code), address, as_json=as_json)
    if address is not None:
        raise click.UsageError("--at goes with the CODE that the other machine shows", ctx)
    node = find_node()
    before = _mesh_id(_mesh(node))
    shown = node.call("POST", "/api/pair", {})
    if as_json:
        return emit(shown)
    click.echo(click.style(printable(shown["code"]), bold=True))
    say(f"  on the other machine:     meshnode pair {shown['code']}")
    if shown["addresses"]:
        say(f"  if it finds nobody there: meshnode pair {shown['code']} --at {shown['addresses'][0]}")
    say(f"waiting for it, at most {human_seconds(shown['expires_s'])} ... (Ctrl-C ends the waiting, not the code)")
    mesh = _await_guest(node, time.monotonic() + shown["expires_s"])
    _say_joined(mesh["name"], joined=_mesh_id(mesh) != before)


def _enter(node: RunningNode, code: str, address: str | None, *, as_json: bool) -> None:
    body: dict[str, object] = {"code": code, **({"at": address} if address else {})}
    if not as_json:
        say("looking for the machine that shows this code ...")
    paired = node.call("POST", "/api/pair", body, timeout_s=JOIN_LIMIT_S)
    if as_json:
        return emit(paired)
    _say_joined(paired["name"], joined=paired["joined"])


def _say_joined(mesh_name: str, *, joined: bool) -> None:
    who = "joined" if joined else "the other machine joined"
    say(f'{who} "{printable(mesh_name)}"; meshnode peers shows who is there')


def _await_guest(node: RunningNode, ends_at: float) -> dict[str, Any]:
    """Wait until somebody has used the code, which is good until `ends_at` (monotonic seconds); the mesh then.

    Raises PairingFailed when it failed, or nobody came in time.
    """
    try:
        while True:
            mesh = _mesh(node)
            # A node in no mesh tells nothing of the code until it has joined that of its guest.
            found = (mesh["pairing"] or {"state": "none"}) if mesh else {"state": "waiting"}
            if mesh and found["state"] == "paired":
                return mesh
            if found["state"] == "failed":
                raise reported({"message": found["detail"], "code": PairingFailed.code, "fix": PairingFailed.fix})
            if found["state"] != "waiting" or (mesh is None and time.monotonic() > ends_at):
                raise PairingFailed("nobody came while the code was good", fix="for a new one: meshnode pair")
            time.sleep(POLL_S)
    except KeyboardInterrupt:
        say(f"not waiting any more; the code stays good for {human_span(ends_at - time.monotonic())}")
        raise


def _mesh(node: RunningNode) -> dict[str, Any] | None:
    """The `mesh` member of /api/status; None in no mesh."""
    found = node.call("GET", "/api/status")["mesh"]
    return None if found is None else dict(found)


def _mesh_id(mesh: dict[str, Any] | None) -> str:
    return "" if mesh is None else str(mesh["id"])
