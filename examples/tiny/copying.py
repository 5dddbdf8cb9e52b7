"""Tasks whose answer stands in the prompt: copying, picking and look-up."""

import random
import string
from collections.abc import Callable

from .world import (
    COLOURS,
    DAYS,
    FRUITS,
    ITEMS,
    NAMES,
    PLACES,
    THINGS,
    TOWNS_ALL,
    VERBS,
    any_name,
    any_town,
    article,
    invented,
    listing,
)

Rng = random.Random
Turn = tuple[str, str]
Maker = Callable[[Rng], str]
POOL = sorted({*COLOURS, *ITEMS, *PLACES, *THINGS, *FRUITS, *(v.split(":")[0] for v in VERBS)})
EVERYTHING = sorted({*POOL, *NAMES, *TOWNS_ALL})
ORDINALS = ["first", "second", "third", "fourth", "fifth"]


def some_words(rng: Rng, low: int = 3, high: int = 7) -> list[str]:
    n = rng.randint(low, high)
    if rng.random() < 0.25:
        return [invented(rng) for _ in range(n)]
    return rng.sample(POOL, n)


def code(rng: Rng) -> str:
    letters = "".join(rng.choice(string.ascii_uppercase) for _ in range(rng.randint(1, 3)))
    digits = "".join(rng.choice(string.digits) for _ in range(rng.randint(2, 4)))
    return rng.choice([f"{letters}-{digits}", digits, letters + digits])


def sentence(rng: Rng) -> str:
    a, b = any_name(rng), any_name(rng)
    verb = rng.choice(VERBS).split(":")[1]
    thing, place, day = rng.choice(THINGS + ITEMS), rng.choice(PLACES), rng.choice(DAYS)
    return rng.choice(
        [
            f"{a} {verb} the {thing} in the {place}.",
            f"On {day} {a} met {b} at the {place}.",
            f"{a} gave the {rng.choice(COLOURS)} {thing} to {b}.",
            f"The {thing} is {rng.choice(COLOURS)} and stands in the {place}.",
            f"{a} comes from {any_town(rng)} and likes the {place}.",
            f"We need {rng.randint(2, 99)} jars of {rng.choice(FRUITS)} jam by {day}.",
            f"My code is {code(rng)}, said {a}.",
        ]
    )


def repeat(rng: Rng) -> Turn:
    makers: list[Maker] = [lambda r: " ".join(some_words(r)), sentence, code]
    text = rng.choice(makers)(rng)
    ask = rng.choice(["Repeat: {}", "Repeat after me: {}", "Copy this: {}", "Say this again: {}",
                      "Write exactly: {}"])  # fmt: skip
    return ask.format(text), text


def repeat_times(rng: Rng) -> Turn:
    word, n = rng.choice([rng.choice(POOL), any_name(rng)]), rng.randint(2, 5)
    return f"Say {word} {['twice', 'three times', 'four times', 'five times'][n - 2]}.", " ".join(
        [word] * n
    )


def reverse(rng: Rng) -> Turn:
    items = some_words(rng, 2, 6)
    ask = rng.choice(["Reverse the order: {}", "Write these words backwards, last first: {}"])
    return ask.format(" ".join(items)), " ".join(reversed(items))


def nth(rng: Rng) -> Turn:
    items = some_words(rng, 3, 6)
    if rng.random() < 0.3:
        return f"What is the last word? {' '.join(items)}", items[-1]
    n = rng.randrange(min(len(items), 5))
    sep = rng.choice([" ", ", "])
    return f"What is the {ORDINALS[n]} word? {sep.join(items)}", items[n]


def after(rng: Rng) -> Turn:
    items = some_words(rng, 4, 7)
    n = rng.randrange(len(items) - 1)
    if rng.random() < 0.5:
        return f"Which word comes after {items[n]}? {' '.join(items)}", items[n + 1]
    return f"Which word comes before {items[n + 1]}? {' '.join(items)}", items[n]


def where(rng: Rng) -> Turn:
    n = rng.randint(2, 5)
    people = list({any_name(rng) for _ in range(n)})
    people.sort()
    rng.shuffle(people)
    places = rng.sample(PLACES, len(people))
    text = " ".join(f"{p} is in the {q}." for p, q in zip(people, places, strict=True))
    i = rng.randrange(len(people))
    if rng.random() < 0.6:
        answer = rng.choice([f"{people[i]} is in the {places[i]}."])
        return f"{text} Where is {people[i]}?", answer
    return f"{text} Who is in the {places[i]}?", f"{people[i]} is in the {places[i]}."


def owner(rng: Rng) -> Turn:
    people = sorted({any_name(rng) for _ in range(rng.randint(2, 4))})
    rng.shuffle(people)
    things = rng.sample(THINGS + ITEMS, len(people))
    colours = [rng.choice(COLOURS) for _ in people]
    text = " ".join(
        f"{p} has the {c} {t}." for p, c, t in zip(people, colours, things, strict=True)
    )
    i = rng.randrange(len(people))
    return rng.choice(
        [
            (f"{text} Who has the {things[i]}?", people[i]),
            (
                f"{text} What does {people[i]} have?",
                f"{people[i]} has the {colours[i]} {things[i]}.",
            ),
            (f"{text} What colour is the {things[i]}?", f"The {things[i]} is {colours[i]}."),
        ]
    )


def key_value(rng: Rng) -> Turn:
    n = rng.randint(2, 7)
    keys = sorted({any_name(rng) if rng.random() < 0.5 else rng.choice(POOL) for _ in range(n)})
    rng.shuffle(keys)
    makers: list[Maker] = [
        lambda r: str(r.randint(1, 99)),
        lambda r: r.choice(POOL),
        code,
        any_town,
    ]
    make = rng.choice(makers)
    values = [make(rng) for _ in keys]
    form, sep = rng.choice(
        [("{}: {}", "\n"), ("{} = {}", ", "), ("{} -> {}", "; "), ("{} | {}", "\n")]
    )
    pairs = [form.format(k, v) for k, v in zip(keys, values, strict=True)]
    table, i = sep.join(pairs), rng.randrange(len(keys))
    ask, answer = rng.choice(
        [
            ("What is the value of {}?", values[i]),
            ("Look up {}.", pairs[i]),
            ("What stands next to {}?", values[i]),
        ]
    )
    question = ask.format(keys[i])
    return rng.choice([f"{table}\n{question}", f"{question}\n{table}"]), answer


SEPARATORS = [", ", ". ", "; "]
PAIRS = ["{} {}", "{}: {}", "{} = {}", "{} -> {}", "{} is {}", "{} has the {}", "{} is in the {}"]


def all_keys(rng: Rng, forms: int = len(PAIRS)) -> Turn:
    """A table, and all or some of its keys in another order: nearly every token is looked up.
    The first `forms` of PAIRS have key and value closest together."""
    n = rng.randint(2, 8)
    keys = rng.sample(EVERYTHING, n)
    form, sep = rng.choice(PAIRS[:forms]), ", " if forms < len(PAIRS) else rng.choice(SEPARATORS)
    pairs = [form.format(key, rng.choice(EVERYTHING)) for key in keys]
    asked = rng.sample(range(n), n)
    if rng.random() < 0.7:
        again = " ".join(keys[i] for i in asked)
        return f"{sep.join(pairs)}. {again}", sep.join(pairs[i] for i in asked)
    some = asked[: rng.randint(1, n)]
    question = f"Look up {listing([keys[i] for i in some])}."
    return f"{sep.join(pairs)}\n{question}", sep.join(pairs[i] for i in some)


def follow_ups(rng: Rng) -> list[Turn]:
    """A table or a few people, and one question after another about them."""
    n = rng.randint(2, 6)
    if rng.random() < 0.4:
        people, places = [any_name(rng) for _ in range(n)], rng.sample(PLACES, n)
        answers = [f"{p} is in the {q}." for p, q in zip(people, places, strict=True)]
        questions = [
            rng.choice([f"Where is {p}?", f"Who is in the {q}?"])
            for p, q in zip(people, places, strict=True)
        ]
        text = " ".join(answers) + " "
    else:
        keys = rng.sample(EVERYTHING, n)
        answers = [rng.choice(EVERYTHING) for _ in keys]
        form, sep = rng.choice(PAIRS[1:4]), rng.choice([", ", "; "])
        text = sep.join(map(form.format, keys, answers)) + "\n"
        ask = rng.choice(["{}?", "And {}?", "Look up {}.", "What is the value of {}?"])
        if ask == "Look up {}.":
            answers = list(map(form.format, keys, answers))
        questions = [ask.format(key) for key in keys]
    asked = rng.sample(range(n), n)
    turns = [(questions[i], answers[i]) for i in asked]
    return [(text + turns[0][0], turns[0][1]), *turns[1:]]


def all_people(rng: Rng) -> Turn:
    n = rng.randint(2, 6)
    people, places = rng.sample(NAMES, n), rng.sample(PLACES, n)
    lines = [f"{p} is in the {q}." for p, q in zip(people, places, strict=True)]
    asked = rng.sample(range(n), rng.randint(2, n))
    names = listing([people[i] for i in asked])
    return f"{' '.join(lines)} Where are {names}?", " ".join(lines[i] for i in asked)


def count(rng: Rng) -> Turn:
    items = some_words(rng, 2, 9)
    return f"How many words are these? {', '.join(items)}", str(len(items))


def contains(rng: Rng) -> Turn:
    items = some_words(rng, 3, 7)
    word = rng.choice(items if rng.random() < 0.5 else POOL)
    answer = "Yes" if word in items else "No"
    return f"Is {word} in this list? {', '.join(items)}", f"{answer}."


def induction(rng: Rng) -> str:
    """Raw text that says the same words twice: what copying is learnt from first."""
    items = some_words(rng, 4, 14) if rng.random() < 0.7 else [code(rng) for _ in range(5)]
    sep = rng.choice([" ", ", ", "\n"])
    return sep.join(items) + "\n" + sep.join(items)


def chain(rng: Rng) -> str:
    """Raw text of a few words, each of which has its own successor, mostly."""
    items = rng.sample(EVERYTHING, rng.randint(4, 12))
    after_it = dict(zip(items, rng.sample(items, len(items)), strict=True))
    said = [rng.choice(items)]
    for _ in range(rng.randint(30, 90)):
        said.append(after_it[said[-1]] if rng.random() < 0.85 else rng.choice(items))
    return " ".join(said)


def note(rng: Rng) -> str:
    """Raw text with a fact that returns after other sentences."""
    name, town, secret = any_name(rng), rng.choice(TOWNS_ALL), code(rng)
    middle = " ".join(sentence(rng) for _ in range(rng.randint(1, 8)))
    thing = rng.choice(THINGS)
    return rng.choice(
        [
            f"The code of {name} is {secret}. {middle} So the code of {name} is {secret}.",
            f"{name} lives in {town}. {middle} Remember that {name} lives in {town}.",
            f"{name} hid {article(thing)} in {town}. {middle} "
            f"Later {name} went to {town} and found the {thing}.",
        ]
    )
