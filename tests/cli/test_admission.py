"""invite, join and pair as a person and as a script meet them."""

from __future__ import annotations

import io
import json
import sys
import time
from pathlib import Path
from typing import Any

import click
import pytest

from meshnode.cli import admission
from meshnode.cli.admission import to_seconds
from meshnode.errors import BadRequest, InviteInvalid, PairingFailed, PeerUnreachable
from tests.cli.conftest import Run, ScriptedNode

TOKEN = "mn1" + "a2b3" * 90
HOSTILE = "home\x1b[31m\x9b2J\u202e\nerror: all is lost"


def entry(**changes: Any) -> dict[str, Any]:
    """An invite as the node shows it."""
    made = {
        "id": "5e364df7e9ae15fc",
        "role": "member",
        "expires_at": int(time.time()) + 86400,
        "uses": 5,
        "uses_left": 5,
        "revoked": False,
        "may_invite": False,
    }
    return made | changes


def mesh(**changes: Any) -> dict[str, Any]:
    """As much of the `mesh` member of /api/status as these commands look at."""
    return {
        "id": "ab" * 32,
        "name": "home",
        "role": "member",
        "may_invite": True,
        "invites": [],
        "pairing": None,
    } | changes


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "POLL_S", 0)


# --- lengths of time ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30m", 1800), ("24h", 86400), ("7d", 604_800), ("90", 90), ("45s", 45), (" 2H ", 7200),
     ("999999999", 999_999_999)],
)  # fmt: skip
def test_lengths_of_time(text: str, seconds: int) -> None:
    assert to_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "0h", "-1h", "1.5h", "h", "1w", "1h30m", "1e3", "٣h", "9" * 5000])
def test_what_is_no_length_of_time(text: str) -> None:
    with pytest.raises(click.BadParameter, match="30m, 24h, 7d"):
        to_seconds(text)


# --- invite ---------------------------------------------------------------------------------------------------


def test_the_token_stands_alone_on_stdout_and_never_on_stderr(scripted: ScriptedNode, run: Run) -> None:
    scripted.answer_with("/api/invite", {"token": TOKEN, **entry()})
    result = run("invite")
    assert (result.exit_code, result.stdout) == (0, f"{TOKEN}\n")
    assert TOKEN not in result.stderr
    assert "adds 5 machines" in result.stderr and "24 h" in result.stderr
    assert "meshnode --join TOKEN" in result.stderr and "--revoke 5e364df7e9ae15fc" in result.stderr
    assert scripted.calls == [("/api/invite", {"role": "member", "ttl_s": 86400, "uses": 5, "may_invite": False})]


def test_what_was_asked_for_is_sent_and_told(scripted: ScriptedNode, run: Run) -> None:
    expires_at = time.time() + 5400
    scripted.answer_with("/api/invite", {"token": TOKEN, **entry(role="client", uses=1, expires_at=expires_at)})
    result = run("invite", "--client", "--ttl", "90m", "--uses", "1")
    assert "one machine for client-only use" in result.stderr and "90 min" in result.stderr
    assert "meshnode --client --join TOKEN" in result.stderr
    scripted.answer_with("/api/invite", {"token": TOKEN, **entry(may_invite=True)})
    assert "serve models and invite others" in run("invite", "--may-invite").stderr
    assert [body for _, body in scripted.calls] == [
        {"role": "client", "ttl_s": 5400, "uses": 1, "may_invite": False},
        {"role": "member", "ttl_s": 86400, "uses": 5, "may_invite": True},
    ]


def test_an_invite_for_a_script(scripted: ScriptedNode, run: Run) -> None:
    made = {"token": TOKEN, **entry()}
    scripted.answer_with("/api/invite", made)
    result = run("invite", "--json")
    assert json.loads(result.stdout) == {"schema": 1, **made} and result.stderr == ""


def test_a_qr_code_leaves_stdout_alone(scripted: ScriptedNode, run: Run) -> None:
    scripted.answer_with("/api/invite", {"token": TOKEN, **entry()})
    result = run("invite", "--qr")
    assert result.stdout == f"{TOKEN}\n"
    drawn = [line for line in result.stderr.splitlines() if line and set(line) <= set("█▀▄ ")]
    assert len(drawn) > 20 and len({len(line) for line in drawn}) == 1
    assert json.loads(run("invite", "--qr", "--json").stdout)["token"] == TOKEN


def test_a_qr_code_for_which_the_terminal_is_too_narrow(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(admission, "_width_of_stderr", lambda: 40)
    admission._draw(TOKEN)
    told = capsys.readouterr().err
    assert "█" not in told and "this terminal has 40" in told
    monkeypatch.setattr(admission, "_width_of_stderr", lambda: 200)
    admission._draw(TOKEN)
    assert "█" in capsys.readouterr().err


def test_invites_as_a_table(scripted: ScriptedNode, run: Run) -> None:
    scripted.show_mesh(
        mesh(
            invites=[
                entry(id="aa", expires_at=time.time() + 1801, uses_left=3),
                entry(id="bb", uses_left=0, role="client"),
                entry(id="cc", uses_left=0, revoked=True, may_invite=True),
                entry(id="dd", expires_at=time.time() - 5),
            ]
        )
    )
    header, *rows = run("invite", "--list").stdout.splitlines()
    assert header.split("  ")[0] == "ID"
    words = [row.split() for row in rows]
    assert words[0] == ["aa", "member", "open", "3", "of", "5", "30", "min"]
    assert words[1][:4] == ["bb", "client", "used", "up"]
    assert words[2][:5] == ["cc", "member,", "may", "invite", "revoked"]
    assert words[3][2] == "expired" and words[3][-2:] == ["0", "s"]


def test_invites_for_a_script(scripted: ScriptedNode, run: Run) -> None:
    scripted.show_mesh(mesh(invites=[entry()]))
    shown = json.loads(run("invite", "--list", "--json").stdout)
    assert shown.keys() == {"schema", "may_invite", "invites"} and shown["invites"][0]["uses_left"] == 5


def test_a_list_without_invites_says_why(scripted: ScriptedNode, run: Run) -> None:
    scripted.show_mesh(mesh(), mesh(may_invite=False), None)
    assert "no invite is open" in run("invite", "--list").stderr
    assert "may not invite" in run("invite", "--list").stderr
    refused = run("invite", "--list")
    assert refused.exit_code == 5 and "(not-in-mesh)" in refused.stderr


def test_an_invite_is_revoked_by_the_beginning_of_its_id(scripted: ScriptedNode, run: Run) -> None:
    scripted.answer_with("/api/invite/revoke", entry(revoked=True), entry(revoked=True), InviteInvalid("no such"))
    result = run("invite", "--revoke", "5e36")
    assert result.exit_code == 0 and result.stdout == "" and "5e364df7e9ae15fc is revoked" in result.stderr
    assert json.loads(run("invite", "--revoke", "5e36", "--json").stdout)["revoked"] is True
    refused = run("invite", "--revoke", "zz")
    assert refused.exit_code == 5 and "(invite-invalid)" in refused.stderr
    assert scripted.calls[0] == ("/api/invite/revoke", {"id": "5e36"})


@pytest.mark.parametrize(
    "arguments",
    [
        ["--list", "--revoke", "x"],
        ["--list", "--ttl", "1h"],
        ["--revoke", "x", "--uses", "2"],
        ["--client", "--may-invite"],
        ["--ttl", "soon"],
        ["--uses", "0"],
    ],
)
def test_what_does_not_go_together_is_a_usage_error(arguments: list[str], run: Run) -> None:
    result = run("invite", *arguments)
    assert result.exit_code == 2 and result.stdout == "" and "Error:" in result.stderr


def test_a_refusal_leaves_stdout_empty(scripted: ScriptedNode, run: Run) -> None:
    scripted.answer_with("/api/invite", BadRequest("a thousand at most"))
    result = run("invite", "--uses", "5000")
    assert result.exit_code == 1 and result.stdout == "" and "a thousand at most" in result.stderr


# --- join -----------------------------------------------------------------------------------------------------

JOINED = {"mesh": "ab" * 32, "name": HOSTILE, "state": "joined"}


def test_join_says_which_mesh_and_cannot_be_steered_by_its_name(scripted: ScriptedNode, run: Run) -> None:
    scripted.answer_with("/api/join", JOINED)
    result = run("join", TOKEN)
    assert result.exit_code == 0 and result.stdout == "" and TOKEN not in result.stderr
    looking, joined = result.stderr.splitlines()
    assert looking.startswith("looking for") and joined.startswith('joined "home') and joined.isprintable()
    assert json.loads(run("join", TOKEN, "--json").stdout) == {"schema": 1, **JOINED}


def test_the_token_can_come_by_stdin_or_from_the_environment(scripted: ScriptedNode, run: Run) -> None:
    scripted.answer_with("/api/join", JOINED)
    assert run("join", "-", stdin=f"{TOKEN}\nmore\n").exit_code == 0
    assert run("join", MESHNODE_JOIN=TOKEN).exit_code == 0
    assert [body["token"] for _, body in scripted.calls] == [TOKEN, TOKEN]
    empty = run("join", "-", stdin="\n")
    assert empty.exit_code == 2 and "meshnode invite | meshnode join -" in empty.stderr
    assert run("join").exit_code == 2


def test_join_asks_a_person_to_paste(
    scripted: ScriptedNode, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    scripted.answer_with("/api/join", JOINED)
    monkeypatch.setattr(sys, "stdin", Terminal(f"{TOKEN}\n"))
    admission.join.main(["-"], standalone_mode=False)
    assert capsys.readouterr().err.startswith("paste the invite")


def test_a_mesh_that_cannot_be_joined(scripted: ScriptedNode, run: Run) -> None:
    scripted.answer_with("/api/join", PeerUnreachable("tried 192.0.2.1:9337"))
    result = run("join", TOKEN)
    assert result.exit_code == 5 and "192.0.2.1:9337 (peer-unreachable)" in result.stderr


def test_without_a_node_join_names_the_command_that_starts_one(run: Run) -> None:
    result = run("join", TOKEN)
    assert result.exit_code == 3 and "meshnode --join TOKEN" in result.stderr
    assert run("join", TOKEN, "--json").exit_code == 3


# --- pair -----------------------------------------------------------------------------------------------------

CODE = {"code": "7-amber-falcon", "expires_s": 300.0, "addresses": ["192.0.2.1:9337", "192.0.2.2:9337"]}


def waiting() -> dict[str, Any]:
    return mesh(pairing={"state": "waiting", "expires_s": 300.0, "detail": ""})


def ended(state: str, detail: str = "") -> dict[str, Any]:
    return mesh(pairing={"state": state, "expires_s": 0.0, "detail": detail})


def test_a_code_stands_alone_on_stdout_until_the_other_machine_came(scripted: ScriptedNode, run: Run) -> None:
    scripted.answer_with("/api/pair", CODE)
    scripted.show_mesh(mesh(), waiting(), waiting(), ended("paired"))
    result = run("pair")
    assert (result.exit_code, result.stdout) == (0, "7-amber-falcon\n")
    assert "meshnode pair 7-amber-falcon\n" in result.stderr
    assert "meshnode pair 7-amber-falcon --at 192.0.2.1:9337" in result.stderr and "5:00" in result.stderr
    assert result.stderr.splitlines()[-1].startswith('the other machine joined "home"')
    assert scripted.calls == [("/api/pair", {})]


@pytest.mark.parametrize("before", [None, mesh(id="cd" * 32, name="small")])
def test_the_machine_that_shows_the_code_may_be_the_one_that_joins(
    before: dict[str, Any] | None, scripted: ScriptedNode, run: Run
) -> None:
    scripted.answer_with("/api/pair", CODE)
    scripted.show_mesh(before, before and before | waiting() | {"id": "cd" * 32}, ended("paired") | {"name": HOSTILE})
    result = run("pair")
    last = result.stderr.splitlines()[-1]
    assert result.exit_code == 0 and last.startswith('joined "home') and last.isprintable()


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        (ended("failed", f"{HOSTILE} the code was wrong"), "the code was wrong (pairing-failed)"),
        (ended("none"), "nobody came"),
        (mesh(), "nobody came"),
        (None, "nobody came"),
    ],
)
def test_a_code_that_nobody_used_rightly(
    outcome: dict[str, Any] | None, words: str, scripted: ScriptedNode, run: Run
) -> None:
    scripted.answer_with("/api/pair", CODE | {"addresses": [], "expires_s": 0.0})
    scripted.show_mesh(mesh(), waiting(), outcome)
    result = run("pair")
    assert result.exit_code == 5 and words in result.stderr and "--at" not in result.stderr
    assert "\x1b" not in result.stderr and "\x9b" not in result.stderr


def test_ctrl_c_ends_the_waiting_and_says_that_the_code_lives_on(
    scripted: ScriptedNode, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    scripted.answer_with("/api/pair", CODE | {"expires_s": 200.0})
    scripted.show_mesh(waiting())
    monkeypatch.setattr(admission.time, "sleep", interrupt)
    result = run("pair")
    assert result.exit_code == 130 and "stays good for 3 min" in result.stderr
    assert len(scripted.calls) == 1


def test_a_script_gets_the_code_and_waits_by_itself(scripted: ScriptedNode, run: Run) -> None:
    scripted.show_mesh(mesh())
    scripted.answer_with("/api/pair", CODE)
    result = run("pair", "--json")
    assert json.loads(result.stdout) == {"schema": 1, **CODE} and result.stderr == ""


@pytest.mark.parametrize(
    ("joined", "words"), [(True, 'joined "home"'), (False, 'the other machine joined "home"')]
)  # fmt: skip
def test_a_typed_code_says_who_joined(joined: bool, words: str, scripted: ScriptedNode, run: Run) -> None:
    answer = {"mesh": "ab" * 32, "name": "home", "joined": joined}
    scripted.answer_with("/api/pair", answer)
    result = run("pair", "7", "amber", "falcon", "--at", "192.0.2.1:9337")
    assert result.exit_code == 0 and result.stdout == "" and result.stderr.splitlines()[-1].startswith(words)
    assert json.loads(run("pair", "7-amber-falcon", "--json").stdout) == {"schema": 1, **answer}
    assert [body for _, body in scripted.calls] == [
        {"code": "7 amber falcon", "at": "192.0.2.1:9337"},
        {"code": "7-amber-falcon"},
    ]


def test_a_wrong_code_is_told_in_the_words_of_the_node(scripted: ScriptedNode, run: Run) -> None:
    scripted.answer_with("/api/pair", PairingFailed("no code has the word 'ambre'", fix="did you mean 'amber'?"))
    result = run("pair", "7-ambre-falcon")
    assert result.exit_code == 5 and "did you mean 'amber'?" in result.stderr


def test_an_address_needs_a_code(run: Run) -> None:
    assert run("pair", "--at", "192.0.2.1:9337").exit_code == 2


@pytest.mark.parametrize("command", [["invite"], ["invite", "--list"], ["invite", "--revoke", "x"], ["pair"]])
def test_without_a_node_it_is_exit_code_3(command: list[str], run: Run, tmp_path: Path) -> None:
    assert run(*command).exit_code == 3
    assert json.loads(run(*command, "--json").stdout)["error"]["code"] == "no-node"
    assert list(tmp_path.iterdir()) == []
