"""The web console: what it weighs, how soon it is there, what it costs a browser and the node that is watched.

    python -m bench.console [--quick] [--only PART ...]      parts: weight, paint, browser, status, loop

The browser is a real Chromium without a window or GPU, driven by Playwright. `weight` and `paint` open the page of a
node with the demo; `browser` opens it over invented facts of a mesh of 60 that change every second
(tests/console/fake_mesh.py), `status` and `loop` make the status of 1,000 members with the code that a node makes it
with.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.figures import quantile
from bench.large_mesh import LargeMesh
from bench.machine import ROOT
from bench.node import BenchNode
from bench.record import Figure, Run
from bench.startup import timed_ms
from meshnode.api.access import Access
from meshnode.api.control import Controls, control_app
from meshnode.api.events import Events
from meshnode.api.http_server import HttpServer, listen
from meshnode.api.mesh_control import no_mesh
from meshnode.api.metrics import Metrics
from meshnode.api.public_control import nothing_public
from meshnode.api.radius_control import RadiusControl
from meshnode.console.site import load, site
from meshnode.errors import NotInMesh
from meshnode.node import leave_to_stay
from tests.console.browser import launch
from tests.console.fake_mesh import FakeMesh, a_model, a_peer, a_status, fake_mesh
from tests.console.pages import wait_until_live

PARTS = ("weight", "paint", "browser", "status", "loop")
VIEWS = ("overview", "mesh")
SENT = (".html", ".js", ".css", ".svg")
"""What the page can load; texts of licences are served as well."""
NODES = 60
MEMBERS = 1000
WATCHERS = 20
BEAT_S = 0.001
SETTLE_S = 3.0
QUIET_S = 0.5
WATCH_PAINT = """
addEventListener("DOMContentLoaded", () => {
  const wanted = "body[data-connection=live] .view-overview > :nth-child(2):not(.loading)";
  const look = () => {
    if (!window.shownAt && document.querySelector(wanted)) window.shownAt = performance.now();
  };
  new MutationObserver(look).observe(document, { subtree: true, childList: true, attributes: true });
});
"""
FIRST_PAINT = """() => new Promise((resolve) => new PerformanceObserver((list) => {
  const found = list.getEntriesByName("first-contentful-paint")[0];
  if (found) resolve(found.startTime);
}).observe({ type: "paint", buffered: true }))"""


@dataclass(frozen=True, slots=True)
class Effort:
    """How often, and for how long."""

    paints: int = 7
    browser_s: int = 30
    looks: int = 60
    loop_s: int = 20


QUICK = Effort(paints=1, browser_s=2, looks=3, loop_s=2)


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser for the length of the block. Raises FileNotFoundError where there is none."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = launch(driver)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(browser: Any, url: str, *scripts: str, watch: Callable[[Any], None] = lambda page: None) -> Iterator[Any]:
    """A page with nothing in its cache, once it is live."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    try:
        for script in scripts:
            context.add_init_script(script)
        page = context.new_page()
        watch(page)
        page.goto(url)
        wait_until_live(page, url.rpartition("/")[2])
        yield page
    finally:
        context.close()


# --- the page -----------------------------------------------------------------------------------------------------


def weight(run: Run, effort: Effort) -> None:
    """Bytes over the wire: of the first view, and of all files that the page can load."""
    with BenchNode("demo") as node, chromium() as browser:
        answers: list[Any] = []

        def note_it(request: Any) -> None:
            answers.append(request)

        def watch(page: Any) -> None:
            page.on("requestfinished", note_it)

        with opened(browser, f"{node.ready['console']}/#/overview", watch=watch) as page:
            page.wait_for_timeout(QUIET_S * 1000)
            sent = [request for request in answers if "/api/" not in request.url]
            sizes = {request.url: request.sizes()["responseBodySize"] for request in sent}
    note = f"{len(sizes)} files, as Chromium received them"
    run.add(Figure("first load of the overview, compressed", sum(sizes.values()) / 1e3, "kB", 60, note=note))
    files = [found for name, found in load().items() if name.endswith(SENT)]
    whole = sum(len(found.packed if found.packed is not None else found.raw) for found in files)
    run.add(Figure("all files of the page, compressed", whole / 1e3, "kB", note=f"{len(files)} files"))


def paint(run: Run, effort: Effort) -> None:
    """From the address to the first paint, and to the live view, each time with an empty cache."""
    painted, live = [], []
    with BenchNode("demo") as node, chromium() as browser:
        for _ in range(effort.paints):
            with opened(browser, f"{node.ready['console']}/#/overview", WATCH_PAINT) as page:
                painted.append(page.evaluate(FIRST_PAINT))
                live.append(page.evaluate("window.shownAt"))
    for name, values, limit in (("first paint, loopback", painted, 300), ("the overview is live", live, None)):
        note = f"median of {len(values)}, bounds are the fastest and the slowest"
        run.add(Figure(name, statistics.median(values), "ms", limit, low=min(values), high=max(values), note=note))


def a_mesh(number: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The peers of a mesh of 60 and the requests in it, at its `number`th second."""
    draw = random.Random(number)
    peers = [a_peer(each, rtt_ms=round(0.4 + 3.7 * each + draw.random(), 2)) for each in range(1, NODES)]
    requests = {"finished": number, "active": 2, "waiting": 0, "tokens_per_s": round(40 * draw.random(), 1)}
    return {"peers": peers}, requests | {"running": [], "recent": []}


def browser_cost(run: Run, effort: Effort) -> None:
    """What a page costs that shows a mesh of 60 of which all members say something new every second."""
    peers, requests = a_mesh(0)
    status = a_status(*peers["peers"], requests=requests, models=[a_model("demo")])
    for view in VIEWS:
        with (
            fake_mesh(status) as fake,
            chromium() as browser,
            opened(browser, f"{fake.console_url}/#/{view}") as page,
            ticking(fake),
        ):
            page.wait_for_timeout(SETTLE_S * 1000)
            shares = _shares(browser, page, effort.browser_s)
        note = f"the page's tasks {shares['tasks']:.1f} %, all of Chromium {shares['all']:.1f} %; {effort.browser_s} s"
        name = f"{NODES} nodes, 1 update/s, {view}: the page's process"
        run.add(Figure(name, shares["renderer"], "% of a core", 5, note=note))


@contextmanager
def ticking(fake: FakeMesh) -> Iterator[None]:
    """Something new of every peer, once a second, for the length of the block."""
    over = threading.Event()

    def tick() -> None:
        number = 0
        while not over.wait(1.0):
            number += 1
            peers, requests = a_mesh(number)
            fake.peers(*peers["peers"], requests=requests)

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _shares(browser: Any, page: Any, seconds: float) -> dict[str, float]:
    """Processor time over some seconds in percent of a core: of the page's own tasks, of renderers, of everything."""
    of_page, of_browser = page.context.new_cdp_session(page), browser.new_browser_cdp_session()
    of_page.send("Performance.enable")

    def used() -> dict[str, float]:
        metrics = {each["name"]: each["value"] for each in of_page.send("Performance.getMetrics")["metrics"]}
        processes = of_browser.send("SystemInfo.getProcessInfo")["processInfo"]
        return {
            "tasks": metrics["TaskDuration"],
            "renderer": sum(each["cpuTime"] for each in processes if each["type"] == "renderer"),
            "all": sum(each["cpuTime"] for each in processes),
        }

    before, begun = used(), time.monotonic()
    page.wait_for_timeout(seconds * 1000)
    after, elapsed = used(), time.monotonic() - begun
    return {name: 100 * (after[name] - before[name]) / elapsed for name in after}


# --- the node -----------------------------------------------------------------------------------------------------


def status(run: Run, effort: Effort) -> None:
    """Writing the status of a mesh of 1,000 as JSON, and making it."""
    mesh = LargeMesh(MEMBERS)
    facts = mesh.status()
    events = Events(lambda: facts)
    size = len(events.whole()) / 1e3
    note = f"{size:.0f} kB; median of {effort.looks}, bounds are the fastest and the slowest"
    values = timed_ms(events.whole, effort.looks)
    name = f"status with {MEMBERS:,} peers, as JSON"
    run.add(Figure(name, statistics.median(values), "ms", 10, low=min(values), high=max(values), note=note))
    values = timed_ms(mesh.status, effort.looks)
    name = "the same status, made of what the mesh keeps"
    run.add(Figure(name, statistics.median(values), "ms", low=min(values), high=max(values)))


def loop(run: Run, effort: Effort) -> None:
    """How long the event loop of a node stands still while 1,000 peers change every second and 20 pages look on."""
    beats, got = asyncio.run(_watched(effort.loop_s))
    gaps, used = [beat.late_s for beat in beats], max(beat.used_s for beat in beats)
    note = f"p99 {quantile(gaps, 0.99) * 1000:.1f} ms; at most {used * 1000:.0f} ms of processor time in one; "
    note += f"each watcher got {min(got['events'])} events or more, "
    note += f"{statistics.mean(got['bytes']) / 1e6:.0f} MB in {effort.loop_s} s"
    name = f"longest block of the event loop, {WATCHERS} watchers, {MEMBERS:,} peers"
    run.add(Figure(name, max(gaps) * 1000, "ms", 50, note=note))


@dataclass(frozen=True, slots=True)
class Beat:
    """One beat of a loop: how late it came, and the processor time that the loop's thread used since the last one."""

    late_s: float
    used_s: float


async def _watched(seconds: float) -> tuple[list[Beat], dict[str, list[int]]]:
    """The beats of a node's loop, and what the watchers got."""
    leave_to_stay()
    mesh = LargeMesh(MEMBERS)
    events = Events(mesh.status)
    server = HttpServer(_console(events))
    sockets = listen(0, public=False, purpose="console")
    serving = asyncio.create_task(server.serve(sockets))
    url = f"http://localhost:{sockets[0].getsockname()[1]}"
    argv = (sys.executable, "-m", "bench.watchers", url, "--count", str(WATCHERS))
    pipe = subprocess.PIPE
    watchers = await asyncio.create_subprocess_exec(*argv, cwd=ROOT, stdin=pipe, stdout=pipe)
    try:
        async with asyncio.timeout(30):
            while events.watchers < WATCHERS:
                await asyncio.sleep(0.02)
        beats: list[Beat] = []
        beating = asyncio.create_task(_beat(beats))
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            mesh.move()
            events.touch()
            await asyncio.sleep(1.0)
        beating.cancel()
        words, _ = await watchers.communicate(b"")
    finally:
        if watchers.returncode is None:
            watchers.kill()
            await watchers.wait()
        server.stop(now=True)
        with suppress(asyncio.CancelledError):
            await serving
    return beats, json.loads(words)


async def _beat(beats: list[Beat]) -> None:
    while True:
        begun, used_s = time.perf_counter(), time.thread_time()
        await asyncio.sleep(BEAT_S)
        beats.append(Beat(time.perf_counter() - begun - BEAT_S, time.thread_time() - used_s))


def _console(events: Events) -> Any:
    """The application of a console port that answers only what is measured."""

    async def nothing(*_: object) -> dict[str, Any]:
        return {}

    controls = Controls(
        load=nothing,
        unload=nothing,
        plan=nothing,
        stop=lambda now: None,
        token="none",
        mesh=no_mesh(lambda: NotInMesh("there is none")),
        public=nothing_public(lambda: NotInMesh("there is none")),
        radius=RadiusControl("trusted"),
        models=nothing,
        search=nothing,
        pull=nothing,
        stop_pull=nothing,
        remove=nothing,
        requests=lambda most: [],
        settings=dict,
        logs=nothing,
        agents=dict,
    )
    page = site("none")
    return control_app(
        controls=controls,
        events=events,
        metrics=Metrics(lambda: iter(())),
        models=lambda: (),
        access=Access(same_origin=True),
        site=page,
        gateway=page,
    )


WORK: dict[str, Callable[[Run, Effort], None]] = {
    "weight": weight,
    "paint": paint,
    "browser": browser_cost,
    "status": status,
    "loop": loop,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few repetitions; nothing is saved")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="these parts; nothing is saved")
    parser.add_argument("--out", type=Path, help="folder for the result (bench/results)")
    options = parser.parse_args(arguments)
    quick = options.quick or set(options.only) != set(PARTS)
    run, effort = Run("console", quick=quick), QUICK if options.quick else Effort()
    for part in PARTS:
        if part in options.only:
            WORK[part](run, effort)
    run.finish(options.out)


if __name__ == "__main__":
    main()
