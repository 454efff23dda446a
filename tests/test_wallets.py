"""The keys of a home: made, taken, unlocked, kept from others; and a policy that never stops a node."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from meshnode.core.pay_policy import Policy
from meshnode.core.prices import Price
from meshnode.errors import (
    ChainUnreachable,
    KeystoreInvalid,
    NoWallet,
    SettingsError,
    StateError,
    WalletLocked,
    WrongNetwork,
    WrongPassword,
)
from meshnode.policies import StoredPolicy
from meshnode.settlement import addresses
from meshnode.wallets import VOUCHER_VARIABLE, Wallets, find_network, password_in

pytestmark = pytest.mark.anyio

PASSWORD = b"correct horse"
SECRET = "4c0883a69102937d6231471b5dbb6204fe5129617082792ae468d01a3f362318"
ADDRESS = "0x2c7536E3605D9C16a7a3D7b1898e529396a65c23"
POLICY = StoredPolicy("base-sepolia", Policy("auto", Price(1, 2), {}, 5_000_000))


@pytest.fixture(autouse=True)
def quick_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    """A password that is hardened in a millisecond, as the real ones are tried in tests/settlement."""
    from meshnode.settlement import keystore_v3

    monkeypatch.setattr(
        keystore_v3, "KDFS", {"scrypt": keystore_v3.Scrypt(n=2), "pbkdf2": keystore_v3.Pbkdf2(rounds=1)}
    )


@pytest.fixture
def here(tmp_path: Path) -> Wallets:
    """The wallet of a home where nothing is yet."""
    return Wallets(tmp_path, environment={})


def modes(folder: Path) -> set[int]:
    return {each.stat().st_mode & 0o077 for each in (folder, *folder.rglob("*"))}


# --- making and taking --------------------------------------------------------------------------------------------


def test_nothing_is_made_by_looking(here: Wallets) -> None:
    assert not here.exists() and here.address() is None and here.voucher_address() is None
    for act in (here.voucher_key, here.fund_key, here.export, here.terminal_token):
        with pytest.raises(NoWallet):
            act()
    assert not here.folder.exists()


@pytest.mark.parametrize("kdf", ["scrypt", "pbkdf2"])
def test_a_new_wallet_has_two_keys_for_its_user_alone(here: Wallets, kdf: str) -> None:
    facts = here.make(PASSWORD, kdf)
    assert here.exists() and facts["address"] == here.address() != facts["voucher"] == here.voucher_address()
    assert addresses.shown(here.fund_key(PASSWORD).address) == facts["address"]
    assert modes(here.folder) == {0}
    with pytest.raises(WrongPassword):
        here.fund_key(b"wrong")
    exported = json.loads(here.export())
    assert exported["version"] == 3 and exported["crypto"]["kdf"] == kdf


def test_a_wallet_is_never_replaced(here: Wallets) -> None:
    facts = here.make(PASSWORD)
    for again in (lambda: here.make(b"other"), lambda: here.take(SECRET, b"other")):
        with pytest.raises(StateError, match="there is a wallet already"):
            again()
    assert here.facts() == facts and here.fund_key(PASSWORD)


@pytest.mark.parametrize("text", [SECRET, f"0x{SECRET}\n", f"  {SECRET.upper()}"])
def test_a_bare_key_is_taken(here: Wallets, text: str) -> None:
    assert here.take(text, PASSWORD)["address"] == ADDRESS
    assert here.fund_key(PASSWORD).reveal().hex() == SECRET
    files = [each.read_text() for each in here.folder.rglob("*") if each.is_file()]
    assert not [text for text in files if SECRET in text.lower()], "the key of the money lies nowhere in the clear"


def test_what_one_wallet_exports_another_takes(here: Wallets, tmp_path: Path) -> None:
    here.make(PASSWORD)
    other = Wallets(tmp_path / "other", environment={})
    with pytest.raises(WrongPassword):
        other.take(here.export(), b"wrong")
    assert not other.exists()
    assert other.take(here.export(), PASSWORD)["address"] == here.address()
    assert other.voucher_address() != here.voucher_address(), "a key that signs vouchers belongs to one home"


@pytest.mark.parametrize("text", ["", "0x12", "hello", "{}", '{"version": 4}', SECRET + "00", "0" * 64, "f" * 64])
def test_what_is_no_key_is_refused_and_not_shown(here: Wallets, text: str) -> None:
    with pytest.raises(KeystoreInvalid) as refused:
        here.take(text, PASSWORD)
    assert not here.exists()
    assert not text or len(text) < 8 or text not in "".join(traceback.format_exception(refused.value))


# --- the key that signs vouchers ----------------------------------------------------------------------------------


def test_a_provider_needs_no_money(here: Wallets) -> None:
    key = here.ensure_voucher_key()
    assert here.ensure_voucher_key().address == key.address == here.voucher_key().address
    assert here.exists() and here.address() is None
    assert here.voucher_file.stat().st_mode & 0o777 == 0o600
    with pytest.raises(NoWallet):
        here.fund_key(PASSWORD)


def test_the_environment_wins_and_is_written_nowhere(tmp_path: Path) -> None:
    given = Wallets(tmp_path, environment={VOUCHER_VARIABLE: f"0x{SECRET}"})
    assert given.exists() and given.voucher_address() == ADDRESS
    assert given.ensure_voucher_key().address == addresses.parse(ADDRESS) and not given.folder.exists()
    broken = Wallets(tmp_path, environment={VOUCHER_VARIABLE: "not a key, but secret"})
    with pytest.raises(KeystoreInvalid, match=VOUCHER_VARIABLE) as refused:
        broken.voucher_key()
    assert "secret" not in "".join(traceback.format_exception(refused.value))


def test_a_key_that_others_can_read_is_not_used(here: Wallets) -> None:
    here.ensure_voucher_key()
    here.voucher_file.chmod(0o644)
    with pytest.raises(StateError, match="others can read") as refused:
        here.voucher_key()
    assert str(here.voucher_file) in refused.value.fix


@pytest.mark.parametrize("text", [b"", b"zz" * 32, b"\xff" * 64, b"0" * 64, b"1" * 500])
def test_a_damaged_key_is_said_and_not_made_anew(here: Wallets, text: bytes) -> None:
    here.ensure_voucher_key()
    here.voucher_file.write_bytes(text)
    for act in (here.voucher_key, here.ensure_voucher_key):
        with pytest.raises((KeystoreInvalid, StateError)):
            act()
    assert here.voucher_file.read_bytes() == text, "it may be the only copy of something"


# --- passwords ----------------------------------------------------------------------------------------------------


def test_the_key_of_the_money_is_locked_unless_a_file_opens_it(here: Wallets, tmp_path: Path) -> None:
    here.make(PASSWORD)
    with pytest.raises(WalletLocked):
        here.fund_key()
    file = tmp_path / "password"
    file.write_bytes(PASSWORD + b"\r\n")
    file.chmod(0o600)
    opened = Wallets(tmp_path, environment={}, password_file=file)
    assert addresses.shown(opened.fund_key().address) == here.address()
    file.write_bytes(b"wrong")
    with pytest.raises(WrongPassword):
        opened.fund_key()
    file.chmod(0o640)
    with pytest.raises(StateError, match="others can read"):
        opened.fund_key()
    with pytest.raises(StateError, match="does not exist"):
        Wallets(tmp_path, environment={}, password_file=tmp_path / "none").fund_key()


@pytest.mark.parametrize("text", [b"", b"\n", b"a\nb", b"a\0b", b"x" * 1025])
def test_a_password_file_without_a_password(tmp_path: Path, text: bytes) -> None:
    file = tmp_path / "password"
    file.write_bytes(text)
    file.chmod(0o600)
    with pytest.raises(StateError) as refused:
        password_in(file)
    assert "xxx" not in str(refused.value)


def test_no_secret_is_in_what_is_shown_of_a_wallet(here: Wallets) -> None:
    here.take(SECRET, PASSWORD)
    hot = here.voucher_file.read_text().strip()
    shown = f"{here!r} {here.facts()} {here.voucher_key()!r} {here.fund_key(PASSWORD)!r} {vars(here)}"
    assert SECRET not in shown.lower() and hot not in shown and "correct horse" not in shown


# --- the policy ---------------------------------------------------------------------------------------------------


def test_a_policy_stands_when_all_is_as_it_was_said(here: Wallets) -> None:
    here.policy_file.save(POLICY)
    here.ensure_voucher_key()
    standing = here.policy(network="base-sepolia", no_pay=False)
    assert (standing.policy, standing.network, standing.why_not) == (POLICY.policy, "base-sepolia", "")
    assert here.policy_facts(standing)["month_micros"] == 5_000_000


@pytest.mark.parametrize(
    ("stored", "network", "no_pay", "words"),
    [
        (POLICY, "base-sepolia", True, "MESHNODE_NO_PAY"),
        (POLICY, "base", False, "was said for base-sepolia, and the node is on base"),
        (replace(POLICY, policy=replace(POLICY.policy, mode="off")), "base-sepolia", False, "payments are off"),
        (StoredPolicy(), "base-sepolia", False, "payments are off"),
    ],
)
def test_otherwise_it_is_off_and_says_why(
    here: Wallets, stored: StoredPolicy, network: str, no_pay: bool, words: str
) -> None:
    here.policy_file.save(stored)
    here.ensure_voucher_key()
    standing = here.policy(network=network, no_pay=no_pay)
    assert words in standing.why_not and standing.network == stored.network
    refused = standing.policy.refusal(Price(1, 1), "any")
    assert refused is not None and refused.code == ("no_pay" if no_pay else "pay_off")


def test_a_policy_without_a_wallet_and_a_damaged_one_allow_nothing(here: Wallets) -> None:
    here.policy_file.save(POLICY)
    assert "there is no wallet" in here.policy(network="base-sepolia", no_pay=False).why_not
    here.ensure_voucher_key()
    here.policy_file.file.write_bytes(b'{"mode": "auto"}')
    standing = here.policy(network="base-sepolia", no_pay=False)
    assert standing.policy.mode == "off" and "policy.json" in standing.why_not and "--reset" in standing.why_not


def test_lowering_is_known_at_the_next_question(here: Wallets) -> None:
    here.ensure_voucher_key()
    here.policy_file.save(POLICY)
    assert here.policy(network="base-sepolia", no_pay=False).policy.month_micros == 5_000_000
    Wallets(here.folder.parent).policy_file.save(replace(POLICY, policy=replace(POLICY.policy, month_micros=1)))
    assert here.policy(network="base-sepolia", no_pay=False).policy.month_micros == 1


# --- the terminal value, networks ---------------------------------------------------------------------------------


def test_the_terminal_value_is_new_at_each_start_and_for_its_user_alone(here: Wallets) -> None:
    values = {here.new_terminal_token() for _ in range(5)}
    assert len(values) == 5 and all(re.fullmatch(r"[A-Za-z0-9_-]{32}", value) for value in values)
    assert here.terminal_token() in values and here.terminal_file.stat().st_mode & 0o777 == 0o600
    here.terminal_file.chmod(0o604)
    with pytest.raises(StateError):
        here.terminal_token()


def test_networks_by_name() -> None:
    assert find_network("base-sepolia", None).testnet and not find_network("base", None).testnet
    with pytest.raises(SettingsError):
        find_network("basement", None)


# --- the balance --------------------------------------------------------------------------------------------------


class FakePair:
    """A chain on which every account has 1.5 USDC and a little ether."""

    closed = 0

    def __init__(self, asked: list[Any]) -> None:
        self.asked = asked

    async def call(self, target: bytes, data: bytes, *, block: int | None = None) -> bytes:
        self.asked.append((target, data[-20:]))
        return (1_500_000).to_bytes(32, "big")

    async def wei(self, address: bytes) -> int:
        self.asked.append(address)
        return 10**15

    async def close(self) -> None:
        FakePair.closed += 1


async def test_the_balance_is_that_of_both_keys(here: Wallets, monkeypatch: pytest.MonkeyPatch) -> None:
    from meshnode.settlement import networks
    from meshnode.settlement.rpc import RpcPair

    here.take(SECRET, PASSWORD)
    network, asked = find_network("base-sepolia", None), []
    pair = FakePair(asked)

    async def opened(urls: tuple[str, ...], *, testnet: bool) -> FakePair:
        asked.append((urls, testnet))
        return pair

    async def checked(*given: object) -> None:
        assert given == (network, pair)

    monkeypatch.setattr(RpcPair, "of", opened)
    monkeypatch.setattr(networks, "checked", checked)
    facts = await here.balance(network, ("https://one.example",))
    assert facts["usdc_micros"] == 1_500_000 and facts["voucher_wei"] == str(10**15) and facts["chain"] == 84532
    voucher = here.voucher_key().address
    assert asked == [(("https://one.example",), True), (network.token, addresses.parse(ADDRESS)), voucher]
    assert FakePair.closed == 1


async def test_no_key_no_balance(here: Wallets) -> None:
    with pytest.raises(NoWallet):
        await here.balance(find_network("base-sepolia", None), ("https://one.example",))


async def test_the_balance_on_a_chain(here: Wallets) -> None:
    """A real chain, with the contracts of Base Sepolia at the addresses that they have there."""
    from tests.lab.evm import Anvil, canonical
    from tools import install_evm

    if install_evm.anvil() is None:
        pytest.skip("no anvil: python tools/install_evm.py")
    here.take(SECRET, PASSWORD)
    with Anvil() as chain:
        contracts = canonical(chain)
        contracts.fund(ADDRESS, usdc_micros=12_345_678)
        contracts.fund(str(here.voucher_address()), eth_wei=10**15)
        facts = await here.balance(find_network("base-sepolia", None), (chain.url,))
        assert (facts["usdc_micros"], facts["voucher_wei"]) == (12_345_678, str(10**15))
        chain.set_code(contracts.token, "0x")
        with pytest.raises(WrongNetwork):
            await here.balance(find_network("base-sepolia", None), (chain.url,))
    with pytest.raises(ChainUnreachable):
        await here.balance(find_network("base-sepolia", None), (chain.url,))


# --- cost ---------------------------------------------------------------------------------------------------------


def test_nothing_heavy_is_imported_before_a_key_is_used() -> None:
    """A node that pays nobody pays nothing for it at its start."""
    code = (
        "import sys; from pathlib import Path; from meshnode.wallets import Wallets;"
        "w = Wallets(Path('/nonexistent'), environment={}); w.exists(); w.policy(network='base-sepolia', no_pay=False);"
        "heavy = {'web3', 'eth_account', 'eth_keys', 'eth_keyfile', 'eth_abi', 'coincurve', 'Crypto'};"
        "print([name for name in sys.modules if name.split('.')[0] in heavy])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
