"""The play chain of tools/play_chain.py, as its own process."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

from tests.lab.evm import needs_anvil

pytestmark = needs_anvil
ROOT = Path(__file__).parents[2]
SOMEBODY = "0x" + "1a" * 20


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "tools.play_chain", *arguments]


def test_it_gives_play_money_and_ends_with_a_signal(tmp_path: Path) -> None:
    folder = ("--folder", str(tmp_path / "chain"))
    with subprocess.Popen(command(*folder), cwd=ROOT, stdout=subprocess.PIPE, text=True) as chain:
        try:
            assert chain.stdout is not None
            assert chain.stdout.readline().startswith("play chain 31337 on http://127.0.0.1:")
            network = json.loads((tmp_path / "chain" / "network.json").read_text())
            assert network["name"] == "play" and network["testnet"] is True
            for paid in ("5000000", "7000000"):
                given = "5" if paid == "5000000" else "2"
                done = subprocess.run(
                    command("give", SOMEBODY, given, *folder), cwd=ROOT, capture_output=True, text=True, check=True
                )
                assert done.stdout.strip() == paid
        finally:
            chain.send_signal(signal.SIGTERM)
            assert chain.wait(timeout=20) == 0


def test_without_a_chain_it_says_so(tmp_path: Path) -> None:
    done = subprocess.run(
        command("balance", SOMEBODY, "--folder", str(tmp_path)), cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1 and "no play chain" in done.stderr
