"""Keys are made, taken and shown without any node; no secret is in an argument, an output or an error."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from meshnode.cli.wallet import eth
from meshnode.errors import ChainUnreachable
from meshnode.wallets import Wallets
from tests.cli.terminals import at_terminal

SECRET = "4c0883a69102937d6231471b5dbb6204fe5129617082792ae468d01a3f362318"
ADDRESS = "0x2c7536E3605D9C16a7a3D7b1898e529396a65c23"


@pytest.fixture(autouse=True)
def quick_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    """A password that is hardened in a millisecond."""
    from meshnode.settlement import keystore_v3

    quick = {"scrypt": keystore_v3.Scrypt(n=2), "pbkdf2": keystore_v3.Pbkdf2(rounds=1)}
    monkeypatch.setattr(keystore_v3, "KDFS", quick)


@pytest.fixture
def password(tmp_path: Path) -> str:
    """A file with a password."""
    file = tmp_path / "password"
    file.write_text("correct horse\n")
    file.chmod(0o600)
    return str(file)


# --- making and taking --------------------------------------------------------------------------------------------


def test_a_new_wallet_prints_its_address_alone(run, tmp_path: Path, password: str) -> None:
    result = run("wallet", "new", "--password-file", password)
    made = Wallets(tmp_path)
    assert result.exit_code == 0 and result.stdout == f"{made.address()}\n"
    assert str(made.keystore_folder) in result.stderr and str(made.voucher_address()) in result.stderr
    assert "correct horse" not in result.output and made.fund_key(b"correct horse")
    hot = made.voucher_file.read_text().strip()
    assert hot not in result.output
    again = run("wallet", "new", "--password-file", password)
    assert again.exit_code == 1 and "there is a wallet already" in again.stderr
    assert made.address() in again.stderr


def test_facts_as_json(run, tmp_path: Path, password: str) -> None:
    made = json.loads(run("wallet", "new", "--password-file", password, "--kdf", "pbkdf2", "--json").stdout)
    shown = json.loads(run("wallet", "address", "--json").stdout)
    assert (made["address"], made["voucher"]) == (shown["address"], shown["voucher"])
    assert json.loads(run("wallet", "export").stdout)["crypto"]["kdf"] == "pbkdf2"


def test_a_person_types_the_password_twice_and_sees_it_never(tmp_path: Path) -> None:
    typed = [("Password of the wallet", "corréct horse"), ("Repeat", "corréct horse")]
    code, shown = at_terminal("wallet", "new", "--kdf", "pbkdf2", home=tmp_path, answers=typed)
    assert code == 0 and "horse" not in shown and "Nobody can give it back to you" in shown
    assert Wallets(tmp_path).fund_key("corréct horse".encode())


@pytest.mark.parametrize("command", [("new",), ("import",), ("import", "KEY")])
def test_without_a_terminal_and_a_file_nothing_is_asked(run, tmp_path: Path, command: tuple[str, ...]) -> None:
    (tmp_path / "KEY").write_text(SECRET)
    given = [str(tmp_path / each) if each == "KEY" else each for each in command]
    result = run("wallet", *given, stdin="password\npassword\n")
    assert result.exit_code == 8 and "not-a-terminal" in result.stderr and not Wallets(tmp_path).exists()


@pytest.mark.parametrize("way", ["file", "stdin"])
def test_a_bare_key_is_taken_from_a_file_or_a_pipe(run, tmp_path: Path, password: str, way: str) -> None:
    file = tmp_path / "key"
    file.write_text(f"0x{SECRET}\n")
    source = str(file) if way == "file" else "-"
    result = run("wallet", "import", source, "--password-file", password, stdin=file.read_text())
    assert result.exit_code == 0 and result.stdout == f"{ADDRESS}\n" and SECRET not in result.output
    assert Wallets(tmp_path).fund_key(b"correct horse").reveal().hex() == SECRET


def test_a_bare_key_is_typed_where_nobody_sees_it(tmp_path: Path) -> None:
    typed = [("Key", SECRET), ("New password", "pw"), ("Repeat", "pw")]
    code, shown = at_terminal("wallet", "import", "--kdf", "pbkdf2", home=tmp_path, answers=typed)
    assert code == 0 and ADDRESS in shown and SECRET not in shown


def test_what_one_home_exports_another_imports(run, tmp_path: Path, password: str) -> None:
    first = run("wallet", "new", "--password-file", password).stdout
    exported = run("wallet", "export")
    assert exported.exit_code == 0 and "show it to nobody" in exported.stderr
    other = run(
        "wallet", "import", "-", "--password-file", password, stdin=exported.stdout, MESHNODE_HOME=str(tmp_path / "b")
    )
    assert (other.exit_code, other.stdout) == (0, first)
    wrong = tmp_path / "wrong"
    wrong.write_text("other")
    wrong.chmod(0o600)
    refused = run(
        "wallet", "import", "-", "--password-file", str(wrong), stdin=exported.stdout, MESHNODE_HOME=str(tmp_path / "c")
    )
    assert refused.exit_code == 8 and "(wrong-password)" in refused.stderr


@pytest.mark.parametrize("text", ["", "hello", "{}", "0x12", SECRET[:-1] + "g", "\x00" * 64])
def test_what_is_no_key_is_refused_and_not_repeated(run, tmp_path: Path, password: str, text: str) -> None:
    result = run("wallet", "import", "-", "--password-file", password, stdin=text)
    assert result.exit_code == 8 and "(keystore-invalid)" in result.stderr
    assert SECRET[:-1] not in result.output and not Wallets(tmp_path).exists()


def test_files_that_cannot_be_used(run, tmp_path: Path, password: str) -> None:
    assert run("wallet", "import", str(tmp_path / "none"), "--password-file", password).exit_code == 1
    assert "does not exist" in run("wallet", "new", "--password-file", str(tmp_path / "none")).stderr
    Path(password).chmod(0o644)
    result = run("wallet", "new", "--password-file", password)
    assert result.exit_code == 1 and "others can read" in result.stderr and "chmod 600" in result.stderr


def test_no_option_takes_a_secret() -> None:
    """Whatever stands on a command line, every user of the machine can read."""
    from meshnode.cli.wallet import wallet

    for name, command in wallet.commands.items():
        for option in command.params:
            spelled = " ".join(option.opts)
            assert "key" not in spelled and "secret" not in spelled, name
            assert "password" not in spelled or spelled == "--password-file", name


# --- what is there ------------------------------------------------------------------------------------------------


def test_without_a_wallet(run) -> None:
    for command in ("address", "export", "balance"):
        result = run("wallet", command)
        assert result.exit_code == 8 and "(no-wallet)" in result.stderr and "meshnode wallet new" in result.stderr


def test_a_key_of_the_environment_is_enough_to_pay(run) -> None:
    result = run("wallet", "address", MESHNODE_VOUCHER_KEY=SECRET)
    assert result.exit_code == 0 and result.stdout == f"{ADDRESS}\n" and "no funds here" in result.stderr
    assert SECRET not in result.output
    result = run("wallet", "address", MESHNODE_VOUCHER_KEY="nonsense-and-secret")
    assert result.exit_code == 8 and "and-secret" not in result.output


def test_a_chain_of_ones_own_needs_an_endpoint(run, tmp_path: Path, password: str) -> None:
    from meshnode.settlement import networks

    run("wallet", "new", "--password-file", password)
    own = dataclasses.replace(networks.NETWORKS["base-sepolia"], name="attic", chain=31337, title="Attic")
    (tmp_path / "networks.json").write_text(networks.to_json(own))
    given = {"MESHNODE_NETWORK": "attic", "MESHNODE_NETWORK_FILE": str(tmp_path / "networks.json")}
    result = run("wallet", "balance", **given)
    assert result.exit_code == 2 and "MESHNODE_RPC" in result.stderr


def test_the_balance_is_said(run, password: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    async def balance(self: Wallets, network: Any, endpoints: tuple[str, ...]) -> dict[str, Any]:
        asked.append((network.name, endpoints))
        if len(asked) == 3:
            raise ChainUnreachable("https://one.example")
        where = {"address": ADDRESS, "voucher": None, "network": "base-sepolia", "chain": 84532, "testnet": True}
        return where | {"usdc_micros": 12_500_000, "voucher_wei": str(1_500_000_000_000_000)}

    monkeypatch.setattr(Wallets, "balance", balance)
    run("wallet", "new", "--password-file", password)
    given = {"MESHNODE_RPC": "https://one.example/key,https://two.example"}
    result = run("wallet", "balance", **given)
    assert result.stdout == f"$12.50 USDC  {ADDRESS}\n0.001500 ETH for fees  -\n" and "test money" in result.stderr
    assert json.loads(run("wallet", "balance", "--json", **given).stdout)["usdc_micros"] == 12_500_000
    failed = run("wallet", "balance", **given)
    assert failed.exit_code == 8 and "chain-unreachable" in failed.stderr and "/key" not in failed.output
    assert asked[0] == ("base-sepolia", ("https://one.example/key", "https://two.example"))
    run("wallet", "balance")
    assert asked[-1][1] and all(url.startswith("https://") for url in asked[-1][1]), "the usual ones"


@pytest.mark.parametrize(
    ("wei", "text"),
    [(0, "0.000000"), (10**18, "1.000000"), (1_234_567_890_123_456_789, "1.234567"), (10**24 + 999, "1000000.000000")],
)
def test_ether_is_rounded_down(wei: int, text: str) -> None:
    assert eth(wei) == text
