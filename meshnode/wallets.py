"""The wallet of a home folder: its keys, what may be spent of it, and the value that a terminal shows for a token.

    wallet/policy.json         what may be spent (policies.py)
    wallet/keystore/fund.json  the key that holds the money, under a password (Web3 Secret Storage, version 3)
    wallet/voucher.key         the key that signs vouchers and sends transactions: 64 hex digits, unlocked, replaceable
    wallet/terminal.token      new at each start of the node; calls that move money must come with it
    wallet/ledger.db           the journal (settlement/store.py)

Two keys, because they are in different danger. The voucher key must be at hand while nobody is; whoever steals it can
give away what lies in open channels, to those it lies there for, and no more. The key of the funds is used for one
signature when a channel is filled, and may otherwise stay locked: it sends nothing itself and needs no ether.

The folder is for its user alone. Nothing is read and nothing heavy is imported before it is asked for. The policy, the
files and the values of the keys never go through here into a log, an argument or an error.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from meshnode import durable
from meshnode.core.pay_policy import Policy
from meshnode.errors import HomeNotWritable, KeystoreInvalid, NoWallet, StateError, WalletLocked
from meshnode.policies import PolicyFile, StoredPolicy, facts_of

if TYPE_CHECKING:
    from meshnode.settlement.keys import VoucherKey
    from meshnode.settlement.keystore import Keystore
    from meshnode.settlement.networks import Network

FUND: Final = "fund"
VOUCHER_VARIABLE: Final = "MESHNODE_VOUCHER_KEY"
MOST_KEY_FILE_BYTES: Final = 200
MOST_PASSWORD_BYTES: Final = 1024
TERMINAL_BYTES: Final = 24


@dataclass(frozen=True, slots=True)
class StandingPolicy:
    """What holds now, as it was said for that network. With a `why_not` the policy is off, and that is why."""

    policy: Policy
    network: str
    why_not: str = ""


class Wallets:
    """The wallet of one home folder. Methods that use a key take up to a second: call them in a thread."""

    def __init__(
        self, home: Path, *, environment: Mapping[str, str] = os.environ, password_file: Path | None = None
    ) -> None:
        self.folder = home / "wallet"
        self.policy_file = PolicyFile(self.folder / "policy.json")
        self._environment = environment
        self._password_file = password_file

    @property
    def keystore_folder(self) -> Path:
        """Where the keystore of the funds lies."""
        return self.folder / "keystore"

    @property
    def voucher_file(self) -> Path:
        """The key that signs vouchers."""
        return self.folder / "voucher.key"

    @property
    def terminal_file(self) -> Path:
        """The terminal value of the running node."""
        return self.folder / "terminal.token"

    def exists(self) -> bool:
        """Whether there is a key to pay or to be paid with."""
        return bool(
            self._environment.get(VOUCHER_VARIABLE)
            or self.voucher_file.exists()
            or (self.keystore_folder / f"{FUND}.json").exists()
        )

    # --- the policy -------------------------------------------------------------------------------------------

    def policy(self, *, network: str, no_pay: bool) -> StandingPolicy:
        """What may be spent now, on this network. Never raises: what cannot be read allows nothing."""
        try:
            stored = self.policy_file.load()
        except StateError as reason:
            return StandingPolicy(Policy(), network, f"{reason.detail}; {reason.fix}")
        policy = replace(stored.policy, no_pay=no_pay)
        why_not = self._why_not(stored, network, no_pay)
        return StandingPolicy(replace(policy, mode="off") if why_not else policy, stored.network, why_not)

    def _why_not(self, stored: StoredPolicy, network: str, no_pay: bool) -> str:
        if no_pay:
            return "payments are switched off for this node by MESHNODE_NO_PAY"
        if stored.policy.mode == "off":
            return "payments are off: meshnode wallet policy --mode auto, in a terminal, switches them on"
        if stored.network != network:
            return (
                f"what may be spent was said for {stored.network}, and the node is on {network}: start it with "
                f"--network {stored.network}, or say it anew in a terminal, meshnode wallet policy --network {network}"
            )
        return "" if self.exists() else "there is no wallet: meshnode wallet new"

    def policy_facts(self, standing: StandingPolicy) -> dict[str, Any]:
        """The `policy` member of GET /api/spending."""
        return facts_of(StoredPolicy(standing.network, standing.policy))

    # --- keys -------------------------------------------------------------------------------------------------

    def address(self) -> str | None:
        """The address of the funds, None where there are none here. Needs no password. Raises KeystoreInvalid."""
        from meshnode.settlement import addresses

        if not (self.keystore_folder / f"{FUND}.json").exists():
            return None
        found = {account.name: account.address for account in self._keystore().accounts()}.get(FUND)
        if found is None:
            raise KeystoreInvalid(f"{self.keystore_folder / FUND}.json does not say its address")
        return addresses.shown(found)

    def voucher_address(self) -> str | None:
        """The address of the key that signs vouchers, None where there is none."""
        from meshnode.settlement import addresses

        try:
            return addresses.shown(self.voucher_key().address)
        except NoWallet:
            return None

    def voucher_key(self) -> VoucherKey:
        """The key that signs vouchers: that of MESHNODE_VOUCHER_KEY, else that of the file.

        Raises NoWallet, KeystoreInvalid, and StateError for a file that others can read.
        """
        from meshnode.settlement.keys import VoucherKey

        if given := self._environment.get(VOUCHER_VARIABLE):
            try:
                return VoucherKey.from_text(given)
            except KeystoreInvalid:
                raise KeystoreInvalid(f"{VOUCHER_VARIABLE} is not the key of an account: 64 hex digits") from None
        text = _read_private(self.voucher_file, MOST_KEY_FILE_BYTES)
        if text is None:
            raise NoWallet(f"home {self.folder.parent}")
        try:
            return VoucherKey.from_text(text.decode("ascii", "replace").strip())
        except KeystoreInvalid:
            raise KeystoreInvalid(
                f"{self.voucher_file} is not the key of an account",
                fix="put back its copy, or move it away: meshnode wallet new makes another, for new channels",
            ) from None

    def ensure_voucher_key(self) -> VoucherKey:
        """The key that signs vouchers, made where there is none. Raises as `voucher_key`, and HomeNotWritable."""
        from meshnode.settlement.keys import VoucherKey

        with contextlib.suppress(NoWallet):
            return self.voucher_key()
        key = VoucherKey.generate()
        durable.write(self.voucher_file, key.reveal().hex().encode() + b"\n")
        return key

    def fund_key(self, password: bytes | None = None) -> VoucherKey:
        """The key of the funds; without a password, that of the password file is tried.

        Raises NoWallet, WalletLocked without either, WrongPassword, KeystoreInvalid and StateError.
        """
        if not (self.keystore_folder / f"{FUND}.json").exists():
            raise NoWallet(f"home {self.folder.parent}")
        if password is None:
            password = self._kept_password()
        return self._keystore().unlock(FUND, password)

    def make(self, password: bytes, kdf: str = "scrypt") -> dict[str, Any]:
        """A new wallet: a key for the funds under this password, and one for vouchers. Its addresses.

        Raises StateError where there is one already, HomeNotWritable.
        """
        from meshnode.settlement.keys import VoucherKey
        from meshnode.settlement.keystore_v3 import KDFS

        self._begin()
        self._keystore().add(FUND, VoucherKey.generate(), password, KDFS[kdf])
        self.ensure_voucher_key()
        return self.facts()

    def take(
        self, text: str, password: bytes, new_password: bytes | None = None, kdf: str = "scrypt"
    ) -> dict[str, Any]:
        """A wallet from what another one exported: a keystore (version 3) that `password` opens, or the hex digits of
        a key, which are then kept under `password`. Its addresses.

        Raises StateError where there is one already, KeystoreInvalid, WrongPassword, HomeNotWritable.
        """
        from meshnode.settlement.keys import VoucherKey
        from meshnode.settlement.keystore_v3 import KDFS

        self._begin()
        if text.lstrip().startswith("{"):
            self._keystore().take(FUND, text, password, new_password, KDFS[kdf])
        else:
            self._keystore().add(FUND, VoucherKey.from_text(text.strip()), new_password or password, KDFS[kdf])
        self.ensure_voucher_key()
        return self.facts()

    def export(self) -> str:
        """The keystore of the funds as other wallets read it: still under its password. Raises NoWallet."""
        return self._keystore().export(FUND)

    def facts(self) -> dict[str, Any]:
        """Where the wallet is, and the addresses of its keys."""
        return {
            "address": self.address(),
            "voucher": self.voucher_address(),
            "keystore": str(self.keystore_folder / f"{FUND}.json"),
            "voucher_key": VOUCHER_VARIABLE if self._environment.get(VOUCHER_VARIABLE) else str(self.voucher_file),
        }

    def _begin(self) -> None:
        """Make the folder, unless a wallet is in it."""
        if (self.keystore_folder / f"{FUND}.json").exists():
            raise StateError(
                f"there is a wallet already: {self.address()}",
                fix="keep it; for another one, use another home: MESHNODE_HOME=FOLDER meshnode wallet new",
            )
        try:
            self.folder.mkdir(mode=durable.PRIVATE_FOLDER, parents=True, exist_ok=True)
        except OSError as reason:
            raise HomeNotWritable(f"{self.folder}: {reason.strerror}") from None

    def _keystore(self) -> Keystore:
        from meshnode.settlement.keystore import Keystore

        return Keystore(self.keystore_folder)

    def _kept_password(self) -> bytes:
        if self._password_file is None:
            raise WalletLocked
        return password_in(self._password_file)

    # --- the terminal value -----------------------------------------------------------------------------------

    def new_terminal_token(self) -> str:
        """A terminal value for this run of the node, kept where only its user can read it. Raises HomeNotWritable."""
        token = secrets.token_urlsafe(TERMINAL_BYTES)
        durable.write(self.terminal_file, token.encode())
        return token

    def terminal_token(self) -> str:
        """That of the running node. Raises NoWallet where the node has opened none, StateError."""
        text = _read_private(self.terminal_file, MOST_KEY_FILE_BYTES)
        if text is None:
            raise NoWallet("the node that runs here has opened none", fix="make one, then start the node anew")
        return text.decode("ascii", "replace").strip()

    # --- what the chain says ----------------------------------------------------------------------------------

    async def balance(self, network: Network, endpoints: tuple[str, ...]) -> dict[str, Any]:
        """What the two keys hold on the chain, without any node: USDC of the funds, ether of the voucher key.

        Raises NoWallet, SettingsError for endpoints that will not do, ChainUnreachable, ChainDisagrees, WrongNetwork.
        """
        from meshnode.settlement import addresses, networks, preflight
        from meshnode.settlement.rpc import RpcPair

        address, voucher = self.address(), self.voucher_address()
        if address is None and voucher is None:
            raise NoWallet(f"home {self.folder.parent}")
        pair = await RpcPair.of(endpoints, testnet=network.testnet)
        try:
            await networks.checked(network, pair)
            micros = 0
            if address is not None:
                micros = await preflight.balance(pair, network, addresses.parse(address))
            wei = 0 if voucher is None else await pair.wei(addresses.parse(voucher))
        finally:
            await pair.close()
        return {
            "address": address,
            "voucher": voucher,
            "network": network.name,
            "chain": network.chain,
            "testnet": network.testnet,
            "usdc_micros": micros,
            "voucher_wei": str(wei),
        }


def find_network(name: str, file: Path | None) -> Network:
    """The network of that name: one that is known, or one of the file. Raises SettingsError."""
    from meshnode.settlement import networks

    return networks.find(name, file)


def usual_endpoints(network: str) -> tuple[str, ...]:
    """Where a node asks that chain when nothing is set; empty for a chain of one's own."""
    from meshnode.settlement import networks

    return networks.ENDPOINTS.get(network, ())


def password_in(file: Path) -> bytes:
    """The password that a file holds, without the end of its line. Raises StateError."""
    text = _read_private(file, MOST_PASSWORD_BYTES + 2)
    if text is None:
        raise StateError(f"the password file {file} does not exist")
    password = text.removesuffix(b"\n").removesuffix(b"\r")
    if not 0 < len(password) <= MOST_PASSWORD_BYTES or b"\n" in password or b"\0" in password:
        raise StateError(f"the password file {file} holds no password", fix="one line, of 1024 bytes at most")
    return password


def _read_private(file: Path, most_bytes: int) -> bytes | None:
    """A file for its user alone; None where there is none. Raises StateError."""
    try:
        with file.open("rb") as opened:
            mode = stat.S_IMODE(os.fstat(opened.fileno()).st_mode)
            text = opened.read(most_bytes + 1)
    except FileNotFoundError:
        return None
    except OSError as reason:
        raise StateError(f"{file} cannot be read: {reason.strerror}") from None
    if mode & 0o077:
        raise StateError(f"others can read {file}", fix=f"chmod 600 {file}")
    if len(text) > most_bytes:
        raise StateError(f"{file} is too large")
    return text
