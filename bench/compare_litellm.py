"""How far from a direct call: meshnode's gateway and LiteLLM's proxy, in front of one llama-server, in one run.

    python -m bench.compare_litellm [--quick]

LiteLLM comes from PyPI into a virtual environment of its own under the cache folder; meshnode never depends on it. It
runs as its documentation advises for one machine: one worker, errors logged only, no database, no telemetry, its list
of prices from its own package. It is told to use each connection to llama-server once, as meshnode does: llama-server
closes after a streamed answer without saying so, and LiteLLM's pool then answers some requests with 500. llama-server
listens on a loopback port here, as LiteLLM cannot reach a Unix socket.
"""

from __future__ import annotations

import argparse
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import venv
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from bench.figures import Rounds, difference, interval, ratio
from bench.gateway import STREAMS, added, chat, first_tokens_ms, mixed, paired, throughput
from bench.load import Job, LoadProcess, Outcome, Target
from bench.node import BenchNode
from bench.record import Figure, Run
from meshnode.config import find_places

LITELLM_VERSION = "1.106.2"
START_LIMIT_S = 180
TIMES_CLOSER = 5
MOST_TIMES = 1000.0
"""What is reported when our own difference is zero or below."""
CONFIG = """\
model_list:
  - model_name: {model}
    litellm_params:
      model: openai/{model}
      api_base: http://127.0.0.1:{port}/v1
      api_key: {key}
      extra_headers:
        Connection: close
litellm_settings:
  telemetry: false
  set_verbose: false
  request_timeout: 600
router_settings:
  num_retries: 0
general_settings:
  disable_spend_logs: true
"""


@dataclass(frozen=True, slots=True)
class Effort:
    """How much of everything."""

    latency_requests: int = 300
    stream_rounds: int = 12
    stream_requests: int = 160
    stream_tokens: int = 64


QUICK = Effort(latency_requests=10, stream_rounds=2, stream_requests=16, stream_tokens=16)


def install(version: str) -> Path:
    """The folder of a virtual environment that holds this LiteLLM; some minutes the first time."""
    folder = find_places().cache / "bench" / "litellm"
    if not list(folder.glob(f"lib/python*/site-packages/litellm-{version}.dist-info")):
        print(f"installing LiteLLM {version} in {folder}", flush=True)
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([folder / "bin" / "pip", "install", "--quiet", f"litellm[proxy]=={version}"], check=True)
    return folder


class LiteLLM:
    """The proxy as a child process. Use it as a context manager; `target` is the way through it."""

    def __init__(self, folder: Path, direct: Target) -> None:
        self._direct = direct
        self._scratch = tempfile.TemporaryDirectory(prefix="litellm-")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.target = Target("litellm", model=direct.model, port=port, key=f"sk-{secrets.token_hex(32)}")
        config = Path(self._scratch.name) / "config.yaml"
        config.write_text(CONFIG.format(model=direct.model, port=direct.port, key=direct.key), encoding="utf-8")
        self._argv = [str(folder / "bin" / "litellm"), "--config", str(config), "--host", "127.0.0.1"]
        self._argv += ["--port", str(port), "--num_workers", "1", "--telemetry", "False"]

    def __enter__(self) -> Self:
        self._log = (Path(self._scratch.name) / "log").open("w+b")
        environment = {
            "PATH": os.environ.get("PATH", ""),
            "HOME": self._scratch.name,
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",
            "LITELLM_LOG": "ERROR",
            "LITELLM_MODE": "PRODUCTION",
            "LITELLM_MASTER_KEY": self.target.key,
            # Whatever else it would ask of the network ends at a closed port of this machine.
            "HTTP_PROXY": "http://127.0.0.1:9",
            "HTTPS_PROXY": "http://127.0.0.1:9",
            "NO_PROXY": "127.0.0.1,localhost",
        }
        self._process = subprocess.Popen(
            self._argv, env=environment, cwd=self._scratch.name, stdout=self._log, stderr=subprocess.STDOUT
        )
        end = time.monotonic() + START_LIMIT_S
        while not self._alive():
            if self._process.poll() is not None or time.monotonic() > end:
                self._log.seek(0)
                words = self._log.read()[-3000:].decode("utf-8", "replace")
                self.__exit__(None, None, None)
                raise RuntimeError(f"LiteLLM did not start: {words}")
            time.sleep(0.25)
        return self

    def _alive(self) -> bool:
        try:
            url = f"http://127.0.0.1:{self.target.port}/health/liveliness"
            with urllib.request.urlopen(url, timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()
        self._scratch.cleanup()


def times(theirs: float, ours: float) -> float:
    """How many times their distance is ours."""
    return MOST_TIMES if ours <= theirs / MOST_TIMES else theirs / ours


def closer(run: Run, name: str, sides: Mapping[str, Rounds], distance: Callable[[Rounds, Rounds], float]) -> None:
    """Report how many times nearer to direct meshnode is than LiteLLM, with the interval of that."""
    direct = sides["direct"]

    def figure(mine: Rounds, both: Rounds) -> float:
        # `both` carries LiteLLM's and the direct rounds of a pair together, so that they are drawn together.
        others, straight = [pair[0] for pair in both], [pair[1] for pair in both]
        return times(distance(others, straight), distance(mine, straight))  # type: ignore[arg-type]

    pairs = list(zip(sides["litellm"], direct, strict=True))
    low, high = interval(figure, sides["meshnode"], pairs)  # type: ignore[arg-type]
    value = figure(sides["meshnode"], pairs)  # type: ignore[arg-type]
    run.add(Figure(name, value, "times", TIMES_CLOSER, at_least=True, low=low, high=high))


def compare(run: Run, load: LoadProcess, targets: list[Target], effort: Effort) -> None:
    """Both measurements, and what follows from them."""
    single = paired(load, targets, Job([chat(stream=True, max_tokens=8)]), effort.latency_requests)
    bodies = mixed(effort.stream_tokens)
    many = paired(
        load, targets, Job(bodies, requests=effort.stream_requests, concurrency=STREAMS), effort.stream_rounds
    )
    for streams, found in ((1, single), (STREAMS, many)):
        sides = {name: first_tokens_ms(outcomes) for name, outcomes in found.items()}
        label = f"time to first token, {streams} stream{'s' if streams > 1 else ''}, p50"
        for name in ("meshnode", "litellm"):
            added(run, f"added {label}: {name}", sides[name], sides["direct"], 0.5)
        closer(run, f"closer to direct, {label}", sides, partial(difference, share=0.5))
    for name in ("meshnode", "litellm"):
        throughput(run, f"tokens/s of 16 streams, share of direct: {name}", many[name], many["direct"])
    rates = {name: [[outcome.tokens_per_s] for outcome in outcomes] for name, outcomes in many.items()}
    closer(run, "closer to direct, tokens/s of 16 streams", rates, lambda ours, theirs: 1 - ratio(ours, theirs))


def check_tokens(load: LoadProcess, targets: list[Target]) -> None:
    """All ways must yield the same number of tokens, or their rates could not be compared."""
    job = Job([chat(stream=True, max_tokens=32)])
    found: dict[str, Outcome] = {target.name: load.run(target, job).check(200) for target in targets}
    if any(outcome.tokens != 32 or len(outcome.first_s) != 1 for outcome in found.values()):
        raise RuntimeError(f"not 32 tokens each: {found}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few requests of each kind; nothing is saved")
    parser.add_argument("--litellm-version", default=LITELLM_VERSION)
    parser.add_argument("--out", type=Path, help="folder for the result (bench/results)")
    options = parser.parse_args()
    if not hasattr(socket, "AF_UNIX"):
        sys.exit("this benchmark needs Linux or macOS")
    folder = install(options.litellm_version)
    run = Run("litellm", quick=options.quick, raw={"litellm": options.litellm_version})
    effort = QUICK if options.quick else Effort()
    with LoadProcess() as load, BenchNode("demo", "--parallel", str(STREAMS), loopback=True) as node:
        direct = node.direct_target()
        with LiteLLM(folder, direct) as proxy:
            targets = [direct, node.gateway_target(), proxy.target]
            check_tokens(load, targets)
            compare(run, load, targets, effort)
    run.finish(options.out)


if __name__ == "__main__":
    main()
