"""A payer and a provider that are killed at any step: what was signed, held and charged is the same in the end.

The ends are those of tests/lab/paying_ends.py: the purse and the till of a node, over journals on a real disk.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import shutil
import signal
import socket
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from meshnode.core.prices import charge
from meshnode.core.windows import AHEAD_TOKENS, EVERY_TOKENS
from meshnode.errors import MeshnodeError
from meshnode.settlement.keys import Verifier
from meshnode.settlement.store import Store
from meshnode.settlement.store_channels import channel_of
from meshnode.settlement.typed_data import voucher_digest
from tests.lab import paying_ends
from tests.lab.paying_ends import (
    CHANNEL,
    MOST_OUT,
    NETWORK,
    PAYER,
    PRICE,
    TOKENS_IN,
    Killed,
    Link,
    PayerEnd,
    Points,
    ProviderEnd,
)

KILLS, TOKENS, SEED = 50, 10_000, 7
MORE = 500
"""Tokens that are asked for when all came and too few were killed: how many are depends on the machine's speed."""
WINDOW_MICROS = charge(PRICE, TOKENS_IN, AHEAD_TOKENS + EVERY_TOKENS)
"""What one interruption may cost one side."""
LIMIT_S = 60.0
LATER = 4
"""Requests after which nothing is left of what was signed ahead."""


@dataclass(frozen=True)
class Book:
    """What the journal of one side says of the channel, in micro-USDC."""

    signed: int
    charged: int
    spent: int
    running: int


def book_of(folder: Path) -> Book:
    """Read a journal that nobody has open; the voucher in it bears its signature."""
    with sqlite3.connect(folder / "ledger.db") as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        signed, charged, signature = db.execute(
            "SELECT signed_micros, charged_micros, signature FROM channels"
        ).fetchone()
        (spent,) = db.execute("SELECT coalesce(sum(micros), 0) FROM spent").fetchone()
        (running,) = db.execute("SELECT count(*) FROM requests WHERE state = 'running'").fetchone()
    db.close()
    if signed:
        digest = voucher_digest(CHANNEL, signed, NETWORK.chain, NETWORK.hub)
        assert Verifier(PAYER.address).verify(digest, signature)
    return Book(signed, charged, spent, running)


# --- processes ------------------------------------------------------------------------------------------------


SPAWN = multiprocessing.get_context("forkserver")
SPAWN.set_forkserver_preload(["tests.lab.paying_ends"])
"""Processes of their own, which need not import everything anew."""


class Side:
    """A process of one side. `marks` has what it tells."""

    def __init__(self, work: Callable[..., None], words: tuple[object, ...], killed_after_s: float | None) -> None:
        self.marks, theirs = SPAWN.Pipe(duplex=False)
        self.process = SPAWN.Process(target=work, args=(*words, theirs))
        self.process.start()
        theirs.close()
        self._killed_at = None if killed_after_s is None else time.monotonic() + killed_after_s

    def was_killed(self) -> bool:
        """It was, by a signal, or is now because it is time; any other failure is an error."""
        if self._killed_at is not None and time.monotonic() > self._killed_at:
            self.process.kill()
            self.process.join()
        assert self.process.exitcode in (None, 0, -signal.SIGKILL)
        return self.process.exitcode == -signal.SIGKILL

    def has_ended(self) -> bool:
        """It did what it was to do."""
        return self.process.exitcode == 0

    def end(self) -> None:
        """Whatever it does."""
        self.process.kill()
        self.process.join()
        self.process.close()
        self.marks.close()


@dataclass
class Run:
    """Both processes, started again whenever one was killed, until the payer has its tokens and enough were killed."""

    folder: Path
    chance: random.Random
    kills: dict[str, int] = field(default_factory=lambda: {"payer": 0, "provider": 0})
    requests: list[int] = field(default_factory=list)
    """The tokens that came of each."""
    killed_at: int = 0
    """How many there were at the last kill."""

    @property
    def tokens(self) -> int:
        """All that came."""
        return sum(self.requests)

    def start(self, who: str) -> Side:
        """A process. As long as there is somebody to be killed, it kills itself at some point, or is killed some time
        after its start, wherever it is then.
        """
        goes_on = self.are_enough()
        is_hit = not goes_on and self.chance.random() < 0.3
        last = 0 if goes_on or is_hit else self.chance.randint(2, 55)
        after_s = self.chance.uniform(0.02, 0.4) if is_hit else None
        words: tuple[object, ...] = (self.folder, self.folder / "socket", last)
        if who == "provider":
            return Side(paying_ends.provide, words, after_s)
        return Side(paying_ends.pay, (*words, max(TOKENS - self.tokens, MORE)), after_s)

    def go(self) -> None:
        """From the first token to the last."""
        ends_at = time.monotonic() + LIMIT_S
        provider, payer = self.start("provider"), self.start("payer")
        try:
            while True:
                assert time.monotonic() < ends_at, f"{self.tokens} tokens after {self.kills} kills"
                self.read(payer)
                if provider.was_killed():
                    self.count("provider")
                    provider = self.start("provider")
                has_ended = payer.has_ended()
                if has_ended or payer.was_killed():
                    while self.read(payer):
                        pass
                    if has_ended and self.are_enough() and len(self.requests) >= self.killed_at + LATER:
                        break
                    if not has_ended:
                        self.count("payer")
                    payer = self.start("payer")
            provider.process.terminate()
            provider.process.join(10)
            assert provider.has_ended()
        finally:
            provider.end()
            payer.end()

    def count(self, who: str) -> None:
        """One of them was killed."""
        self.kills[who] += 1
        self.killed_at = len(self.requests)

    def are_enough(self) -> bool:
        """Whether so many were killed as must be."""
        return sum(self.kills.values()) >= KILLS

    def read(self, payer: Side) -> bool:
        """Take what the payer has told so far; waits a moment for it."""
        told = False
        try:
            while payer.marks.poll(0 if told else 0.02):
                if payer.marks.recv_bytes() == b"r":
                    self.requests.append(0)
                else:
                    self.requests[-1] += 1
                told = True
        except EOFError:
            return False
        return told


def test_fifty_kills_over_ten_thousand_tokens(tmp_path: Path) -> None:
    asyncio.run(paying_ends.stage(tmp_path))
    run = Run(tmp_path, random.Random(SEED))
    began = time.monotonic()
    run.go()
    payer, provider = book_of(tmp_path / "payer"), book_of(tmp_path / "provider")
    kills = sum(run.kills.values())
    print(
        f"{run.kills} in {time.monotonic() - began:.1f} s; {len(run.requests)} requests, {run.tokens} tokens: {payer}"
    )
    assert run.tokens >= TOKENS
    assert kills >= KILLS and min(run.kills.values()) >= KILLS // 4
    # Signed = held = charged = counted as spent, to the micro-USDC.
    assert payer.signed == provider.signed == provider.charged == payer.charged == payer.spent
    assert payer.running == provider.running == 0
    # And it is what the tokens cost that came, give or take a window for each interruption.
    cost = sum(charge(PRICE, TOKENS_IN, tokens) for tokens in run.requests if tokens)
    assert abs(payer.signed - cost) <= kills * WINDOW_MICROS


# --- every point ----------------------------------------------------------------------------------------------


async def _request(
    payer: PayerEnd, provider: ProviderEnd, points: dict[str, Points], tokens: int, leaves_after: float | None = None
) -> None:
    """One request over a pair of sockets. Whoever is killed hangs up, and the other side notices.

    The caller of the payer leaves after so many seconds, if at all.
    """
    ends = [await asyncio.open_connection(sock=sock) for sock in socket.socketpair()]
    asks, answers = Link(*ends[0], points["payer"]), Link(*ends[1], points["provider"])

    async def hang_up_after(work: asyncio.Future[object], link: Link) -> None:
        try:
            await work
        except (Killed, MeshnodeError, OSError, asyncio.CancelledError):
            pass
        finally:
            link.close()

    asking = asyncio.ensure_future(payer.request(asks, tokens))
    answering = asyncio.ensure_future(provider.serve(answers))
    if leaves_after is not None:
        asyncio.get_running_loop().call_later(leaves_after, asking.cancel)
    await asyncio.gather(hang_up_after(asking, asks), hang_up_after(answering, answers))
    for _, writer in ends:
        with suppress(OSError):
            await writer.wait_closed()


_OTHER = {"payer": "provider", "provider": "payer"}


async def _check_kept(folder: Path, dead: str, living: Store) -> None:
    """What the provider holds was counted by the payer before, and what it charged is covered by that."""
    channel = await living.run(lambda db: channel_of(db, CHANNEL))
    assert channel is not None
    books = {dead: book_of(folder / dead), _OTHER[dead]: Book(channel.signed_micros, channel.charged_micros, 0, 0)}
    assert books["provider"].charged <= books["provider"].signed <= books["payer"].signed
    assert books["payer"].signed - books["provider"].signed <= WINDOW_MICROS


async def _killed_at(folder: Path, who: str, point: int) -> bool:
    """Kill one side at a point of a request, start it again, and ask twice more. False when that point never came."""
    await paying_ends.stage(folder)
    points = {"payer": Points(), "provider": Points()}
    make: dict[str, Callable[[], PayerEnd | ProviderEnd]] = {
        "payer": lambda: PayerEnd(folder, points["payer"], lambda _: None),
        "provider": lambda: ProviderEnd(folder, points["provider"]),
    }
    points[who] = Points(point)
    ends = {name: build() for name, build in make.items()}
    for end in ends.values():
        with suppress(Killed):
            await end.start()
    await _request(ends["payer"], ends["provider"], points, 70)  # type: ignore[arg-type]
    was_killed = points[who].passed >= point
    await ends[who].close()
    await _check_kept(folder, who, ends[_OTHER[who]].store)
    points[who] = Points()
    ends[who] = make[who]()
    await ends[who].start()
    for _ in range(2):
        await _request(ends["payer"], ends["provider"], points, 120)  # type: ignore[arg-type]
    for end in ends.values():
        await end.close()
    payer, provider = book_of(folder / "payer"), book_of(folder / "provider")
    assert payer.signed == provider.signed == provider.charged == payer.charged == payer.spent, f"{who} at {point}"
    assert payer.running == provider.running == 0
    whole = 2 * charge(PRICE, TOKENS_IN, 120)
    assert whole <= payer.signed <= whole + charge(PRICE, TOKENS_IN, 70) + WINDOW_MICROS
    return was_killed


async def _agreed(folder: Path, payer: PayerEnd, provider: ProviderEnd) -> Book:
    """Some whole requests later, as soon as headroom is used up, both sides have the same sums, which are returned."""
    nobody = {"payer": Points(), "provider": Points()}
    for _ in range(LATER):
        await _request(payer, provider, nobody, MOST_OUT)
    await payer.close()
    await provider.close()
    paid, earned = book_of(folder / "payer"), book_of(folder / "provider")
    assert paid.signed == earned.signed == earned.charged == paid.charged
    assert paid.running == earned.running == 0
    return paid


async def _ends(folder: Path) -> tuple[PayerEnd, ProviderEnd, dict[str, Points]]:
    points = {"payer": Points(), "provider": Points()}
    payer, provider = PayerEnd(folder, points["payer"], lambda _: None), ProviderEnd(folder, points["provider"])
    await payer.start()
    await provider.start()
    return payer, provider, points


@pytest.mark.parametrize("seed", range(3))
def test_requests_at_once_on_one_channel_some_of_which_are_given_up(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)

    async def run() -> Book:
        await paying_ends.stage(tmp_path)
        payer, provider, points = await _ends(tmp_path)
        await asyncio.gather(
            *(
                _request(payer, provider, points, chance.randint(1, 300), chance.choice([None, chance.uniform(0, 0.2)]))
                for _ in range(8)
            )
        )
        return await _agreed(tmp_path, payer, provider)

    paid = asyncio.run(run())
    assert paid.spent == paid.signed


@pytest.mark.parametrize("who", ["payer", "provider"])
def test_an_old_backup_of_either_side_pays_nothing_twice(tmp_path: Path, who: str) -> None:
    async def run() -> tuple[Book, Book]:
        await paying_ends.stage(tmp_path)
        for last in (False, True):
            payer, provider, points = await _ends(tmp_path)
            for _ in range(3):
                await _request(payer, provider, points, 50)
            await payer.close()
            await provider.close()
            if not last:
                shutil.copytree(tmp_path / who, tmp_path / "backup")
        before = book_of(tmp_path / "payer")
        shutil.rmtree(tmp_path / who)
        (tmp_path / "backup").rename(tmp_path / who)
        payer, provider, _ = await _ends(tmp_path)
        return before, await _agreed(tmp_path, payer, provider)

    before, after = asyncio.run(run())
    # What was signed is what it was, and what is asked for after that at most comes to it.
    assert before.signed <= after.signed <= before.signed + LATER * charge(PRICE, TOKENS_IN, MOST_OUT)
    assert after.spent == after.signed


@pytest.mark.parametrize("who", ["payer", "provider"])
def test_a_kill_at_every_point_of_a_request(tmp_path: Path, who: str) -> None:
    point = 1
    while asyncio.run(_killed_at(tmp_path / str(point), who, point)):
        point += 1
    assert point > 15
