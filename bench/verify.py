"""How soon a stranger that serves other weights than it claims is found out, and what looking costs.

    python -m bench.verify [--quick] [--model FILE] [--other FILE]

Two real llama-servers: one with the claimed weights (the demo unless given), which is also the second node, and one
with others (the demo's draft: same tokenizer, trained on the same texts, so about as hard to tell apart as can be).
Both answer the same questions, and every answer is looked at as `verify = "spot"` does. Each provider is then played
many times with its answers in another order, as a new gateway would see them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from bench.figures import quantile
from bench.record import Figure, Run
from meshnode.api.attempt import Errand, exchange_with
from meshnode.api.body import JsonObject
from meshnode.api.endpoints import ENDPOINTS, PEER_ENDPOINTS
from meshnode.api.gate import Gates
from meshnode.api.record import token_counts
from meshnode.api.request import Request
from meshnode.api.served import Host, Served
from meshnode.api.upstream import Connect, over_sockets
from meshnode.api.verifying import ALTERNATIVES, QUESTION_S, question, readable, scored_of, tokens_of
from meshnode.config import find_places
from meshnode.core.verification import Reputations, Scored, places_of
from meshnode.engine.provision import find
from meshnode.models.catalog import DEMO_DRAFT, DEMO_TARGET

COMPLETIONS = "/v1/completions"
WEIGHTS = "ab" * 16
PROMPTS = (
    "tell me about the sea",
    "write a poem about rain",
    "why is the sky blue?",
    "what does a split do?",
    "say the alphabet backwards",
    "how do I cook rice for four people?",
    "explain the rules of chess",
    "list the planets",
    "what should I read on a long journey?",
    "describe a small town in autumn",
    "who invented the telephone?",
    "translate good evening into Italian",
    "count from 7 to 90 in steps of 3",
    "what is the best way to learn a language?",
    "write a letter to a friend who is ill",
    "how does a bicycle stay upright?",
)
"""Continued as plain text: where two models know an answer by heart nothing tells them apart."""
ANSWER_TOKENS = 60
TEMPERATURES = (0.0, 0.8, 1.2)
PLAYS = 500
SECONDS = 30


@asynccontextmanager
async def llama_server(binary: Path, model: Path) -> AsyncIterator[Connect]:
    """A llama-server with `model` on a Unix socket."""
    with tempfile.TemporaryDirectory(prefix="meshnode-") as folder, tempfile.TemporaryFile() as words:
        file = str(Path(folder) / "llama.sock")
        command = [binary, "-m", str(model), "--alias", "demo", "-c", "8192", "-np", "2", "-t", "1", "--jinja"]
        process = subprocess.Popen([*command, "--no-slots", "--no-ui", "--host", file], stdout=words, stderr=words)
        connect = over_sockets(partial(asyncio.open_unix_connection, file))
        try:
            deadline = time.monotonic() + SECONDS
            while process.poll() is None and time.monotonic() < deadline:
                try:
                    await sent(connect, COMPLETIONS, {"prompt": "a", "max_tokens": 1})
                except Exception:
                    await asyncio.sleep(0.05)
                    continue
                break
            yield connect
        finally:
            process.terminate()
            process.wait(10)


async def sent(connect: Connect, path: str, body: dict[str, Any] | bytes) -> bytes:
    """One whole answer."""
    raw = body if isinstance(body, bytes) else json.dumps({"model": "demo", **body}).encode()
    host = Host("f" * 64, connect=connect)
    errand = Errand("demo", PEER_ENDPOINTS[path], raw, "application/json", "bench")
    gates = Gates(capacity=1, timeout_s=1)
    async with asyncio.timeout(QUESTION_S):
        async with exchange_with(lambda: host, errand, here=False, gates=gates, slots=1) as exchange:
            return await exchange.read_all(1 << 22)


async def looked_at(
    provider: Connect, second: Connect, prompt: str, temperature: float, seed: int, chance: random.Random
) -> tuple[list[Scored], dict[str, float]] | None:
    """One answer of the provider, as the second node scores it, and what that cost; None where it is too short."""
    members: dict[str, Any] = {
        "prompt": prompt,
        "temperature": temperature,
        "max_tokens": ANSWER_TOKENS,
    }
    body = json.dumps({"model": "demo", **members}).encode()
    endpoint, model = ENDPOINTS[COMPLETIONS], Served("demo", "ready")
    asked = Request(endpoint, model, "me", body, "application/json", True, False, JsonObject.parse(body))
    options = {"stream": True, "seed": seed, "stream_options": {"include_usage": True}}
    begun = time.monotonic()
    stream = await sent(provider, COMPLETIONS, {**members, **options})
    answer_s = time.monotonic() - begun
    answered = readable(asked, stream, Host("a" * 64, content_hash=WEIGHTS, radius="public"))
    if answered is None:
        return None
    pieces = next(iter(answered.sent.texts.values()))
    scored, read_tokens = [], 0
    begun = time.monotonic()
    places = places_of(len(pieces), chance)
    tokens = tokens_of(await sent(second, "/tokenize", {"content": pieces, "with_pieces": True}))
    for place in places:
        reply = await sent(second, COMPLETIONS, question(answered, place, tokens))
        scored.append(scored_of(reply, "".join(pieces[place:]).encode()))
        read_tokens += json.loads(reply)["timings"]["prompt_n"]
    look_s = time.monotonic() - begun
    tokens_in, tokens_out = token_counts(stream)
    cost = {
        "answer_s": answer_s,
        "look_s": look_s,
        "requests": len(places),
        "read_tokens": read_tokens,
        "drawn_tokens": len(places),
        "answer_tokens": tokens_out,
        "prompt_tokens": tokens_in,
    }
    return scored, cost


def played(answers: list[list[Scored]], temperature: float, chance: random.Random) -> int | None:
    """After how many of these answers, in some order, a provider is found out; None for not at all."""
    book = Reputations(chance)
    for number, answer in enumerate(chance.sample(answers, len(answers)), 1):
        if book.add("a", WEIGHTS, answer, temperature) == "bad":
            return number
    return None


async def measure(run: Run, engine: Path, claimed: Path, other: Path, rounds: int) -> None:
    """All figures."""
    chance = random.Random(20)
    costs: list[dict[str, float]] = []
    async with llama_server(engine, claimed) as honest, llama_server(engine, other) as dishonest:
        for temperature in TEMPERATURES:
            kind = "greedy" if temperature == 0 else f"drawn at {temperature}"
            for name, provider in (("the claimed weights", honest), ("other weights", dishonest)):
                answers = []
                for seed in range(rounds):
                    for prompt in PROMPTS:
                        found = await looked_at(provider, honest, prompt, temperature, seed, chance)
                        if found is not None:
                            answers.append(found[0])
                            costs.append(found[1])
                ends = [played(answers, temperature, chance) for _ in range(PLAYS)]
                caught = sorted(end for end in ends if end is not None)
                if provider is honest:
                    share = len(caught) / PLAYS
                    run.add(Figure(f"{kind}, {name}: called bad within {len(answers)} answers", share, "", 0.01))
                    continue
                for within in (1, 4, 10, 40):
                    share = sum(end <= within for end in caught) / PLAYS
                    run.add(Figure(f"{kind}, {name}: found out within {within} answers", share, ""))
                if caught:
                    run.add(Figure(f"{kind}, {name}: answers until found out, p50", quantile(caught, 0.5), ""))
    answered = sum(cost["answer_tokens"] for cost in costs)
    read = sum(cost["read_tokens"] for cost in costs)
    run.add(Figure("tokens the second node reads for each token of an answer", read / answered, ""))
    run.add(Figure("requests of a look", sum(cost["requests"] for cost in costs) / len(costs), ""))
    spent = sum(cost["look_s"] for cost in costs) / sum(cost["answer_s"] for cost in costs)
    run.add(Figure("time of a look against that of the answer", spent, ""))
    run.raw |= {"looks": len(costs), "alternatives": ALTERNATIVES, "answer_tokens": answered}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--model", type=Path, default=DEMO_TARGET)
    parser.add_argument("--other", type=Path, default=DEMO_DRAFT)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    engine = find(find_places().cache)
    assert engine is not None, "there is no engine: meshnode engine build"
    run = Run("verify", options.quick)
    asyncio.run(measure(run, engine.server, options.model, options.other, 2 if options.quick else 8))
    run.finish(options.out)


if __name__ == "__main__":
    main()
