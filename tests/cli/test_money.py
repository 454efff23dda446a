"""Amounts, passwords and names as commands about money take them, and what they show of transactions."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from meshnode.cli.money import PRICE, USD, ask_password, is_at_terminal, short_address, short_id, show_moved
from meshnode.errors import NotTerminal
from tests.cli.spending_answers import moved


@pytest.mark.parametrize(
    ("text", "micros"), [("0.2", 200_000), ("$5", 5_000_000), ("0.000001", 1), ("1000000000", 10**15), (7, 7)]
)
def test_dollars_are_whole_micros(text: object, micros: int) -> None:
    assert USD.convert(text, None, None) == micros


@pytest.mark.parametrize("text", ["", "0.0000001", "-1", "1e2", "1_000", " ", "0x1", "١", "1000000000.000001", "inf"])
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        USD.convert(text, None, None)


def test_a_price_has_a_bound_of_its_own() -> None:
    assert PRICE.convert("1000000", None, None) == 10**12
    with pytest.raises(click.BadParameter):
        PRICE.convert("1000000.000001", None, None)


def test_passwords_come_from_a_file_or_a_person(tmp_path: Path) -> None:
    assert not is_at_terminal(), "the tests have none"
    with pytest.raises(NotTerminal, match="Password") as refused:
        ask_password("Password", None)
    assert "--password-file" in refused.value.fix
    file = tmp_path / "password"
    file.write_bytes("pässword \n".encode())
    file.chmod(0o600)
    assert ask_password("Password", file) == "pässword ".encode()


def test_ids_are_short_and_harmless() -> None:
    assert short_id("0x" + "cd" * 32) == "0x" + "cd" * 5 and short_id("ab" * 32) == "ab" * 5
    assert short_id("\x1b[31m" + "a" * 40).isprintable()
    assert short_address("0x4020074e9dF2ce1deE5A9C1b5c3f541D02a10003") == "0x4020…0003"
    assert short_address("0x12") == "0x12"


def test_what_was_sent_is_a_table_and_talk(capsys: pytest.CaptureFixture[str]) -> None:
    show_moved(moved("claim", "settle", note="two channels\x1b[2J were left out"))
    shown = capsys.readouterr()
    assert [line.split()[0] for line in shown.out.splitlines()] == ["WHAT", "claim", "settle", "claim", "settle"]
    assert shown.out.splitlines()[-1] == "settle  0x" + "ef" * 32
    assert "calldata" not in shown.out and "\x1b" not in shown.err and "two channels" in shown.err


def test_what_another_node_sends_has_no_gas_here(capsys: pytest.CaptureFixture[str]) -> None:
    answer = moved("refund", dry_run=True)
    answer["transactions"][0] |= {"to": None, "gas": 0, "fee_micros": 0, "calldata": "0x", "state": "asked-provider"}
    show_moved(answer)
    shown = capsys.readouterr()
    assert shown.out.splitlines()[1].split() == ["refund", "by", "the", "provider", "-", "-", "-"]
    assert "it would cost no fee here" in shown.err and "calldata" not in shown.out


def test_nothing_to_send(capsys: pytest.CaptureFixture[str]) -> None:
    show_moved(moved(dry_run=True))
    assert capsys.readouterr().err == "nothing would be sent\n"
    show_moved(moved())
    assert capsys.readouterr() == ("", "")
