"""Results of a benchmark: figures with their limits, printed as a table and kept as JSON under bench/results/."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.machine import describe

FOLDER = Path(__file__).resolve().parent / "results"
SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number. `limit` is what it must stay below, or reach when `at_least`; None: only reported.

    `low` and `high` bound its 95 % interval where there is one; `note` says how it came about.
    """

    name: str
    value: float
    unit: str
    limit: float | None = None
    at_least: bool = False
    low: float | None = None
    high: float | None = None
    note: str = ""

    @property
    def reached(self) -> bool | None:
        """Whether the limit is kept; None without one."""
        if self.limit is None:
            return None
        return self.value >= self.limit if self.at_least else self.value < self.limit


@dataclass(slots=True)
class Run:
    """One run of one benchmark. `raw` holds what the figures were computed from, in short."""

    benchmark: str
    quick: bool
    figures: list[Figure] = field(default_factory=list)
    raw: dict[str, Any] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=describe)
    started_at: float = field(default_factory=time.time)

    def add(self, figure: Figure) -> None:
        """Keep a figure and show it at once."""
        self.figures.append(figure)
        print(row(asdict(figure)), flush=True)

    def finish(self, folder: Path | None = None) -> Path | None:
        """Print the sums and, unless this was a quick run, save the run; returns the file."""
        missed = [figure.name for figure in self.figures if figure.reached is False]
        print(f"\n{self.benchmark}: {len(self.figures)} figures" + (f", MISSED: {'; '.join(missed)}" if missed else ""))
        if self.quick and folder is None:
            print("a quick run shows that the benchmark works; its figures mean little and are not saved")
            return None
        path = self._save(folder or FOLDER)
        print(f"saved as {path}")
        return path

    def _save(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        stamp = time.strftime("%Y-%m-%d-%H%M", time.gmtime(self.started_at))
        path = folder / f"{self.benchmark}-{stamp}.json"
        body = {
            "schema": SCHEMA,
            "benchmark": self.benchmark,
            "quick": self.quick,
            "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.started_at)),
            "duration_s": round(time.time() - self.started_at, 1),
            "machine": self.machine,
            "figures": [{**asdict(figure), "reached": figure.reached} for figure in self.figures],
            "raw": self.raw,
        }
        partial = path.with_suffix(".partial")
        with partial.open("w", encoding="utf-8") as file:
            json.dump(body, file, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        return path


def number(value: float) -> str:
    """Three digits that mean something: 1234, 12.3, 0.0123."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def bounds(figure: dict[str, Any]) -> str:
    """The 95 % interval, or "" when there is none."""
    if figure["low"] is None or figure["high"] is None:
        return ""
    return f"{number(figure['low'])} to {number(figure['high'])}"


def limit(figure: dict[str, Any]) -> str:
    """The limit in words."""
    if figure["limit"] is None:
        return ""
    return f"{'at least' if figure['at_least'] else 'under'} {number(figure['limit'])}"


def row(figure: dict[str, Any]) -> str:
    """One figure as a line of the table on the terminal."""
    value = f"{number(figure['value'])} {figure['unit']}"
    reached = Figure(**{key: figure[key] for key in Figure.__dataclass_fields__}).reached
    mark = {None: "", True: "ok", False: "MISSED"}[reached]
    spread = f"[{bounds(figure)}]" if bounds(figure) else ""
    return f"{figure['name']:<62} {value:>16}  {spread:<20} {limit(figure):<15} {mark}".rstrip()
