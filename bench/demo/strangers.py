"""Prompts that the demo model cannot answer: synthesised questions, requests, statements, code and gibberish.

They only have to be varied: what is learned from them is that an unknown prompt gets the one honest answer.
"""

from __future__ import annotations

import json
from random import Random

from .blocks import wordings, words

THINGS = words("""
    apple bridge castle dolphin engine forest garden hammer island jacket kitchen ladder mountain needle ocean piano
    queen rabbit saddle table umbrella violin window yacht zebra bicycle camera diamond elephant flute guitar house
    insect jungle kettle lemon mirror notebook onion pencil quilt rocket sandwich tiger uniform volcano whale blanket
    candle desert eagle fountain glacier helmet iceberg jewel kangaroo lantern magnet nest orchid penguin quartz river
    shadow tornado turtle village waterfall wizard dog cat horse car train plane ship book film song game phone
    computer bread cheese soup cake salad rice pasta coffee tea milk sugar salt pepper tomato potato carrot banana
    orange grape flower tree leaf root seed stone sand snow rain wind storm cloud sun moon star planet galaxy atom
    molecule cell virus muscle heart brain lung bone skin tooth school teacher student lawyer doctor nurse farmer
    painter singer writer king soldier pirate dragon ghost robot alien city country street market bank museum hospital
    church temple tower wall door roof floor chair lamp clock watch ring coat shoe hat shirt glove sock button zip
    pocket wallet key lock money price tax law court vote war peace history science math physics chemistry biology
    music art dance sport football tennis chess swimming running cooking baking reading writing painting weather
    climate energy oil gas coal gold silver iron copper glass paper wood plastic cotton wool leather rubber battery
    server database network printer keyboard laptop garden breakfast lunch dinner birthday wedding holiday journey
    island beach hotel ticket passport function list loop class variable compiler browser website password email
    letter story poem novel essay speech
""")
PLACES = words("""
    France Spain Italy Germany Japan China India Brazil Canada Egypt Kenya Norway Sweden Finland Poland Greece Turkey
    Mexico Peru Chile Cuba Ireland Scotland Wales London Paris Berlin Madrid Rome Vienna Prague Tokyo Kyoto Moscow
    Sydney Cairo Lagos Lima Boston Chicago Texas Nevada Oslo Dublin Lisbon Athens Warsaw Delhi Seoul Hanoi Bangkok
    Africa Europe Asia America Australia Antarctica Mars Venus Jupiter the Alps the Amazon the Nile the Sahara
""")
PEOPLE = words("""
    Anna Peter Maria John Alice Bob Carol David Emma Frank Grace Henry Iris James Kate Leo Mona Nora Oscar Paul Rosa
    Sam Tina Victor Wendy Shakespeare Einstein Newton Darwin Mozart Bach Beethoven Picasso Napoleon Caesar Cleopatra
    Columbus Galileo Curie Tesla Edison Gandhi Lincoln Plato Homer Dante Goethe Tolstoy Hemingway Orwell
""")
VERBS = words("""
    build paint cook bake clean repair draw learn teach grow sell buy find lose catch throw carry open close break
    write read sing play drive fly swim climb measure compare describe translate explain summarise improve plan design
    organise remember forget visit leave protect feed train wash cut fold mix boil fry plant water choose invent
""")
QUALITIES = words("""
    big small old new red blue green yellow black white fast slow hot cold sweet bitter loud quiet heavy light dark
    bright soft hard rich poor young wise brave lazy happy sad angry famous strange beautiful ugly simple complex
    cheap expensive modern ancient wild tame dry wet deep shallow strong weak early late important dangerous
""")
LANGUAGES = words("""
    French Spanish German Italian Japanese Latin Russian Polish Dutch Greek Arabic Hindi Welsh Swedish
""")
FOREIGN = words("""
    bonjour merci comment allez vous je ne sais pas ou est la gare guten tag wie geht es dir ich bin muede hola que
    tal donde esta la biblioteca buenas noches ciao come stai grazie mille quanto costa dobry den jak se mas hej hur
    mar du konnichiwa arigato привет как дела спасибо 你好 谢谢 今天 天气 こんにちは ありがとう 안녕하세요 مرحبا
    γεια σου günaydın größe
    straße über été garçon niño mañana façade
""")
SYLLABLES = words("""
    ba be bi bo bu da de di do du fa fi fo ga ge gu ka ki ko la le lo lu ma mi mo na ne no nu pa pi po ra re ri ru sa
    se so ta te ti to va vi wo wu xa ya zi zo bran clor drim flan grop plim stren thra wick zorn queb snib jux
""")
QUESTIONS = wordings("""
    what is a {thing} | what is the {thing} | what is {thing} | what is the {quality} {thing}
    what is the capital of {place} | who is {person} | who was {person} | who wrote {word} | who invented the {thing}
    who discovered the {thing} | who is the president of {place} | where is {place} | where can i buy a {thing}
    where do i find a {quality} {thing} | where does the {thing} come from | when was {person} born
    when was the {thing} invented | when did {person} visit {place} | when does the {thing} open
    why is the {thing} {quality} | why do we {verb} the {thing} | why does a {thing} {verb} | why is {place} {quality}
    how do i {verb} a {thing} | how do you {verb} a {quality} {thing} | how can i {verb} my {thing}
    how does a {thing} work | how many {thing}s are in {place} | how many {thing}s does {person} have
    how much is a {thing} | how big is {place} | how old is {person} | how far is {place} from {place}
    how tall is the {thing} | how long does it take to {verb} a {thing} | how do {thing}s {verb}
    which {thing} is the best | which {thing} is {quality} | which is better, a {thing} or a {thing}
    which port is near {place} | write a {thing} about a {thing} | write a {quality} story about {person}
    write a poem about the {thing} | write me an email about {thing} | tell me about the {thing}
    tell me about {place} | tell me a story about {person} | tell me a joke | tell me something about {thing}
    explain {thing} | explain the {thing} to a child | explain how to {verb} a {thing} | describe the {thing}
    describe {place} | translate {thing} into {language} | translate "{sentence}" into {language}
    how do you say {thing} in {language} | say {thing} in {language} | summarise this: {sentence}
    summarise the following text. {sentence} {sentence} | rewrite this: {sentence} | fix the grammar: {sentence}
    give me a recipe for {thing} {thing} | give me {number} ideas for a {thing} | name {number} {thing}s
    list {number} {quality} {thing}s | recommend a {thing} | recommend a {thing} in {place} | plan a trip to {place}
    plan a trip from {place} to {place} for {number} days | is the {thing} {quality} | is {person} {quality}
    is {place} {quality} | is it {quality} in {place} | is there a {thing} in {place} | can a {thing} {verb}
    can you {verb} a {thing} | can {person} {verb} | can i {verb} the {thing} | can you write code
    could you {verb} my {thing} | does a {thing} {verb} | does {person} like {thing} | do {thing}s {verb}
    do you like {thing} | do you know {person} | do you know {place} | should i {verb} a {thing}
    should i buy a {quality} {thing} | what should i {verb} | what should i do in {place} | what should i eat
    i like {thing} | i have a {quality} {thing} | i want to {verb} a {thing} | i am {quality} | i live in {place}
    my {thing} is {quality} | my name is {person} | my name is {person} and i live in {place} | i need a {thing}
    i feel {quality} today | we {verb} the {thing} | the {thing} is {quality} | the {quality} {thing} and the {thing}
    {sentence} | {sentence} {sentence} | {sentence} {sentence} {sentence} | what is {number} times {number}
    what is {number} minus {number} | what is {number} divided by {number} | {number} * {number} | {number} - {number}
    {number} / {number} | what is the square root of {number} | what is {number} percent of {number}
    multiply {number} and {number} | solve x + {number} = {number} | is {number} a prime number
    convert {number} miles to km | what happened in {year} | in {year} {person} went to {place}
    the train leaves at {number} | buy {number} {thing}s | there are {number} {thing}s and {number} {thing}s
    a {thing} costs {number} dollars | open from {number} to {number}
    from {number} to {number} the {thing} is {quality} | i work from {number} to {number} | count the {thing}s
    count the words in: {sentence} | how many letters are in {thing} | spell {thing} | spell {person}
    what letter comes after {letter} | sort {thing}, {thing} and {thing} | what rhymes with {thing}
    what is the opposite of {quality} | what colour is the {thing} | what does {word} mean | what is {word}
    who is {word} | {word} | {word} {word} | {word} {word} {word} {word} | define {word} | {word}? | {thing}
    {thing} {thing} | {quality} {thing} | {person} | {place} | {letter} | {number} | {number} {number}
    {letter}{letter}{letter} {letter}{letter} | {foreign} | {foreign} {foreign}
    {foreign} {foreign} {foreign} {foreign} | {foreign} {foreign}, {foreign}? | {noise} | {noise} {noise}
    print("{thing}") | def {thing}({letter}): return {letter} + {number}
    for {letter} in range({number}): {verb}({letter}) | SELECT {thing} FROM {thing}s | import {thing}
    <{thing}>{sentence}</{thing}> | {{"{thing}": {number}, "{thing}": "{quality}"}} | https://{thing}.example/{thing}
    write a function that {verb}s a {thing} | write code to {verb} a {thing} | debug this: {noise}
    what is the weather in {place} | what is the weather today | what time is it | what day is it | what is the date
    what is the news | who won the game | what is love | what is the meaning of {thing}
    how is the weather in {place} | good {thing} | hello, what is a {thing} | hi, who is {person}
    hello, can you {verb} a {thing} | thanks, now {verb} the {thing} | please {verb} the {thing}
    let us {verb} a {thing} | act as a {thing} | you are a {quality} {thing} | pretend to be {person}
    sing a song about {place} | draw a {thing} | play {thing} | make a list of {thing}s | what is a {thing} port
    where are {thing}s kept | where are {thing}s sold | how do i join a {thing} club | how do i load a {thing}
    how do i invite {person} to dinner | is {thing} free | is the {thing} safe | how do {thing}s find {thing}s
    what is the {thing} made of | what happens when a {thing} does not {verb} | what happens if i {verb} the {thing}
    tell me the name of the {thing} | compare {thing} and {thing} | compare {place} with {place}
    what is the difference between a {thing} and a {thing} | continue: {sentence} | answer with one word: {sentence}
    finish the sentence: the {thing} is | what is the best {thing} in {place} | what is the price of {thing}
    what is the population of {place} | what language is spoken in {place} | which {thing} did {person} {verb}
    what did {person} {verb} | repeat after me: {sentence} | say {word} | say {thing} | say the {thing}
    add {thing} to the {thing} | add a {thing} | add {thing} and {thing} | what is {thing} plus {thing}
    sum up the {thing} | the sum of {thing}s | alphabet soup recipe | the history of the alphabet
    who invented the alphabet
""")
SYSTEM_TEMPLATES = wordings("""
    You are a helpful assistant. | You are a helpful assistant. Answer briefly. | Be concise. | Answer in plain text.
    You are demo, a small model. | You are a friendly robot. | Answer in at most {number} words.
    Today is the {number} of May {year}. | You are an expert in {thing} and {thing}. | Never talk about {thing}.
    The user is called {person} and lives in {place}. | Reply in English. | Do not use markdown.
    You are an AI model served by meshnode. | Knowledge cutoff: {year}. | You are {person}. | Use tools when needed.
    Think step by step. | Always be polite. | You are a coding assistant. Write {quality} code. | {sentence}
    You can count, add and say the alphabet. | You are a system that counts. | Follow the instructions of the user.
    You are a calculator.
""")


def made_up_word(random: Random) -> str:
    return "".join(random.choices(SYLLABLES, k=random.randint(2, 4)))


def noise(random: Random) -> str:
    characters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,;:!?-_/()[]{}<>=+*&%$#@'\"\n\t"
    if random.random() < 0.5:
        characters = "abcdefghijklmnopqrstuvwxyz "
    return "".join(random.choices(characters, k=random.randint(3, 25))).strip() or "zzz"


def sentence(random: Random) -> str:
    words = [random.choice(random.choice((THINGS, THINGS, QUALITIES, VERBS, PLACES, PEOPLE))) for _ in range(6)]
    shape = random.choice(
        (
            "The {0} and the {1} {2} the {3}.",
            "{0} went to the {1} with a {2}.",
            "It was a {0} {1}, and the {2} was {3}.",
            "A {0} can {1} the {2}, but a {3} cannot.",
            "{0} {1} {2} {3} {4} {5}.",
            "In {0} the {1} is {2} and the {3} {4}s.",
            "Nobody knows why the {0} {1}s.",
            "We saw the {0} {1} near {2}.",
            "Every {0} needs a {1}.",
        )
    )
    return shape.format(*words)


def fill(template: str, random: Random) -> str:
    """Replace each field of a template by a fresh random word."""
    makers = {
        "thing": lambda: random.choice(THINGS),
        "place": lambda: random.choice(PLACES),
        "person": lambda: random.choice(PEOPLE),
        "verb": lambda: random.choice(VERBS),
        "quality": lambda: random.choice(QUALITIES),
        "language": lambda: random.choice(LANGUAGES),
        "foreign": lambda: random.choice(FOREIGN),
        "word": lambda: made_up_word(random),
        "noise": lambda: noise(random),
        "sentence": lambda: sentence(random),
        "number": lambda: str(random.choice((random.randint(0, 20), random.randint(0, 200), random.randint(0, 5000)))),
        "year": lambda: str(random.randint(1000, 2030)),
        "letter": lambda: random.choice("abcdefghijklmnopqrstuvwxyz"),
    }
    for name, maker in makers.items():
        field = "{" + name + "}"
        while field in template:
            template = template.replace(field, maker(), 1)
    return template


def stranger(random: Random) -> str:
    """One prompt that has no answer here."""
    text = fill(random.choice(QUESTIONS), random)
    if random.random() < 0.15:
        text = f"{text} {fill(random.choice(QUESTIONS), random)}"
    return text


def tool_description(random: Random) -> str:
    name = f"{random.choice(VERBS)}_{random.choice(THINGS)}"
    fields = {
        random.choice(THINGS): {"type": random.choice(("string", "integer"))} for _ in range(random.randint(1, 3))
    }
    parameters = {"type": "object", "properties": fields}
    return json.dumps(
        {"type": "function", "function": {"name": name, "description": sentence(random), "parameters": parameters}}
    )


def system_message(random: Random) -> str:
    """One system message; some describe tools."""
    parts = [fill(random.choice(SYSTEM_TEMPLATES), random) for _ in range(random.choice((1, 1, 1, 2, 3)))]
    if random.random() < 0.12:
        parts += [tool_description(random) for _ in range(random.randint(1, 2))]
    return random.choice((" ", "\n")).join(parts)
