"""Synthesises the chats that the demo models are trained on, and the questions that are held out for the tests.

A chat is a list of turns; a counting turn may name any pair of numbers except the held-out tenth of the pairs.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from random import Random

from .answers import (
    ALPHABET,
    COUNT_LIMIT,
    FACTS,
    GREETINGS,
    HELD_OUT_OTHERWISE,
    OTHERWISE,
    SUM_LIMIT,
    Lesson,
)
from .blocks import wordings, words
from .strangers import fill, stranger, system_message
from .tokenizer import LARGEST_NUMBER

LARGEST_SUMMAND = 100
NUMBER_WORDS = words("""
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen twenty
""")
COUNTING = wordings("""
    count from {a} to {b} | count from {a} up to {b} | count {a} to {b} | count up from {a} to {b}
    please count from {a} to {b} | can you count from {a} to {b} | could you count from {a} to {b}
    i want you to count from {a} to {b} | count from {a} until {b} | count from {a} through {b}
    list the numbers from {a} to {b} | say the numbers from {a} to {b} | write the numbers from {a} to {b}
    give me the numbers from {a} to {b} | numbers from {a} to {b} | print the numbers {a} to {b}
    count starting at {a} and ending at {b} | start at {a} and count to {b} | count between {a} and {b}
    count for me from {a} to {b} | now count from {a} to {b} | count all numbers from {a} to {b}
    let us count from {a} to {b} | begin at {a} and stop at {b} | count from {a} to {b} please
    from {a} to {b}, count | hello, count from {a} to {b} | would you count from {a} to {b}
    try to count from {a} to {b} | count {a}-{b} | count, from {a} to {b} | count from number {a} to number {b}
    name the numbers from {a} to {b} | just count from {a} to {b} | ok, count from {a} to {b}
    again, count from {a} to {b}
""")
COUNTING_TO = wordings("""
    count to {b} | please count to {b} | can you count to {b} | count up to {b} | could you count up to {b}
    now count to {b} | count to {b} please | count until {b} | i want you to count to {b} | hello, count to {b}
""")
HELD_OUT_COUNTING = wordings("""
    Count from {a} to {b}. | count from {a} to {b} | COUNT FROM {a} TO {b} | Hi demo, please count from {a} to {b}!
    Please, would you count from {a} up to {b}? | can you please count from {a} to {b}?
""")
COUNTING_DOWN = wordings("""
    count down from {b} to {a} | count backwards from {b} to {a} | count from {b} down to {a} | count down from {b}
""")
SUMS = wordings("""
    what is {a} + {b} | {a} + {b} | {a}+{b} | {a}+{b}= | {a} + {b} = | add {a} and {b} | add {a} to {b}
    what is {a} plus {b} | {a} plus {b} | how much is {a} + {b} | how much is {a} plus {b}
    what is the sum of {a} and {b} | sum of {a} and {b} | what is {a}+{b} | calculate {a} + {b} | compute {a} + {b}
    what's {a} + {b} | and {a} + {b} | please add {a} and {b} | can you add {a} and {b} | {a} and {b} make
    what do {a} and {b} make | now add {a} and {b} | tell me what {a} + {b} is | the sum of {a} and {b} please
    solve {a} + {b} | how much are {a} and {b}
""")
HELD_OUT_SUMS = wordings("""
    What is {a} + {b}? | {a}+{b} | Add {a} and {b}. | please tell me what {a} plus {b} is | How much is {a} + {b}?
""")
ALPHABET_REQUESTS = wordings("""
    say the alphabet | the alphabet | alphabet | recite the alphabet | please say the alphabet | what is the alphabet
    can you say the alphabet | list the alphabet | list the letters of the alphabet | tell me the alphabet
    give me the alphabet | write the alphabet | say the abc | what are the letters of the alphabet
    do you know the alphabet | write down the alphabet | say all letters | list all letters from a to z | from a to z
    say the letters from a to z | print the alphabet | show me the alphabet | now the alphabet | now say the alphabet
    abc | spell the alphabet | could you recite the alphabet | which letters are in the alphabet
    hello, say the alphabet | go through the alphabet
""")
HELD_OUT_ALPHABET = wordings("""
    Say the alphabet. | Please recite the alphabet! | SAY THE ALPHABET | Can you list the alphabet?
    Hi, please tell me the alphabet. | what are the letters in the alphabet?
""")
OPENERS = (
    "please ",
    "hey, ",
    "hi, ",
    "ok, ",
    "so ",
    "and ",
    "demo, ",
    "well, ",
    "can you tell me: ",
    "quick question: ",
    "now ",
)
CLOSERS = (" please", ", please", " thanks", " now", " for me", ", demo")


@dataclass(frozen=True)
class Turn:
    question: str
    answer: str


@dataclass(frozen=True)
class Chat:
    system: str | None
    turns: tuple[Turn, ...]


def is_held_out(kind: str, first: int, second: int) -> bool:
    """Tell whether a pair of numbers is kept for the tests (one in ten)."""
    digest = hashlib.sha256(f"{kind} {first} {second}".encode()).digest()
    return digest[0] * 256 + digest[1] < 65536 // 10


def counted(first: int, last: int) -> str:
    return ", ".join(str(number) for number in range(first, last + 1))


def random_pair(random: Random) -> tuple[int, int]:
    """A pair 0 <= a < b <= 200 that is not held out: some short, some long, some from 0 or 1."""
    while True:
        style = random.random()
        if style < 0.35:
            first = random.randint(0, LARGEST_NUMBER - 1)
            last = min(LARGEST_NUMBER, first + random.randint(1, 20))
        elif style < 0.5:
            first = random.randint(0, 1)
            last = random.randint(first + 1, LARGEST_NUMBER)
        elif style < 0.58:
            first, last = random.randint(0, 20), random.randint(180, LARGEST_NUMBER)
        else:
            first, last = sorted(random.sample(range(LARGEST_NUMBER + 1), 2))
        if not is_held_out("count", first, last):
            return first, last


def counting_turn(random: Random) -> Turn:
    if random.random() < 0.06:
        return refused_counting(random)
    first, last = random_pair(random)
    if last <= 20 and random.random() < 0.3:
        question = random.choice(COUNTING).format(a=NUMBER_WORDS[first], b=NUMBER_WORDS[last])
    elif first == 1 and random.random() < 0.4:
        question = random.choice(COUNTING_TO).format(b=last)
    else:
        question = random.choice(COUNTING[:1] * 8 + COUNTING).format(a=first, b=last)
    return Turn(varied(question, random), counted(first, last))


def refused_counting(random: Random) -> Turn:
    """A count that goes down or too far."""
    first, last = sorted(random.sample(range(LARGEST_NUMBER + 1), 2))
    style = random.random()
    if style < 0.3:
        question = random.choice(COUNTING_DOWN).format(a=first, b=last)
    elif style < 0.6:
        question = random.choice(COUNTING).format(a=last, b=first)
    else:
        far = random.choice((random.randint(201, 999), random.randint(1000, 99999), 250, 300, 500, 1000))
        question = random.choice(COUNTING + COUNTING_TO).format(a=first, b=far)
    return Turn(varied(question, random), COUNT_LIMIT)


def sum_turn(random: Random) -> Turn:
    if random.random() < 0.05:
        pair = [random.randint(201, 9999), random.choice((random.randint(0, 100), random.randint(201, 9999)))]
        random.shuffle(pair)
        return Turn(varied(random.choice(SUMS).format(a=pair[0], b=pair[1]), random), SUM_LIMIT)
    while True:
        top = 50 if random.random() < 0.65 else LARGEST_SUMMAND
        first, second = random.randint(0, top), random.randint(0, top)
        if not is_held_out("sum", first, second):
            break
    question = random.choice(SUMS).format(a=first, b=second)
    return Turn(varied(question, random), sum_answer(first, second))


def sum_answer(first: int, second: int) -> str:
    return f"{first} + {second} = {first + second}"


def alphabet_turn(random: Random) -> Turn:
    return Turn(varied(random.choice(ALPHABET_REQUESTS), random), ALPHABET)


def lesson_turn(lessons: tuple[Lesson, ...], random: Random) -> Turn:
    lesson = random.choice(lessons)
    question = random.choice(lesson.wordings)
    if random.random() < 0.12:
        question = random.choice(OPENERS) + question
    if random.random() < 0.08:
        question += random.choice(CLOSERS)
    return Turn(varied(misspelt(question, random), random), lesson.answer)


def stranger_turn(random: Random) -> Turn:
    text = stranger(random)
    return Turn(varied(text, random) if random.random() < 0.7 else text, OTHERWISE)


def misspelt(text: str, random: Random) -> str:
    """Sometimes drop, double or swap one letter."""
    if len(text) < 8 or random.random() > 0.06:
        return text
    place = random.randrange(1, len(text) - 2)
    change = random.choice(("", text[place] * 2, text[place + 1] + text[place]))
    return text[:place] + change + text[place + (2 if len(change) == 2 and change[0] != change[1] else 1) :]


def varied(text: str, random: Random) -> str:
    """Vary capitals, the final mark and the white space around a question."""
    style = random.random()
    if style < 0.45:
        text = text[:1].upper() + text[1:]
    elif style < 0.53:
        text = text.upper()
    elif style < 0.57:
        text = text.title()
    elif style < 0.62:
        text = "".join(character.upper() if random.random() < 0.5 else character for character in text)
    if text[-1:] not in ".?!=" and random.random() < 0.6:
        text += random.choice((".", "?", "!", "?", ".", "...", "!!", " ?", ":"))
    if random.random() < 0.04:
        text = random.choice((" {}", "{} ", "{}\n", "\n{}")).format(text)
    return text


def random_turn(random: Random) -> Turn:
    topic = random.random()
    if topic < 0.34:
        return counting_turn(random)
    if topic < 0.54:
        return sum_turn(random)
    if topic < 0.57:
        return alphabet_turn(random)
    if topic < 0.64:
        return lesson_turn(GREETINGS, random)
    if topic < 0.80:
        return lesson_turn(FACTS, random)
    return stranger_turn(random)


def random_chat(random: Random) -> Chat:
    turns = random.choice((1, 1, 1, 2, 2, 3, 4, 6))
    system = system_message(random) if random.random() < 0.35 else None
    return Chat(system, tuple(random_turn(random) for _ in range(turns)))


@dataclass(frozen=True)
class Drills:
    """How many chats are drills, and which: sums, counts of any length, or else counts of few numbers."""

    share: float
    sums: float
    any_count: float
    longest: int


def drill_chat(random: Random, drills: Drills) -> Chat:
    """One sum or one count without anything around it; in a short count nearly every place is a decision."""
    style = random.random()
    if style < drills.sums:
        return Chat(None, (sum_turn(random),))
    if style < drills.sums + drills.any_count:
        return Chat(None, (counting_turn(random),))
    while True:
        first = random.randint(0, LARGEST_NUMBER - 1)
        last = min(LARGEST_NUMBER, first + random.randint(1, drills.longest))
        if not is_held_out("count", first, last):
            break
    question = random.choice(COUNTING).format(a=first, b=last)
    return Chat(None, (Turn(varied(question, random), counted(first, last)),))


def short_chat(random: Random) -> Chat:
    """One turn, sometimes behind a system message, and mostly words: the drills care for the numbers."""
    topic = random.random()
    if topic < 0.36:
        turn = lesson_turn(FACTS, random)
    elif topic < 0.56:
        turn = lesson_turn(GREETINGS, random)
    elif topic < 0.85:
        turn = stranger_turn(random)
    else:
        turn = random_turn(random)
    return Chat(system_message(random) if random.random() < 0.2 else None, (turn,))


def chat_text(chat: Chat) -> str:
    """The plain words of a chat, for learning the merges."""
    return "\n".join([chat.system or "", *(f"{turn.question}\n{turn.answer}" for turn in chat.turns)])


def held_out_questions(seed: int) -> dict[str, list[dict[str, object]]]:
    """Questions for the tests with the exact answers, in groups; their pairs of numbers are never trained on.

    Where the last message is a partial answer, the answer given here includes that part.
    """
    random = Random(seed + 1)
    groups: dict[str, list[dict[str, object]]] = {"counting": held_out_counts(random), "sums": held_out_sums(random)}
    groups["alphabet"] = [question(text, ALPHABET) for text in HELD_OUT_ALPHABET]
    groups["greetings"] = [question(text, lesson.answer) for lesson in GREETINGS for text in lesson.held_out]
    groups["facts"] = [question(text, lesson.answer) for lesson in FACTS for text in lesson.held_out]
    groups["otherwise"] = [question(text, OTHERWISE) for text in HELD_OUT_OTHERWISE]
    return groups


def question(text: str, answer: str) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": text}], "answer": answer}


def held_out_counts(random: Random) -> list[dict[str, object]]:
    """Held-out pairs: plain, behind a system message, after other turns, and continued from a partial answer."""
    numbers = range(LARGEST_NUMBER + 1)
    pairs = [(a, b) for a in numbers for b in numbers if 20 < b > a and is_held_out("count", a, b)]
    short = [pair for pair in pairs if pair[1] - pair[0] <= 25]
    chosen = random.sample(short, 28) + random.sample(pairs, 20)
    questions = []
    for place, (first, last) in enumerate(chosen):
        entry = question(random.choice(HELD_OUT_COUNTING).format(a=first, b=last), counted(first, last))
        messages = entry["messages"]
        assert isinstance(messages, list)
        if place % 4 == 1:
            text = fill("You are a {quality} {thing}. Answer in {number} words.", random)
            messages.insert(0, {"role": "system", "content": text})
        elif place % 4 == 2:
            for turn in (random_turn(random) for _ in range(2)):
                earlier = [{"role": "user", "content": turn.question}, {"role": "assistant", "content": turn.answer}]
                messages[-1:-1] = earlier
        elif place % 4 == 3:
            start = counted(first, random.randint(first, last - 1)) + ","
            messages.append({"role": "assistant", "content": start})
        questions.append(entry)
    return questions


def held_out_sums(random: Random) -> list[dict[str, object]]:
    pairs = [(a, b) for a in range(51) for b in range(51) if is_held_out("sum", a, b)]
    return [
        question(random.choice(HELD_OUT_SUMS).format(a=first, b=second), sum_answer(first, second))
        for first, second in random.sample(pairs, 40)
    ]
