import contextlib
import json
import stat
import threading
from pathlib import Path

import eth_keyfile
import pytest

from meshnode.errors import HomeNotWritable, KeystoreInvalid, NoWallet, SettingsError, StateError, WrongPassword
from meshnode.settlement.keys import VoucherKey
from meshnode.settlement.keystore import Account, Keystore
from meshnode.settlement.keystore_v3 import Pbkdf2, sealed

CHEAP = Pbkdf2(rounds=10)
PASSWORD = b"correct horse"


@pytest.fixture
def keystore(tmp_path: Path) -> Keystore:
    return Keystore(tmp_path / "wallet" / "keystore")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_looking_makes_nothing(keystore: Keystore) -> None:
    assert keystore.accounts() == keystore.damaged() == ()
    with pytest.raises(NoWallet, match="fund"):
        keystore.unlock("fund", PASSWORD)
    assert not keystore.folder.exists() and not keystore.folder.parent.exists()


def test_a_key_is_kept_locked_and_private(keystore: Keystore) -> None:
    key = VoucherKey.generate()
    assert keystore.add("fund", key, PASSWORD, CHEAP) == Account("fund", key.address)
    file = keystore.folder / "fund.json"
    assert mode(file) == 0o600 and mode(keystore.folder) == 0o700
    assert key.reveal().hex() not in file.read_text().lower()
    assert keystore.unlock("fund", PASSWORD).reveal() == key.reveal()
    assert {path.name for path in keystore.folder.iterdir()} == {"fund.json", ".lock"}
    with pytest.raises(WrongPassword):
        keystore.unlock("fund", b"wrong")


def test_a_folder_that_others_could_read_is_closed(keystore: Keystore) -> None:
    keystore.folder.mkdir(parents=True)
    keystore.folder.chmod(0o755)
    keystore.add("fund", VoucherKey.generate(), PASSWORD, CHEAP)
    assert mode(keystore.folder) == 0o700


def test_accounts_are_shown_without_a_password(keystore: Keystore) -> None:
    keys = {name: VoucherKey.generate() for name in ("b", "a", "fund-2")}
    for name, key in keys.items():
        keystore.add(name, key, PASSWORD, CHEAP)
    assert keystore.accounts() == tuple(Account(name, keys[name].address) for name in ("a", "b", "fund-2"))


def test_a_key_is_never_replaced(keystore: Keystore) -> None:
    key = VoucherKey.generate()
    keystore.add("fund", key, PASSWORD, CHEAP)
    with pytest.raises(StateError, match="never replaced"):
        keystore.add("fund", VoucherKey.generate(), PASSWORD, CHEAP)
    (keystore.folder / "fund.json").write_text("damaged")
    with pytest.raises(StateError, match="never replaced"):
        keystore.add("fund", VoucherKey.generate(), PASSWORD, CHEAP)


def test_of_many_who_take_one_name_one_has_it(keystore: Keystore) -> None:
    keys = [VoucherKey.generate() for _ in range(8)]
    taken: list[Account] = []
    start = threading.Barrier(len(keys))

    def take(key: VoucherKey) -> None:
        start.wait()
        with contextlib.suppress(StateError):
            taken.append(keystore.add("fund", key, PASSWORD, CHEAP))

    threads = [threading.Thread(target=take, args=(key,)) for key in keys]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 1
    assert keystore.unlock("fund", PASSWORD).address == taken[0].address


@pytest.mark.parametrize("name", ["", ".", "..", "../fund", "a/b", "Fund", "-a", "a.b", "a" * 65, "a\n", "ä"])
def test_names_that_are_none(keystore: Keystore, name: str) -> None:
    with pytest.raises(SettingsError):
        keystore.add(name, VoucherKey.generate(), PASSWORD, CHEAP)
    with pytest.raises(SettingsError):
        keystore.unlock(name, PASSWORD)
    with pytest.raises(SettingsError):
        keystore.export(name)


def test_a_key_of_another_tool_is_taken_and_sealed_anew(keystore: Keystore) -> None:
    key = VoucherKey.generate()
    theirs = json.dumps(eth_keyfile.create_keyfile_json(key.reveal(), b"old", kdf="pbkdf2", iterations=5))
    with pytest.raises(WrongPassword):
        keystore.take("fund", theirs, b"wrong", b"new", CHEAP)
    assert keystore.accounts() == ()
    keystore.take("fund", theirs, b"old", b"new", CHEAP)
    assert keystore.unlock("fund", b"new").reveal() == key.reveal()
    keystore.take("same", theirs, b"old", kdf=CHEAP)
    assert keystore.unlock("same", b"old").reveal() == key.reveal()


def test_a_file_copied_in_is_a_key(keystore: Keystore) -> None:
    """As foundry writes it: no address, and the folder is ours."""
    keystore.add("fund", VoucherKey.generate(), PASSWORD, CHEAP)
    key = VoucherKey.generate()
    plain = json.loads(sealed(key, b"theirs", CHEAP))
    del plain["address"]
    file = keystore.folder / "copied.json"
    file.write_text(json.dumps(plain))
    file.chmod(0o600)
    assert Account("copied", None) in keystore.accounts()
    assert keystore.unlock("copied", b"theirs").address == key.address


def test_what_is_taken_away_opens_elsewhere(keystore: Keystore) -> None:
    key = VoucherKey.generate()
    keystore.add("fund", key, PASSWORD, CHEAP)
    text = keystore.export("fund")
    assert eth_keyfile.decode_keyfile_json(json.loads(text), PASSWORD) == key.reveal()
    with pytest.raises(NoWallet):
        keystore.export("other")


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff" * 40, b"[]", b" " * 20_000])
def test_a_damaged_file_stops_no_other_key(keystore: Keystore, damage: bytes) -> None:
    key = VoucherKey.generate()
    keystore.add("fund", key, PASSWORD, CHEAP)
    keystore.add("broken", key, PASSWORD, CHEAP)
    (keystore.folder / "broken.json").write_bytes(damage)
    assert keystore.accounts() == (Account("fund", key.address),)
    assert keystore.damaged() == ("broken",)
    for use in (keystore.export, lambda name: keystore.unlock(name, PASSWORD)):
        with pytest.raises(KeystoreInvalid):
            use("broken")


@pytest.mark.parametrize("bits", [0o644, 0o640, 0o604, 0o660])
def test_a_key_that_others_can_read_is_not_used(keystore: Keystore, bits: int) -> None:
    keystore.add("fund", VoucherKey.generate(), PASSWORD, CHEAP)
    (keystore.folder / "fund.json").chmod(bits)
    with pytest.raises(StateError, match="others can read") as caught:
        keystore.unlock("fund", PASSWORD)
    assert caught.value.fix.startswith("chmod 600")
    assert keystore.damaged() == ("fund",)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "wallet").write_text("a file")
    with pytest.raises(HomeNotWritable):
        Keystore(tmp_path / "wallet" / "keystore").add("fund", VoucherKey.generate(), PASSWORD, CHEAP)
