"""What becomes of an answer when a worker of a split is lost, how soon that is seen, and whether the text is the same.

Parts of bench/split.py. The lines between the machines are those of a local network.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from functools import partial

import psutil

from bench.counting import Heard, Streams, Take, by_socket
from bench.disk import kept
from bench.figures import quantile
from bench.make_model import write_model
from bench.pipeline import LAYERS, Pipeline, far, machines, spread
from bench.place import Place
from bench.record import Figure, Run
from bench.wide_demo import Width, kept_wide_demo

LAN_MS = 0.25
LAST = 200
GONE_WITHIN_S = 20
TEXT_TOKENS = 48
RANDOM_BYTES = 40_000_000
PROMPTS = ("count from 1 to {}", "what is {} plus 3?", "who are you, number {}?")


def recovery(run: Run, kills: int) -> None:
    """A worker of two is killed in the middle of an answer, with its rpc-server; a third one is spare."""
    gaps_s: list[float] = []
    faults: list[str] = []
    with Place(machines(3), far(LAN_MS)) as place, Pipeline(place, "demo", spread(2)) as pipeline:
        for number in range(kills):
            pipeline.until_ready(workers=2)
            lost = pipeline.stages()[number % 2]
            with Streams(partial(_listen, place, pipeline), [(pipeline.entry()["id"], LAST)]) as streams:
                (heard,) = streams.until_all_run()
                _until(lambda heard=heard: len(heard.pieces) > 30)  # type: ignore[misc]
                processes = [pipeline.rpc_server(lost), pipeline.workers[lost].process]
                killed_at = time.monotonic()
                for process in processes:
                    process.kill()
            faults += streams.faults()
            gaps_s.append(heard.gap_s(killed_at))
            pipeline.end_worker(lost)
            pipeline.start_worker(lost)
    run.raw["recovery_gaps_s"] = [round(gap, 3) for gap in gaps_s]
    note = f"longest {max(gaps_s):.2f} s, median {quantile(gaps_s, 0.5):.2f} s, {kills} kills"
    run.add(Figure("a worker is killed in mid-answer: gap p95", quantile(gaps_s, 0.95), "s", 3, note=note))
    wrong = "; ".join(faults[:1])[:100]
    run.add(Figure("a worker is killed in mid-answer: lost, cut or wrong", len(faults), "answers", 1, note=wrong))


def _listen(place: Place, pipeline: Pipeline, heard: Heard, take: Take) -> None:
    with place.inside(place.names[0]):
        by_socket(str(pipeline.host.ready["api"]).removesuffix("/v1"))(heard, take)


def detection(run: Run, count: int) -> None:
    """From the fault of a worker to the end of the host's engine, which is what ends its waiting."""
    model = str(kept_wide_demo(Width(2, 2, LAYERS)))
    faults: dict[str, tuple[float, Callable[[Pipeline, str], psutil.Process], signal.Signals]] = {
        "rpc-server killed: the connection closes": (0.5, Pipeline.rpc_server, signal.SIGKILL),
        "rpc-server stopped: it stalls": (3.0, Pipeline.rpc_server, signal.SIGSTOP),
        "node killed: silence": (3.0, _node_of, signal.SIGKILL),
        "node stopped: silence": (3.0, _node_of, signal.SIGSTOP),
    }
    with Place(machines(3), far(LAN_MS)) as place, Pipeline(place, model, spread(2)) as pipeline:
        for name, (limit_s, choose, number) in faults.items():
            found = [_detected_s(place, pipeline, choose, number, turn) for turn in range(count)]
            note = f"worst of {count}, median {quantile(found, 0.5):.2f} s"
            run.add(Figure(f"detection, {name}", max(found), "s", limit_s, note=note))


def _node_of(pipeline: Pipeline, name: str) -> psutil.Process:
    return pipeline.workers[name].process


def _detected_s(
    place: Place,
    pipeline: Pipeline,
    choose: Callable[[Pipeline, str], psutil.Process],
    number: signal.Signals,
    turn: int,
) -> float:
    pipeline.until_ready(workers=2)
    lost = pipeline.stages()[turn % 2]
    engine = pipeline.host.engine()
    rpc_server = pipeline.rpc_server(lost)
    struck = choose(pipeline, lost)
    with Streams(partial(_listen, place, pipeline), [(pipeline.entry()["id"], LAST)]) as streams:
        streams.until_all_run()
        struck_at = time.monotonic()
        struck.send_signal(number)
        _until(lambda: not _runs(engine))
        seen_s = time.monotonic() - struck_at
    for process in (rpc_server, struck):
        if _runs(process):
            process.kill()
    if faults := streams.faults():
        raise RuntimeError(f"after {number.name} of {struck.name()}: {faults[0]}")
    pipeline.end_worker(lost)
    pipeline.start_worker(lost)
    return seen_s


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running()) and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _until(check: Callable[[], bool]) -> None:
    deadline = time.monotonic() + GONE_WITHIN_S
    while not check():
        if time.monotonic() > deadline:
            raise RuntimeError(f"nothing happened for {GONE_WITHIN_S} s")
        time.sleep(0.002)


def texts(run: Run, count: int) -> None:
    """Greedy answers of splits beside those of one machine, by a model that counts and by one of random weights.

    The words of random weights are of no sense, and a difference in the last digit of a probability can change them.
    """
    shape = kept("random-40mb", lambda path: write_model(path, size_bytes=RANDOM_BYTES, layers=LAYERS))
    prompts = [PROMPTS[number % len(PROMPTS)].format(7 * number + 3) for number in range(count)]
    wrong, asked = [], 0
    for model in (str(shape), str(kept_wide_demo(Width(2, 2, LAYERS)))):
        alone = _answers(model, 0, prompts)
        for stages in (2, 3):
            for ours, expected in zip(_answers(model, stages, prompts), alone, strict=True):
                asked += 1
                wrong += [] if ours == expected else [(ours[:60], expected[:60])]
    note = f"of {asked}, {TEXT_TOKENS} tokens each" + (f"; {wrong[0][0]!r} is not {wrong[0][1]!r}" if wrong else "")
    run.add(Figure("split text unlike solo text, temperature 0", len(wrong), "answers", 1, note=note))


def _answers(model: str, stages: int, prompts: list[str]) -> list[str]:
    """What a split over so many workers answers; 0 is a node alone."""
    with Place(machines(stages)) as place, Pipeline(place, model, spread(stages) if stages else ()) as pipeline:
        llama = pipeline.llama()
        return [llama.decode(TEXT_TOKENS, prompt=prompt).text for prompt in prompts]
