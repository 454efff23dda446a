"""The benchmark of halves: figures are what they say, and a text is read over real workers both ways."""

from __future__ import annotations

import asyncio
import math
from argparse import Namespace
from pathlib import Path

import pytest

from bench.halves import compared, measured, own_text
from meshnode.config import find_places
from meshnode.engine.provision import find
from meshnode.models.catalog import DEMO_TARGET


def test_the_figures() -> None:
    sure, unsure = math.log(0.5), math.log(0.25)
    whole = [{1: sure, 2: unsure, -1: sure}, {1: sure, 2: unsure, -1: sure}]
    half = [{1: unsure, 2: sure, -1: unsure}, {1: sure, 2: unsure, -1: sure}]
    found = compared(whole, half)
    assert (found["tokens"], found["other_first_token"]) == (2, 1)
    assert found["perplexity"] == pytest.approx(2) and found["perplexity_half"] == pytest.approx(math.sqrt(8), rel=1e-5)
    assert found["logprob_moved_most"] == pytest.approx(math.log(2), rel=1e-5) == 2 * found["logprob_moved_mean"]
    same = compared(whole, whole)
    assert (
        same["logprob_moved_most"] == same["other_first_token"] == 0 and same["perplexity"] == same["perplexity_half"]
    )


@pytest.mark.engine
def test_a_text_is_read_over_two_workers(engine_bin: Path, tmp_path: Path) -> None:
    engine = find(find_places().cache)
    assert engine is not None
    arguments = Namespace(model=str(DEMO_TARGET), layers=12, tokens=6)
    arguments.text = own_text(engine, arguments)
    whole, half = (asyncio.run(measured(engine, arguments, tmp_path, half=each)) for each in (False, True))
    found = compared(whole, half)
    assert found["tokens"] == 6
    assert 1 < found["perplexity"] < 100 and 0 < found["logprob_moved_most"] < 0.5
