"""The benchmark of verification: it tells honest weights from others, and counts what a look costs."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from bench import verify
from bench.record import Run
from meshnode.core.verification import Scored
from meshnode.models.catalog import DEMO_DRAFT, DEMO_TARGET

LIKELY, ODD = Scored((-0.01, -5.0), (0,)), Scored((-0.01, -5.0), ())


def test_a_provider_is_played_until_it_is_found_out() -> None:
    chance = random.Random(1)
    assert verify.played([[ODD] * 8] * 5, 0.0, chance) == 1
    assert verify.played([[LIKELY] * 8] * 50, 0.0, chance) is None


@pytest.mark.engine
def test_every_figure_is_there(engine_bin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "PROMPTS", verify.PROMPTS[:2])
    monkeypatch.setattr(verify, "TEMPERATURES", (0.0,))
    monkeypatch.setattr(verify, "PLAYS", 5)
    run = Run("verify", quick=True, machine={})
    asyncio.run(verify.measure(run, engine_bin / "llama-server", DEMO_TARGET, DEMO_DRAFT, 1))
    names = [figure.name for figure in run.figures]
    assert any("the claimed weights" in name for name in names) and any("found out" in name for name in names)
    read, requests, _ = run.figures[-3:]
    assert read.value > 0 and 1 <= requests.value <= 8
    assert run.figures[0].value == 0
