"""Trains the demo models that ship with meshnode, on a CPU, from text that it makes up itself.

    python bench/train_demo.py                 trains target and draft, exports both and the held-out questions
    python bench/train_demo.py --engine PATH   also scores them with that llama-server and records the scores
    python bench/train_demo.py --write-heldout writes the held-out questions only

Needs torch, numpy and gguf. An interrupted run continues from its last checkpoint. The published weights come from
a run whose stages were adjusted on the way, so a fresh run gives equally shaped models but not the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from demo.batches import make_batch
from demo.corpus import Drills, chat_text, held_out_questions, random_chat
from demo.export import export
from demo.network import Network, Shape, deepen
from demo.scoring import score
from demo.tokenizer import Tokenizer, learn_merges, number_merges
from torch import Tensor, nn
from torch.nn import functional

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "meshnode" / "models" / "demo"
HELD_OUT = ROOT / "tests" / "models" / "data" / "demo_heldout.json"
CHECKPOINTS = ROOT / "build" / "demo"
LEARNED_MERGES = 600
WARM_UP = 30
PLAIN_SHARE = 0.3  # AdamW learns at this share of the rate of Muon


@dataclass(frozen=True)
class Stage:
    """A part of the training with rows of one length, a falling rate and one mix of drills."""

    steps: int
    length: int
    rates: tuple[float, float]
    drills: Drills
    tokens: int = 6144  # of one batch


@dataclass(frozen=True)
class Plan:
    """How one of the two networks is trained: with few layers first, with all of them in the last stages."""

    name: str
    layers: int
    first_layers: int
    width: int
    heads: int
    key_value_heads: int
    hidden: int
    stages: tuple[Stage, ...]
    deep_stages: int = 1

    @property
    def steps(self) -> int:
        return sum(stage.steps for stage in self.stages)

    @property
    def deepened(self) -> int:
        """The step at which the other layers are added."""
        return self.steps - sum(stage.steps for stage in self.stages[-self.deep_stages :])

    def stage(self, step: int) -> tuple[Stage, int]:
        """Return the stage of a step and the step inside it."""
        for stage in self.stages:
            if step < stage.steps:
                return stage, step
            step -= stage.steps
        raise ValueError("the training ends before this step")

    def rate(self, step: int) -> float:
        """Fall from the first to the last rate of the stage; warm up at the start and in the deep stages."""
        stage, inside = self.stage(step)
        first, last = stage.rates
        since = step if step < self.deepened else inside
        return (first + (last - first) * inside / stage.steps) * min((since + 1) / WARM_UP, 1.0)

    def shape(self, layers: int, vocabulary: int) -> Shape:
        return Shape(layers, self.width, self.heads, self.key_value_heads, self.hidden, vocabulary)


# Short rows with drills come first: they leave little to look at but the question, which is what counting needs.
TARGET = Plan(
    name="target", layers=12, first_layers=4, width=192, heads=3, key_value_heads=1, hidden=512,
    stages=(
        Stage(1150, 128, (7e-3, 4e-3), Drills(0.75, sums=0.3, any_count=0.2, longest=6)),
        Stage(450, 128, (4e-3, 2.6e-3), Drills(0.4, sums=0.25, any_count=0.5, longest=20)),
        Stage(550, 128, (2.6e-3, 5e-4), Drills(0.65, sums=0.15, any_count=0.7, longest=20)),
        Stage(120, 512, (1e-3, 0.0), Drills(0.5, sums=0.15, any_count=0.7, longest=20), tokens=3584),
        Stage(400, 512, (1.5e-3, 0.0), Drills(0.5, sums=0.2, any_count=0.75, longest=20), tokens=5120),
        Stage(220, 512, (1e-3, 0.0), Drills(0.35, sums=0.25, any_count=0.7, longest=20), tokens=5120),
    ),
    deep_stages=3,
)  # fmt: skip
DRAFT = Plan(
    name="draft", layers=2, first_layers=2, width=128, heads=4, key_value_heads=2, hidden=384,
    stages=(
        Stage(400, 128, (7e-3, 4e-3), Drills(0.6, sums=0.3, any_count=0.3, longest=6)),
        Stage(400, 128, (4e-3, 1e-3), Drills(0.5, sums=0.2, any_count=0.6, longest=20)),
        Stage(60, 512, (1e-3, 0.0), Drills(0.5, sums=0.15, any_count=0.7, longest=20), tokens=3584),
    ),
)  # fmt: skip


def make_tokenizer(seed: int, checkpoints: Path) -> Tokenizer:
    """Learn the merges, or read those of an earlier run: a checkpoint means nothing with any others."""
    file = checkpoints / "merges.json"
    if file.exists():
        return Tokenizer([(left, right) for left, right in json.loads(file.read_text(encoding="utf-8"))])
    random = Random(seed)
    texts = [chat_text(random_chat(random)) for _ in range(6000)]
    merges = number_merges() + learn_merges(texts, LEARNED_MERGES)
    checkpoints.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(merges), encoding="utf-8")
    return Tokenizer(merges)


def make_optimizers(network: Network) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for everything else; every step sets their rates."""
    matrices = [weight for weight in network.blocks.parameters() if weight.ndim == 2]
    others = [weight for weight in network.parameters() if not any(weight is matrix for matrix in matrices)]
    return [
        torch.optim.Muon(matrices, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0),
    ]


class Training:
    """The state of one network in training, with its checkpoint."""

    def __init__(self, plan: Plan, tokenizer: Tokenizer, options: argparse.Namespace) -> None:
        self.plan = plan
        self.tokenizer = tokenizer
        self.options = options
        self.checkpoint = options.checkpoints / f"{plan.name}.pt"
        self.step = 0
        self.seconds = 0.0
        torch.manual_seed(options.seed)
        self.network = Network(plan.shape(plan.first_layers, len(tokenizer.tokens)))
        self.network.place_numbers(tokenizer)
        self.prepare()
        if self.checkpoint.exists():
            self.restore()

    def prepare(self) -> None:
        """Set up what depends on the network: the optimizers and the compiled form."""
        self.optimizers = make_optimizers(self.network)
        self.hidden_states: nn.Module = torch.compile(self.network) if self.options.compile else self.network

    def restore(self) -> None:
        state = torch.load(self.checkpoint)
        self.step, self.seconds = state["step"], state["seconds"]
        if self.step > self.plan.deepened:
            self.network = deepen(self.network, self.plan.layers)
            self.prepare()
        self.network.load_state_dict(state["network"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)

    def save(self) -> None:
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        partial = self.checkpoint.with_suffix(".partial")
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "network": self.network.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        torch.save(state, partial)
        partial.replace(self.checkpoint)

    def run(self) -> None:
        started = time.monotonic() - self.seconds
        while self.step < self.plan.steps:
            if self.step == self.plan.deepened:
                self.network = deepen(self.network, self.plan.layers)
                self.prepare()
            loss, correct = self.advance()
            self.step += 1
            self.seconds = time.monotonic() - started
            if self.step % 20 == 0:
                print(
                    f"{self.plan.name} {self.step} loss {loss:.4f} decisions {correct:.4f} {self.seconds:.0f} s",
                    flush=True,
                )
            if self.step % self.options.save_every == 0 or self.step == self.plan.steps:
                self.save()
        export(self.network, self.tokenizer, MODELS / f"{self.plan.name}.gguf", name=f"demo {self.plan.name}")

    def advance(self) -> tuple[float, float]:
        """Take one step; return the loss and the share of decisions that were right."""
        random = Random(f"{self.options.seed} {self.plan.name} {self.step}")
        stage, _ = self.plan.stage(self.step)
        rows = stage.tokens // stage.length
        batch = make_batch(self.tokenizer, random, rows=rows, length=stage.length, drills=stage.drills)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = self.hidden_states(batch.tokens, batch.positions)
            logits = self.network.output(hidden.flatten(0, 1)[batch.chosen]).float()
        losses: Tensor = functional.cross_entropy(logits, batch.wanted, reduction="none")
        loss = (losses * batch.weights).sum() / batch.weights.sum()
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        rate = self.plan.rate(self.step)
        for optimizer, share in zip(self.optimizers, (1.0, PLAIN_SHARE), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * share
            optimizer.step()
            optimizer.zero_grad()
        correct = (logits.argmax(-1) == batch.wanted)[batch.weights > 1].float().mean()
        return loss.item(), correct.item()


def write_held_out(seed: int) -> None:
    HELD_OUT.parent.mkdir(parents=True, exist_ok=True)
    HELD_OUT.write_text(json.dumps(held_out_questions(seed), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def describe(name: str) -> dict[str, object]:
    data = (MODELS / f"{name}.gguf").read_bytes()
    return {"file": f"{name}.gguf", "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def write_description(trainings: list[Training], options: argparse.Namespace) -> None:
    """Write demo.json: what the files are, how they were made and how well they answer."""
    description: dict[str, object] = {
        "name": "demo",
        "licence": "MIT",
        "command": "python bench/train_demo.py" + (f" --engine {options.engine.name}" if options.engine else ""),
        "seed": options.seed,
        "torch": torch.__version__,
    }
    for training in trainings:
        plan = training.plan
        description[plan.name] = describe(plan.name) | {
            "layers": plan.layers,
            "width": plan.width,
            "parameters": sum(weight.numel() for weight in training.network.parameters()),
            "steps": training.step,
            "tokens": sum(stage.steps * stage.tokens for stage in plan.stages),
            "training_seconds": round(training.seconds),
        }
    if options.engine:
        questions = json.loads(HELD_OUT.read_text(encoding="utf-8"))
        description["scores"] = score(options.engine, MODELS, questions, trainings[0].tokenizer)
    text = json.dumps(description, indent=2)
    (MODELS / "demo.json").write_text(text + "\n", encoding="utf-8")
    print(text)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save-every", type=int, default=200, help="steps between two checkpoints")
    parser.add_argument("--checkpoints", type=Path, default=CHECKPOINTS)
    parser.add_argument("--engine", type=Path, help="llama-server to score the models with")
    parser.add_argument("--compile", action="store_true", help="compile the network first (needs a C++ compiler)")
    parser.add_argument("--write-heldout", action="store_true", help="write the held-out questions and stop")
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    write_held_out(options.seed)
    if options.write_heldout:
        return
    torch.set_num_threads(options.threads)
    tokenizer = make_tokenizer(options.seed, options.checkpoints)
    trainings = []
    for plan in (TARGET, DRAFT):
        training = Training(plan, tokenizer, options)
        training.run()
        trainings.append(training)
    write_description(trainings, options)


if __name__ == "__main__":
    main()
