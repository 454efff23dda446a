"""What paying adds to a stream: a paid answer beside a free one, over a line with a delay, in pairs.

    python -m bench.paid_stream               about 3 minutes
    python -m bench.paid_stream --quick       does it work at all

A payer's gateway and two providers, one that sells and one that gives, in one process; each pair is linked by QUIC
through a line of its own (bench/lossy_line.py). An engine in miniature writes tokens at a steady pace, so that whatever
makes a stream longer is ours. The money is real but for the chain: both journals are written and synced, vouchers and
quotes are signed and verified with the keys that a node uses. The channel is open, and holds enough.

Both answers of a pair begin together; which is sent first alternates. The *first* request of a channel knows no quote,
so that its first voucher waits for one; later ones send a voucher with the prompt.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.figures import interval
from bench.lossy_line import LossyLine
from bench.machine import commit
from bench.record import Figure, Run
from meshnode.core.prices import FREE
from tests.api.fake_llama import FakeLlamaServer
from tests.api.paid_stage import Engine, Provider, line_to, paid_gateway
from tests.api.raw_http import Connection, request
from tests.api.running import CHAT
from tests.lab.paying_ends import CONTENT_HASH, MODEL, NETWORK, PRICE
from tests.money_stage import PAYING_NODE, SELLING_NODE, Clocks, purse, shop

RATE_TOKENS_S = 60.0
RTT_S = 0.15
LIMIT_PERCENT = 1.0
PROMPT = "word " * 400
"""Longer than what the first voucher pays ahead, as most prompts are."""
END = b"\r\n0\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Effort:
    """Tokens of an answer, pairs, and how many pairs run side by side."""

    tokens: int = 600
    pairs: int = 12
    firsts: int = 4


QUICK = Effort(tokens=90, pairs=1, firsts=1)


@dataclass(frozen=True, slots=True)
class Timed:
    """One answer: seconds to its first token, to its last one, and the longest silence between two."""

    first_s: float
    whole_s: float
    pause_s: float


async def timed(port: int, tokens: int, model: str) -> Timed:
    """Ask for an answer and take it."""
    body = {"model": model, "stream": True, "max_tokens": tokens, "messages": [{"role": "user", "content": PROMPT}]}
    begun = time.monotonic()
    times: list[float] = []
    async with await Connection.open(port) as connection:
        connection.writer.write(request(CHAT, body))
        rest = b""
        while END not in rest:  # whose last words come after those of the answer, and are nobody's to wait for
            data = await connection.reader.read(1 << 16)
            if not data or (not rest and not data.startswith(b"HTTP/1.1 200 ")):
                raise RuntimeError(f"that is no whole answer: {(rest + data)[:300]!r}")
            rest = rest[-len(END) :] + data
            times += [time.monotonic() - begun] * data.count(b'"content":"word')
    if len(times) != tokens:
        raise RuntimeError(f"{len(times)} tokens came of {tokens}")
    return Timed(times[0], times[-1], max(b - a for a, b in zip(times, times[1:], strict=False)))


class Stage:
    """A free and a paid way to the same engine."""

    def __init__(self, stack: AsyncExitStack, folder: Path) -> None:
        self._stack = stack
        self._folder = folder
        self.ports: dict[str, int] = {}

    async def open(self) -> None:
        """Start it all."""
        enter, clocks = self._stack.enter_async_context, Clocks()
        llama = await enter(FakeLlamaServer.running())
        Engine(llama, 10**6, delay_s=1 / RATE_TOKENS_S)
        self.seller = await enter(shop(self._folder / "earning", clocks=clocks))
        self.payer = await enter(purse(self._folder / "spending", clocks=clocks))
        for way, till in (("paid", self.seller.earning), ("free", None)):
            provider = Provider(
                llama,
                till,
                model=MODEL,
                weights=CONTENT_HASH.hex(),
                identity=SELLING_NODE,
                requests=10_000,
                tokens=10**8,
                answer_tokens=10_000,
            )
            through = self._stack.enter_context(LossyLine(0.0, RTT_S / 2)).route
            line = await enter(line_to(provider, PAYING_NODE, through=through))
            price = PRICE if way == "paid" else FREE
            gateway = await enter(paid_gateway(line, self.payer.spending, price=price, chain=NETWORK.chain))
            self.ports[way] = gateway.port

    async def pair(self, number: int, tokens: int) -> dict[str, Timed]:
        """Both ways at once."""
        order = ["free", "paid"] if number % 2 else ["paid", "free"]
        found = await asyncio.gather(*(timed(self.ports[way], tokens, MODEL) for way in order))
        return dict(zip(order, found, strict=True))


async def measured(effort: Effort) -> tuple[list[dict[str, Timed]], list[dict[str, Timed]]]:
    """Pairs of first requests, each on a channel that nothing was sent over, and pairs of later ones on one channel."""
    firsts, later = [], []
    for number in range(effort.firsts):
        with TemporaryDirectory(prefix="meshnode-") as folder:
            async with AsyncExitStack() as stack:
                stage = Stage(stack, Path(folder))
                await stage.open()
                firsts.append(await stage.pair(number, effort.tokens))
                if number == effort.firsts - 1:
                    later = [await stage.pair(each, effort.tokens) for each in range(effort.pairs)]
    return firsts, later


def add(run: Run, name: str, pairs: list[dict[str, Timed]], *, limit: float | None) -> None:
    """The figures of one kind of request."""

    def of(way: str, figure: Callable[[Timed], float]) -> list[list[float]]:
        return [[figure(pair[way])] for pair in pairs]

    def longer(paid: object, free: object) -> float:
        ratios = [a[0] / b[0] for a, b in zip(paid, free, strict=True)]  # type: ignore[call-overload]
        return 100 * (statistics.median(ratios) - 1)

    wholes = of("paid", lambda timed: timed.whole_s), of("free", lambda timed: timed.whole_s)
    low, high = interval(longer, *wholes)
    note = f"{len(pairs)} pairs, free {statistics.median(value for [value] in wholes[1]):.3f} s"
    run.add(Figure(f"longer when paid: {name}", longer(*wholes), "%", limit, low=low, high=high, note=note))
    for what, figure in (("first token", lambda timed: timed.first_s), ("longest pause", lambda timed: timed.pause_s)):
        paid, free = (statistics.median(value for [value] in of(way, figure)) for way in ("paid", "free"))
        run.add(Figure(f"{what} when paid: {name}", 1000 * paid, "ms", note=f"free {1000 * free:.1f} ms"))
    run.raw[name] = [{way: [timed.first_s, timed.whole_s, timed.pause_s] for way, timed in p.items()} for p in pairs]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    print(f"{commit()}: {RATE_TOKENS_S:.0f} tokens/s over {1000 * RTT_S:.0f} ms")
    run = Run("paid_stream", options.quick)
    firsts, later = asyncio.run(measured(QUICK if options.quick else Effort()))
    add(run, "a request on a channel that is known", later, limit=LIMIT_PERCENT)
    add(run, "the first request", firsts, limit=None)
    run.finish(options.out)
    sys.exit(any(figure.reached is False for figure in run.figures))


if __name__ == "__main__":
    main()
