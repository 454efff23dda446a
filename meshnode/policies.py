"""What may be spent, as a person has said it: the policy file of a wallet, and what counts as allowing more.

    wallet/policy.json   {"version": 1, "network": text, "mode": "off" | "auto",
                          "ceiling": {"in": micros, "out": micros} | null, "model_ceilings": {name: {"in", "out"}},
                          "month_micros", "deposit_micros", "most_deposit_micros", "gas_month_micros", "prepay_micros"}

`meshnode wallet policy` writes it, and nothing else does; a node reads it, and never trusts half of it: a file that is
damaged, that others can write, or that a later version made, allows nothing. A policy is for one network, so that caps
that were meant for test money never count for real money.

Less may be allowed from anywhere: by a script, a program, an agent. More may be allowed by a person at a terminal only
(cli/wallet_policy.py asks); `loosened` is the one place that tells the two apart.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from meshnode import durable
from meshnode.core.pay_policy import Policy
from meshnode.core.prices import MOST_PRICE as MOST_PRICE
from meshnode.core.prices import Price
from meshnode.core.prices import parse_usd as parse_usd
from meshnode.core.prices import usd as usd
from meshnode.errors import HomeNotWritable, StateError
from meshnode.settlement.networks import DEFAULT
from meshnode.wire.registry import LIMIT_MODEL_NAME_CHARS, LIMIT_NAME_CHARS
from meshnode.wire.schema import can_be_shown

VERSION: Final = 1
MOST_BYTES: Final = 64 << 10
MOST_MODELS: Final = 200
AMOUNTS: Final = ("month_micros", "deposit_micros", "most_deposit_micros", "gas_month_micros", "prepay_micros")
MEMBERS: Final = frozenset({"version", "network", "mode", "ceiling", "model_ceilings", *AMOUNTS})
WORDS: Final[Mapping[str, str]] = {
    "month_micros": "the cap of a month",
    "deposit_micros": "what is put into a new channel",
    "most_deposit_micros": "the most in one channel",
    "gas_month_micros": "the cap of a month for fees",
    "prepay_micros": "what is paid ahead of one answer",
}


@dataclass(frozen=True, slots=True)
class StoredPolicy:
    """A policy and the network that it is for."""

    network: str = DEFAULT
    policy: Policy = field(default_factory=Policy)


def read(text: bytes) -> StoredPolicy:
    """What `write` wrote. Raises ValueError for anything else, however little is wrong with it."""
    if len(text) > MOST_BYTES:
        raise ValueError("it is too large")
    try:
        facts = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("it is not JSON") from None
    if not isinstance(facts, dict) or set(facts) != MEMBERS or facts["version"] != VERSION:
        raise ValueError("it is not a policy that this version knows")
    network, ceilings = facts["network"], facts["model_ceilings"]
    if not isinstance(network, str) or not _is_name(network, LIMIT_NAME_CHARS):
        raise ValueError("its network has no name")
    if not isinstance(ceilings, dict) or len(ceilings) > MOST_MODELS:
        raise ValueError("its ceilings of models are no table, or too many")
    if not all(_is_name(model, LIMIT_MODEL_NAME_CHARS) for model in ceilings):
        raise ValueError("it names a model as none is called")
    return StoredPolicy(
        network,
        Policy(
            mode=facts["mode"] if isinstance(facts["mode"], str) else "",  # type: ignore[arg-type]
            ceiling=None if facts["ceiling"] is None else _price(facts["ceiling"]),
            model_ceilings={model: _price(price) for model, price in ceilings.items()},
            **{name: facts[name] for name in AMOUNTS},
        ),
    )


def write(stored: StoredPolicy) -> bytes:
    """The text of the file."""
    return json.dumps({"version": VERSION, **facts_of(stored)}, indent=2).encode() + b"\n"


def facts_of(stored: StoredPolicy) -> dict[str, Any]:
    """The policy as the control API and `--json` show it; amounts are whole micro-USDC."""
    policy = stored.policy
    return {
        "mode": policy.mode,
        "network": stored.network,
        "ceiling": None if policy.ceiling is None else _shown(policy.ceiling),
        "model_ceilings": {model: _shown(price) for model, price in sorted(policy.model_ceilings.items())},
        **{name: getattr(policy, name) for name in AMOUNTS},
    }


def _is_name(text: str, most_chars: int) -> bool:
    return 0 < len(text) <= most_chars and can_be_shown(text)


def _price(facts: object) -> Price:
    if not isinstance(facts, dict) or set(facts) != {"in", "out"}:
        raise ValueError("a ceiling has a price in and a price out")
    return Price(facts["in"], facts["out"])


def _shown(price: Price) -> dict[str, int]:
    return {"in": price.tokens_in, "out": price.tokens_out}


# --- more and less --------------------------------------------------------------------------------------------


def loosened(before: StoredPolicy, after: StoredPolicy) -> tuple[str, ...]:
    """What `after` allows that `before` did not, each in words; empty when it allows nothing more.

    Every bound counts by itself, also while payments are off: what is raised in secret now would hold as soon as they
    are switched on. Another network is never less than the one before.
    """
    old, new = before.policy, after.policy
    found = []
    if before.network != after.network:
        found.append(f"the network: {after.network}, not {before.network}")
    if old.mode == "off" != new.mode:
        found.append("payments: on")
    for name in AMOUNTS:
        was, becomes = getattr(old, name), getattr(new, name)
        if becomes > was:
            found.append(f"{WORDS[name]}: {usd(becomes)}, not {usd(was)}")
    for model in (None, *sorted({*old.model_ceilings, *new.model_ceilings})):
        was = old.ceiling if model is None else old.ceiling_for(model)
        becomes = new.ceiling if model is None else new.ceiling_for(model)
        if becomes is not None and (was is None or becomes.exceeds(was)):
            of = "" if model is None else f" of {model}"
            found.append(f"the price ceiling{of}: {_words(becomes)}, not {_words(was)}")
    return tuple(found)


def _words(price: Price | None) -> str:
    return "none" if price is None else f"{usd(price.tokens_in)} in and {usd(price.tokens_out)} out"


# --- the file -------------------------------------------------------------------------------------------------


class PolicyFile:
    """The file of one wallet. It is read anew when it has changed, which costs one stat where it has not."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._seen: tuple[int, ...] | None = None
        self._held: StoredPolicy | str = StoredPolicy()

    def load(self) -> StoredPolicy:
        """What stands there; the policy that allows nothing where nobody has said anything yet.

        Raises StateError for a file that cannot be trusted.
        """
        mark = self._mark()
        if mark is None or mark != self._seen:
            self._held = self._read()
            self._seen = mark
        if isinstance(self._held, str):
            raise StateError(
                f"{self.file}: {self._held}", fix="say anew what may be spent: meshnode wallet policy --reset"
            )
        return self._held

    def save(self, stored: StoredPolicy) -> None:
        """Put another policy there. Raises HomeNotWritable."""
        durable.write(self.file, write(stored))

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """Hold the folder of the file against other commands that change it. Raises HomeNotWritable."""
        try:
            self.file.parent.mkdir(mode=durable.PRIVATE_FOLDER, parents=True, exist_ok=True)
            folder = os.open(self.file.parent, os.O_RDONLY)
        except OSError as reason:
            raise HomeNotWritable(f"{self.file.parent}: {reason.strerror}") from None
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)

    def _mark(self) -> tuple[int, ...] | None:
        try:
            found = self.file.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino

    def _read(self) -> StoredPolicy | str:
        """The policy, or what is wrong with the file."""
        try:
            with self.file.open("rb") as opened:
                mode = os.fstat(opened.fileno()).st_mode
                text = opened.read(MOST_BYTES + 1)
        except FileNotFoundError:
            return StoredPolicy()
        except OSError as reason:
            return f"it cannot be read ({reason.strerror})"
        if stat.S_IMODE(mode) & 0o022:
            return "others can write it"
        try:
            return read(text)
        except ValueError as reason:
            return str(reason)


def with_ceiling(policy: Policy, model: str, tokens_in: int | None, tokens_out: int | None) -> Policy:
    """The policy with another ceiling, for one model or with "" for all others.

    None leaves that direction as it is; where no ceiling was, it becomes that of the other direction. Raises
    ValueError for a price that is none, a name as no model has it, or too many models.
    """
    before = policy.ceiling_for(model) if model else policy.ceiling
    given = tokens_in if tokens_out is None else tokens_out
    start = before or Price(given or 0, given or 0)
    price = Price(
        start.tokens_in if tokens_in is None else tokens_in, start.tokens_out if tokens_out is None else tokens_out
    )
    if not model:
        return replace(policy, ceiling=price)
    if not _is_name(model, LIMIT_MODEL_NAME_CHARS):
        raise ValueError(f"the name of a model has at most {LIMIT_MODEL_NAME_CHARS} characters")
    if len(policy.model_ceilings) >= MOST_MODELS and model not in policy.model_ceilings:
        raise ValueError(f"no more than {MOST_MODELS} models can have a ceiling of their own")
    return replace(policy, model_ceilings={**policy.model_ceilings, model: price})
