"""Models over several machines: network delays per token, tokens/s, loads, bytes and recovery, beside stock llama.cpp.

    python -m bench.split                 all of it, about 15 minutes
    python -m bench.split --quick         does it work at all, about 2 minutes
    python -m bench.split --only load     one part (repeatable); --help names them all

Real nodes run on machines of their own (network namespaces) with emulated lines between them; llama.cpp's RPC without
any patch runs over plain TCP on the same machines and lines, with the same command lines but for the addresses, and
both are asked in turn. bench/README.md describes the method. Needs root, for the namespaces.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.figures import quantile
from bench.line import LineShape
from bench.llama import Decoded, Llama
from bench.machine import commit
from bench.pipeline import LAYERS, Pipeline, far, machines, spread
from bench.place import Place
from bench.record import Figure, Run
from bench.split_recovery import detection, recovery, texts
from bench.stock import Line, StockSplit
from bench.wide_demo import Width, kept_wide_demo, plan_width
from meshnode.models.catalog import DEMO_DRAFT
from tests.lab.far_network import why_not

DELAYS_MS = (5.0, 20.0, 50.0)
FAR_MS = 20.0
SMALL = Width(times=2, hidden_times=2, layers=LAYERS)
"""21 MB: its computing takes little, so that delays show."""
LARGE_BYTES = 1_500_000_000
LONG_PROMPT = 4096
MB = 1e6


@dataclass(frozen=True, slots=True)
class Effort:
    """How much of everything; `QUICK` only shows that it works."""

    most_stages: int = 4
    rounds: int = 2
    tokens: int = 40
    answer_tokens: int = 280
    near_rounds: int = 4
    loads: int = 5
    kills: int = 20
    detections: int = 3
    placements: int = 20
    texts: int = 6


QUICK = Effort(2, 1, 12, 24, 1, 1, 1, 1, 2, 1)


# --- two ways, asked in turn ------------------------------------------------------------------------------------


@dataclass
class Both:
    """The same placement by nodes and by stock llama.cpp, with the answers of each so far."""

    ours: Pipeline
    stock: Llama

    def alternate(self, rounds: int, tokens: int) -> tuple[list[Decoded], list[Decoded]]:
        """Ask each of them `rounds` times, the first now one and now the other. The first answers only warm up."""
        self.ours.decode(4)
        self.stock.decode(4)
        found: dict[int, list[Decoded]] = {0: [], 1: []}
        for number in range(rounds):
            for side in (0, 1) if number % 2 == 0 else (1, 0):
                found[side].append((self.ours, self.stock)[side].decode(tokens))
        return found[0], found[1]


def token_s(answers: list[Decoded]) -> float:
    """Median seconds for a token."""
    return statistics.median(answer.token_s for answer in answers)


def compare(
    run: Run, name: str, ours: list[Decoded], stock: list[Decoded], *, limit: float | None, note: str = ""
) -> None:
    """How many times as fast ours is, with the range of the pairs."""
    ratios = [mine.tokens_per_s / other.tokens_per_s for mine, other in zip(ours, stock, strict=True)]
    mine, other = (statistics.median(each.tokens_per_s for each in answers) for answers in (ours, stock))
    words = f"stock {other:.1f} tokens/s, here {mine:.1f}{note}; {len(ratios)} pairs"
    middle = statistics.median(ratios)
    run.add(Figure(name, middle, "times", limit, at_least=True, low=min(ratios), high=max(ratios), note=words))


# --- the parts --------------------------------------------------------------------------------------------------


def delays(run: Run, effort: Effort) -> None:
    """Network delays that a token waits for, and what that makes of tokens/s beside stock llama.cpp."""
    model = str(kept_wide_demo(SMALL))
    for stages in range(1, effort.most_stages + 1):
        with (
            Place(machines(stages), far(0)) as place,
            Pipeline(place, model, spread(stages)) as pipeline,
            StockSplit(pipeline.stock_line(), place) as stock,
        ):
            both = Both(pipeline, stock.llama)
            ours, theirs = both.alternate(effort.rounds, effort.tokens)
            near = token_s(ours), token_s(theirs)
            for delay_ms in DELAYS_MS:
                place.shape(far(delay_ms))
                one_way_s = place.one_way_s()
                tokens = effort.answer_tokens if delay_ms == FAR_MS and stages in (2, 3) else effort.tokens
                ours, theirs = both.alternate(effort.rounds, tokens)
                found = [
                    (token_s(answers) - base) / one_way_s for answers, base in zip((ours, theirs), near, strict=True)
                ]
                note = f"stock {found[1]:.2f}, {1000 * token_s(theirs):.1f} ms; here {1000 * token_s(ours):.1f} ms"
                name = f"network delays per token, k={stages}, {delay_ms:g} ms one way"
                run.add(Figure(name, found[0], "delays", stages + 1.25, note=note))
                if tokens == effort.answer_tokens:
                    limit = {2: 1.33, 3: 1.45}[stages]
                    compare(run, f"tokens/s over stock, k={stages}, {delay_ms:g} ms", ours, theirs, limit=limit)


def draft(run: Run, effort: Effort) -> None:
    """The same with a draft model on the host, against stock llama.cpp without and with it."""
    model = str(kept_wide_demo(SMALL))
    for stages in (2, 3)[: effort.most_stages - 1]:
        with (
            Place(machines(stages), far(0)) as place,
            Pipeline(place, model, spread(stages), "--draft", str(DEMO_DRAFT)) as pipeline,
        ):
            line = pipeline.stock_line()
            with StockSplit(line, place) as with_draft, StockSplit(line.without_draft(), place) as without:
                place.shape(far(FAR_MS))
                both = Both(pipeline, without.llama)
                ours, theirs = both.alternate(effort.rounds, effort.answer_tokens)
                drafting = with_draft.llama.decode(effort.answer_tokens)
        note = f", stock with the same draft {drafting.tokens_per_s:.1f}"
        name = f"tokens/s with draft over stock, k={stages}, {FAR_MS:g} ms"
        compare(run, name, ours, theirs, limit=2.5, note=note)


def rough(run: Run, effort: Effort) -> None:
    """The same over lines that waver and lose a packet in two hundred."""
    model = str(kept_wide_demo(SMALL))
    with (
        Place(machines(2), far(0)) as place,
        Pipeline(place, model, spread(2)) as pipeline,
        StockSplit(pipeline.stock_line(), place) as stock,
    ):
        place.shape(LineShape(delay_s=FAR_MS / 1000, jitter_s=0.002, loss=0.005))
        ours, theirs = Both(pipeline, stock.llama).alternate(effort.rounds, effort.answer_tokens)
    compare(run, f"tokens/s over stock, k=2, {FAR_MS:g} ms +- 2, 0.5 % loss", ours, theirs, limit=None)


def near(run: Run, effort: Effort) -> None:
    """Everything on loopback, where there is no delay to save: what the nodes cost a small model and a large one."""
    small, large = kept_wide_demo(SMALL), kept_wide_demo(plan_width(LARGE_BYTES))
    for model, size, tokens in ((small, "21 MB", effort.answer_tokens), (large, "1.5 GB", effort.tokens)):
        for stages in (1, 2):
            with (
                Place(machines(stages)) as place,
                Pipeline(place, str(model), spread(stages), context=2048) as pipeline,
                StockSplit(pipeline.stock_line(), place) as stock,
            ):
                ours, theirs = Both(pipeline, stock.llama).alternate(effort.near_rounds, tokens)
            compare(run, f"tokens/s over stock, k={stages}, loopback, {size}", ours, theirs, limit=0.85)


def load(run: Run, effort: Effort) -> None:
    """Loading a large model over two workers, all of it in the page cache; and a small one over far lines."""
    large = str(kept_wide_demo(plan_width(LARGE_BYTES)))
    with Place(machines(2)) as place, Pipeline(place, large, spread(2), context=2048) as pipeline:
        pipeline.llama().decode(2)
        loads = [pipeline.reload_s() for _ in range(effort.loads)]
        line = pipeline.stock_line()
    with Place(machines(2)) as place:
        stock_s = [_stock_load_s(line, place) for _ in range(max(1, effort.loads // 2))]
    size = Path(large).stat().st_size
    whole_s, ours_s = zip(*loads, strict=True)
    note = f"{size / 1e9:.2f} GB, median of {len(ours_s)}; {_whole(whole_s)}"
    mine, other = statistics.median(ours_s), statistics.median(stock_s)
    run.add(Figure("load of 1.5 GB over 2 workers", mine, "s", 1.5, low=min(ours_s), high=max(ours_s), note=note))
    note = f"stock {other:.2f} s"
    run.add(
        Figure("load of 1.5 GB over 2 workers, stock over ours", other / mine, "times", 3, at_least=True, note=note)
    )
    with Place(machines(2), far(0)) as place, Pipeline(place, large, spread(2), context=2048) as pipeline:
        before = place.carried_bytes()
        pipeline.reload_s()
        run.add(
            Figure("load of 1.5 GB over 2 workers, bytes on the wire", (place.carried_bytes() - before) / MB, "MB", 1)
        )
    small = str(kept_wide_demo(Width(1, 1, LAYERS)))
    with Place(machines(2), far(FAR_MS)) as place, Pipeline(place, small, spread(2)) as pipeline:
        whole_s, far_s = zip(*(pipeline.reload_s() for _ in range(effort.loads)), strict=True)
        stock = _stock_load_s(pipeline.stock_line(), place)
    note = f"a model of 6 MB; stock {stock:.2f} s; {_whole(whole_s)}"
    name = f"load at {FAR_MS:g} ms one way, 2 workers"
    run.add(Figure(name, statistics.median(far_s), "s", 1, low=min(far_s), high=max(far_s), note=note))


def _whole(seconds: Sequence[float]) -> str:
    return f"from the command on {statistics.median(seconds):.2f} s, with plan, election and leases"


def _stock_load_s(line: Line, place: Place) -> float:
    with StockSplit(line, place) as stock:
        return stock.load_s


def wire(run: Run, effort: Effort) -> None:
    """Bytes that a token costs on all lines together, headers and acknowledgements counted, at a context of 4k."""
    model = str(kept_wide_demo(SMALL))
    prompt = "count from 1 to 200. " * (LONG_PROMPT // 8)
    with Place(machines(2), far(FAR_MS)) as place, Pipeline(place, model, spread(2)) as pipeline:
        llama = pipeline.llama()
        tokens = effort.tokens
        sizes = []
        for count in (1, 1 + tokens):
            llama.decode(1, prompt=prompt)
            before = place.carried_bytes()
            llama.decode(count, prompt=prompt)
            sizes.append(place.carried_bytes() - before)
        status, answer = llama.ask("POST", "/tokenize", {"content": prompt})
        with StockSplit(pipeline.stock_line(), place) as stock:
            stock_sizes = []
            for count in (1, 1 + tokens):
                stock.llama.decode(1, prompt=prompt)
                before = place.carried_bytes()
                stock.llama.decode(count, prompt=prompt)
                stock_sizes.append(place.carried_bytes() - before)
    held = len(answer["tokens"]) if status == 200 else 0
    value, other = ((after - before) / tokens / 1000 for before, after in (sizes, stock_sizes))
    note = f"{held} tokens before it; stock {other:.1f} KB"
    run.add(Figure("bytes per decoded token, k=2, context 4k", value, "KB", 10, note=note))


def prediction(run: Run, effort: Effort) -> None:
    """What the planner said beside what came."""
    widths = [Width(1, 1, LAYERS), Width(2, 2, LAYERS), Width(4, 4, LAYERS), Width(6, 6, LAYERS), Width(2, 2, 32)]
    shapes = [0.25, 5.0, 10.0, FAR_MS]
    placements = [
        (width, delay_ms, 1 + (i + j) % 3) for i, width in enumerate(widths) for j, delay_ms in enumerate(shapes)
    ]
    errors: list[float] = []
    rows: list[dict[str, object]] = []
    for width, delay_ms, stages in placements[:: max(1, len(placements) // effort.placements)][: effort.placements]:
        model = str(kept_wide_demo(width))
        # Every other one leaves some of the layers with the host.
        layers = spread(stages, width.layers - (width.layers // 4 if len(rows) % 2 else 0))
        with Place(machines(stages), far(delay_ms)) as place, Pipeline(place, model, layers) as pipeline:
            predicted = float(pipeline.entry()["predicted_tokens_per_s"])
            llama = pipeline.llama()
            llama.decode(8)
            measured = llama.decode(effort.tokens).tokens_per_s
        errors.append(abs(predicted / measured - 1) * 100)
        rows.append(
            {"model": width.times, "layers": layers, "ms": delay_ms, "predicted": predicted, "measured": measured}
        )
    run.raw["placements"] = rows
    note = f"median {statistics.median(errors):.0f} %"
    run.add(Figure(f"prediction against measured, worst of {len(errors)}", max(errors), "%", 25, note=note))
    run.add(Figure("prediction against measured, p90", quantile(errors, 0.9), "%"))


PARTS: dict[str, Callable[[Run, Effort], None]] = {
    "delays": delays,
    "draft": draft,
    "rough": rough,
    "near": near,
    "load": load,
    "wire": wire,
    "recovery": lambda run, effort: recovery(run, effort.kills),
    "detection": lambda run, effort: detection(run, effort.detections),
    "prediction": prediction,
    "text": lambda run, effort: texts(run, effort.texts),
}

ON_LOOPBACK = {"near", "text"}
"""Parts that need no machines of their own."""


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a little of each kind; nothing is saved")
    parser.add_argument("--only", action="append", choices=PARTS, help="only this part (repeatable)")
    parser.add_argument("--out", type=Path, help="folder for the result (bench/results)")
    options = parser.parse_args()
    if not commit():
        sys.exit("run it in a checkout, so that the result can name its commit")
    wanted = [name for name in PARTS if name in (options.only or PARTS)]
    if reason := why_not():
        left_out = [name for name in wanted if name not in ON_LOOPBACK]
        print(f"left out: {', '.join(left_out)}: lines with a delay cannot be emulated here: {reason}")
        wanted = [name for name in wanted if name in ON_LOOPBACK]
    run, effort = Run("split", quick=options.quick), QUICK if options.quick else Effort()
    broken = []
    for name in wanted:
        try:
            PARTS[name](run, effort)
        except Exception:
            traceback.print_exc()
            broken.append(name)
    run.finish(options.out)
    if broken:
        sys.exit(f"broken: {', '.join(broken)}")


if __name__ == "__main__":
    main()
