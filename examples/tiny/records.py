"""Tasks that read and write records: JSON, and letters to a shop."""

import json
from collections.abc import Callable

from .copying import Rng, Turn, code, some_words
from .world import COLOURS, DAYS, FRUITS, ITEMS, PLACES, THINGS, any_name, any_town, listing

KEYS: dict[str, Callable[[Rng], object]] = {
    "name": any_name, "person": any_name, "sender": any_name, "friend": any_name,
    "town": any_town, "city": any_town, "from": any_town, "to": any_town,
    "colour": lambda r: r.choice(COLOURS), "day": lambda r: r.choice(DAYS),
    "place": lambda r: r.choice(PLACES), "thing": lambda r: r.choice(THINGS),
    "object": lambda r: r.choice(ITEMS), "fruit": lambda r: r.choice(FRUITS),
    "age": lambda r: r.randint(3, 99), "price": lambda r: r.randint(1, 99),
    "number": lambda r: r.randint(1, 999), "code": code,
    "ready": lambda r: r.random() < 0.5, "paid": lambda r: r.random() < 0.5,
}  # fmt: skip


def record(rng: Rng) -> dict[str, object]:
    return {k: KEYS[k](rng) for k in rng.sample(sorted(KEYS), rng.randint(1, 5))}


def plain(value: object) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def to_json(rng: Rng) -> Turn:
    row = record(rng)
    lines = rng.choice(["\n", ", "]).join(f"{k}: {plain(v)}" for k, v in row.items())
    ask = rng.choice(["Write this as JSON: {}", "Turn this into JSON.\n{}", "JSON please: {}"])
    return ask.format(lines), json.dumps(row)


def from_json(rng: Rng) -> Turn:
    row = record(rng)
    key = rng.choice(sorted(row))
    if rng.random() < 0.3:
        lines = ", ".join(f"{k}: {plain(v)}" for k, v in row.items())
        return f"Write this JSON as plain text: {json.dumps(row)}", lines
    return f"{json.dumps(row)}\nWhat is the {key}?", plain(row[key])


def json_list(rng: Rng) -> Turn:
    items = some_words(rng, 2, 5)
    return f"Write as a JSON list: {', '.join(items)}", json.dumps(items)


def json_pick(rng: Rng) -> Turn:
    """A sentence or two, and the keys wanted, in the order wanted."""
    name, town, thing = any_name(rng), any_town(rng), rng.choice(THINGS + ITEMS)
    day, place, colour = rng.choice(DAYS), rng.choice(PLACES), rng.choice(COLOURS)
    text = rng.choice(
        [
            f"{name} from {town} lost a {colour} {thing} in the {place} on {day}.",
            f"On {day} {name} went to {town}. In the {place} there was a {colour} {thing}.",
            f"I am {name} and I live in {town}. My {thing} is {colour}. "
            f"Meet me in the {place} on {day}.",
            f"The {colour} {thing} belongs to {name}. It came to the {place} in {town} on {day}.",
        ]
    )
    row = {"name": name, "town": town, "thing": thing, "day": day, "place": place, "colour": colour}
    keys = rng.sample(sorted(row), rng.randint(1, 4))
    ask = rng.choice(["Give {} as JSON: {}", "Find {} and answer in JSON. {}"])
    return ask.format(listing(keys), text), json.dumps({k: row[k] for k in keys})


TROUBLES: dict[str, list[str]] = {
    "repair": [
        "My {} is broken.",
        "The {} does not work any more.",
        "The {} stopped working on {day}.",
        "My {} makes a strange noise.",
        "There is a crack in my {}.",
    ],
    "refund": [
        "I want my money back for the {}.",
        "I paid twice for the {}.",
        "Please give me a refund for the {}.",
        "You charged too much for the {}.",
    ],
    "delivery": [
        "My {} has not come yet.",
        "Where is the {} that I ordered on {day}?",
        "The {} should have come on {day}.",
        "I am still waiting for my {}.",
    ],
    "question": [
        "How do I clean the {}?",
        "Can I use the {} in the rain?",
        "Does the {} come in {colour}?",
        "How heavy is the {}?",
    ],
    "praise": [
        "I love my new {}!",
        "The {} is wonderful.",
        "Thank you for the lovely {}.",
        "My {} works very well.",
    ],
}
OPENINGS = [
    "Hello, this is {name} from {town}.", "Hi, I am {name} and I live in {town}.",
    "Good morning, {name} here, from {town}.", "My name is {name}. I live in {town}.",
    "Dear shop, I am {name} of {town}.", "{name} in {town} here.",
]  # fmt: skip
CLOSINGS = [
    "",
    "",
    " Please help.",
    " Thank you.",
    " Please answer soon.",
    " It is urgent!",
    " Bye.",
]


def message(rng: Rng) -> dict[str, str]:
    """A letter to a shop, and the facts in it."""
    kind = rng.choice(sorted(TROUBLES))
    row = {"name": any_name(rng), "town": any_town(rng), "item": rng.choice(ITEMS), "kind": kind}
    body = rng.choice(TROUBLES[kind]).replace("{}", row["item"])
    body = body.format(day=rng.choice(DAYS), colour=rng.choice(COLOURS))
    text = f"{rng.choice(OPENINGS).format(**row)} {body}{rng.choice(CLOSINGS)}"
    return {**row, "text": text}


REPLIES = {
    "repair": "I am sorry that your {item} is broken, {name}. We will mend it.",
    "refund": "I am sorry, {name}. We will look at the price of your {item}.",
    "delivery": "I am sorry for the wait, {name}. Your {item} is on its way to {town}.",
    "question": "That is a good question, {name}. I will ask the maker of the {item}.",
    "praise": "Thank you, {name}! I am glad that you like the {item}.",
}


def reply(rng: Rng) -> Turn:
    row = message(rng)
    return row["text"], REPLIES[row["kind"]].format(**row)


def about_message(rng: Rng) -> Turn:
    row = message(rng)
    asks = {
        "name": ["Who wrote this?", "What is the name of the writer?"],
        "town": ["Which town is named here?", "Where does the writer live?"],
        "item": ["Which object is it about?", "What is the thing in this message?"],
        "kind": [
            f"Is this {listing(sorted(TROUBLES)).replace(' and ', ' or ')}?",
            "Sort this message.",
            "What kind of message is this?",
        ],
    }  # fmt: skip
    key = rng.choice(["name", "town", "item", "kind", "kind"])
    ask = rng.choice(asks[key])
    text = rng.choice([f"{ask}\n{row['text']}", f"{row['text']}\n{ask}"])
    return text, row[key]


def feeling(rng: Rng) -> Turn:
    good = ["I am so happy today.", "The {} was wonderful.", "What a lovely {}!", "I love the {}.",
            "The {} made me smile.", "We had a great day in the {}."]  # fmt: skip
    bad = ["I am very sad today.", "The {} was terrible.", "What an ugly {}!", "I hate the {}.",
           "The {} made me cry.", "We had an awful day in the {}."]  # fmt: skip
    word = rng.choice(["good", "bad"])
    text = rng.choice(good if word == "good" else bad).format(rng.choice(PLACES))
    return f"Is this good or bad? {text}", word
