"""The console benchmark: what it measures is what it says. Its parts with a browser are tried where there is one."""

from __future__ import annotations

import importlib.util
import threading
import time

import pytest

from bench import console
from bench.record import Run
from tests.console.browser import find
from tests.console.fake_mesh import a_status, fake_mesh

SHORT = console.Effort(paints=1, browser_s=1, looks=2, loop_s=1)
in_a_browser = pytest.mark.skipif(
    find() is None or importlib.util.find_spec("playwright") is None, reason="no Chromium, or no Playwright"
)


@pytest.fixture
def run() -> Run:
    return Run("console", quick=True, machine={})


@pytest.mark.alone
def test_status_and_loop(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "WATCHERS", 3)
    monkeypatch.setattr(console, "MEMBERS", 40)
    console.status(run, SHORT)
    console.loop(run, SHORT)
    whole, made, block = run.figures
    assert 0 < whole.value < 1000 and 0 < made.value < 1000 and 0 < block.value < 5000
    assert "each watcher got" in block.note and not block.note.split("watcher got ")[1].startswith("0 ")


def test_a_loop_that_stands_still_is_seen(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "WATCHERS", 1)
    real = console.LargeMesh.status

    def slow(mesh: console.LargeMesh) -> dict[str, object]:
        time.sleep(0.3)
        return real(mesh)

    monkeypatch.setattr(console.LargeMesh, "status", slow)
    monkeypatch.setattr(console, "MEMBERS", 40)
    console.loop(run, SHORT)
    assert run.figures[0].value >= 290 and run.figures[0].reached is False


def test_the_fake_mesh_ticks_for_as_long_as_it_is_told_to() -> None:
    heard: list[float] = []
    enough = threading.Event()
    with fake_mesh(a_status()) as fake:

        def peers(*found: object, **members: object) -> None:
            assert len(found) == console.NODES - 1 and "requests" in members
            heard.append(time.monotonic())
            enough.set()

        fake.peers = peers  # type: ignore[method-assign]
        with console.ticking(fake):
            assert enough.wait(10)
        count = len(heard)
    assert len(heard) == count
    assert console.a_mesh(1) == console.a_mesh(1) != console.a_mesh(2)


@in_a_browser
def test_the_cost_of_a_page_is_that_of_its_work(run: Run) -> None:
    status = a_status(*console.a_mesh(0)[0]["peers"])
    with (
        fake_mesh(status) as fake,
        console.chromium() as browser,
        console.opened(browser, f"{fake.console_url}/#/overview") as page,
    ):
        page.wait_for_timeout(1000)
        idle = console._shares(browser, page, 1.0)
        page.evaluate(
            "setInterval(() => { const end = performance.now() + 50; while (performance.now() < end); }, 100)"
        )
        busy = console._shares(browser, page, 1.0)
    # On a busy machine the page gets little of the processor, so these are far below the half that it asks for.
    assert busy["tasks"] > idle["tasks"] + 10
    assert busy["renderer"] > idle["renderer"] + 3 and busy["all"] >= busy["renderer"] - 0.1


@in_a_browser
@pytest.mark.alone
def test_paint_and_weight(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    class Node:
        """A node of which only the page is real."""

        def __init__(self, _: str) -> None:
            self.mesh = fake_mesh(a_status())

        def __enter__(self) -> Node:
            self.ready = {"console": self.mesh.__enter__().console_url}
            return self

        def __exit__(self, *reason: object) -> None:
            self.mesh.__exit__(None, None, None)

    monkeypatch.setattr(console, "BenchNode", Node)
    console.weight(run, SHORT)
    console.paint(run, SHORT)
    first, whole, painted, live = run.figures
    assert 10 < first.value < whole.value and "files" in first.note
    assert 0 < painted.value <= live.value


def test_only_what_there_is_can_be_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        console.main(["--only", "nothing"])
    assert "weight" in capsys.readouterr().err
