"""The benchmark of paid streams, as far as it is arithmetic and an answer of a few tokens."""

from __future__ import annotations

import pytest

from bench.paid_stream import Effort, Timed, add, measured, timed
from bench.record import Run
from tests.api.fake_llama import FakeLlamaServer
from tests.api.fake_money import FakePurse, FakeTill
from tests.api.paid_stage import Engine, Provider, line_to, paid_gateway

pytestmark = pytest.mark.anyio


def test_how_much_longer_is_that_of_pairs(capsys: pytest.CaptureFixture[str]) -> None:
    run = Run("paid_stream", True)
    pairs = [{"paid": Timed(0.2, 10.05, 0.03), "free": Timed(0.1, 10.0, 0.02)} for _ in range(3)]
    add(run, "later", pairs, limit=1.0)
    longer, first, pause = run.figures
    assert longer.value == pytest.approx(0.5) and longer.reached and longer.low == pytest.approx(0.5)
    assert (first.value, first.note, pause.value) == (pytest.approx(200), "free 100.0 ms", pytest.approx(30))
    assert run.raw["later"][0] == {"paid": [0.2, 10.05, 0.03], "free": [0.1, 10.0, 0.02]}
    capsys.readouterr()


async def test_an_answer_is_timed_by_its_tokens() -> None:
    async with FakeLlamaServer.running() as llama:
        Engine(llama, 10**6)
        async with line_to(Provider(llama, FakeTill())) as line, paid_gateway(line, FakePurse()) as gateway:
            found = await timed(gateway.port, 12, "demo")
            assert 0 < found.first_s <= found.whole_s and found.pause_s < found.whole_s
            with pytest.raises(RuntimeError, match="404"):
                await timed(gateway.port, 12, "another")
            Engine(llama, 5)
            with pytest.raises(RuntimeError, match="5 tokens came of 12"):
                await timed(gateway.port, 12, "demo")


async def test_both_ways_run_over_their_lines() -> None:
    firsts, later = await measured(Effort(tokens=6, pairs=1, firsts=1))
    for pair in (*firsts, *later):
        assert set(pair) == {"free", "paid"}
        assert all(each.first_s > 0.15 for each in pair.values()), "a round trip at least"
