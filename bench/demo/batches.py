"""Turns chats into batches: packed rows of tokens, positions with gaps, and the weight of each place in the loss."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

import torch
from torch import Tensor

from .corpus import Chat, Drills, drill_chat, random_chat, short_chat
from .tokenizer import MESSAGE_END, MESSAGE_START, Tokenizer

DECISION_WEIGHT = 3.0  # the first token of an answer and its end matter most
SHORT_ROW = 128  # rows up to this length hold chats of one turn, with nearly nothing else to look at
SHORTEST_ELIDED = 24
ELIDED_SHARE = 0.4
LONGEST_GAP = 1200
HIGHEST_POSITION = 4096


@dataclass
class Row:
    """Tokens with the loss weight of predicting each of them, and their positions."""

    tokens: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)

    def add(self, tokens: list[int], weight: float, *, gap: int = 0) -> None:
        following = self.positions[-1] + 1 + gap if self.positions else 0
        self.positions += range(following, following + len(tokens))
        self.tokens += tokens
        self.weights += [weight] * len(tokens)


def message_tokens(tokenizer: Tokenizer, role: str, text: str) -> list[int]:
    start, end = tokenizer.special(MESSAGE_START), tokenizer.special(MESSAGE_END)
    return [start, *tokenizer.encode(f"{role}\n{text}"), end, *tokenizer.encode("\n")]


def cut_answer(answer: str, random: Random) -> tuple[str, str]:
    """Cut an answer somewhere but inside a number, as a stream that breaks off and is continued would be."""
    place = random.randint(1, len(answer) - 1)
    while place < len(answer) and answer[place - 1].isdigit() and answer[place].isdigit():
        place += 1
    return answer[:place], answer[place:]


def add_answer(row: Row, tokenizer: Tokenizer, answer: str, random: Random) -> None:
    row.add([tokenizer.special(MESSAGE_START), *tokenizer.encode("assistant\n")], 0.0)
    begin, rest = cut_answer(answer, random) if random.random() < 0.06 and len(answer) > 3 else ("", answer)
    numbers = answer.split(", ")
    if len(numbers) > SHORTEST_ELIDED and numbers[0].isdigit() and random.random() < ELIDED_SHARE:
        add_elided_count(row, tokenizer, numbers, random)
    elif begin:
        tokens = tokenizer.encode(begin)
        row.add(tokens[:-2], 1.0)
        # The last pieces of a broken-off text are not what the model should write itself.
        row.add(tokens[-2:], 0.0)
        row.add(tokenizer.encode(rest), 1.0)
    else:
        tokens = tokenizer.encode(rest)
        row.add(tokens[:1], DECISION_WEIGHT)
        row.add(tokens[1:], 1.0)
    row.add([tokenizer.special(MESSAGE_END)], DECISION_WEIGHT)
    row.add(tokenizer.encode("\n"), 0.0)


def add_elided_count(row: Row, tokenizer: Tokenizer, numbers: list[str], random: Random) -> None:
    """Leave out the middle of a long count but keep the positions: its start and its end are all there is to learn."""
    head, tail = random.randint(1, 8), random.randint(4, 10)
    tokens = tokenizer.encode(", ".join(numbers[:head]) + ",")
    row.add(tokens[:1], DECISION_WEIGHT)
    row.add(tokens[1:], 1.0)
    tokens = tokenizer.encode(" " + ", ".join(numbers[-tail:]))
    row.add(tokens[:1], 0.0, gap=2 * (len(numbers) - head - tail))
    row.add(tokens[1:], 1.0)


def add_chat(row: Row, tokenizer: Tokenizer, chat: Chat, random: Random) -> None:
    if chat.system is not None:
        row.add(message_tokens(tokenizer, "system", chat.system), 0.0)
    for turn in chat.turns:
        row.add(message_tokens(tokenizer, "user", turn.question), 0.0)
        add_answer(row, tokenizer, turn.answer, random)


def pick_chat(random: Random, drills: Drills, *, long: bool) -> Chat:
    if random.random() < drills.share:
        return drill_chat(random, drills)
    return random_chat(random) if long and random.random() < 0.5 else short_chat(random)


def make_row(tokenizer: Tokenizer, random: Random, *, length: int, drills: Drills) -> Row:
    """Pack chats until the row is full; half of the rows have gaps between their chats."""
    row = Row()
    gaps = random.random() < 0.5
    while len(row.tokens) < length + 1:
        before = len(row.tokens)
        add_chat(row, tokenizer, pick_chat(random, drills, long=length > SHORT_ROW), random)
        room = HIGHEST_POSITION - row.positions[-1] - length
        if gaps and before and room > 0 and random.random() < 0.5:
            distance = random.randint(1, min(room, LONGEST_GAP))
            row.positions[before:] = [position + distance for position in row.positions[before:]]
    return row


@dataclass
class Batch:
    tokens: Tensor
    positions: Tensor
    chosen: Tensor
    wanted: Tensor
    weights: Tensor


def make_batch(tokenizer: Tokenizer, random: Random, *, rows: int, length: int, drills: Drills) -> Batch:
    """Make one batch; only the places that have a weight get logits."""
    packed = [make_row(tokenizer, random, length=length, drills=drills) for _ in range(rows)]
    tokens = torch.tensor([row.tokens[: length + 1] for row in packed])
    weights = torch.tensor([row.weights[1 : length + 1] for row in packed]).flatten()
    chosen = weights.nonzero().flatten()
    return Batch(
        tokens=tokens[:, :-1].contiguous(),
        positions=torch.tensor([row.positions[:length] for row in packed]),
        chosen=chosen,
        wanted=tokens[:, 1:].flatten()[chosen],
        weights=weights[chosen],
    )
