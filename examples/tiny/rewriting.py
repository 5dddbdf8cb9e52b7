"""Tasks that say a given sentence in another way."""

from .copying import POOL, Rng, Turn, sentence, some_words
from .world import (
    ADJECTIVES,
    COLOURS,
    OPPOSITES,
    PLACES,
    THINGS,
    VERBS,
    any_name,
    article,
)


def shouted(rng: Rng) -> Turn:
    text = " ".join(rng.sample(POOL, rng.randint(1, 4)))
    return rng.choice([f"Write in capital letters: {text}", f"Uppercase: {text}"]), text.upper()


def lowered(rng: Rng) -> Turn:
    text = " ".join(rng.sample(POOL, rng.randint(1, 4)))
    shown = rng.choice([text.upper(), text.title()])
    return rng.choice([f"Write in small letters: {shown}", f"Lowercase: {shown}"]), text


def titled(rng: Rng) -> Turn:
    text = " ".join(rng.sample(POOL, rng.randint(1, 4)))
    return f"Capitalise each word: {text}", text.title()


def tense(rng: Rng) -> Turn:
    base, past, going = rng.choice(VERBS).split(":")
    who = rng.choice(["I", "We", "They", "You"])
    rest = rng.choice(
        [f"the {rng.choice(THINGS)}", f"in the {rng.choice(PLACES)}", f"with {any_name(rng)}"]
    )
    today, before, later = (
        f"{who} {base} {rest}.",
        f"{who} {past} {rest}.",
        f"{who} will {base} {rest}.",
    )
    are = "am" if who == "I" else "are"
    return rng.choice(
        [
            (f"Put in the past: {today}", before),
            (f"Make it past tense: {today}", before),
            (f"Put in the future: {today}", later),
            (f"Put in the present: {before}", today),
            (f"Say that it is happening now: {today}", f"{who} {are} {going} {rest}."),
            (f"Say the opposite: {today}", f"{who} do not {base} {rest}."),
            (
                f"Make a question: {today}",
                f"Do {who if who == 'I' else who.lower()} {base} {rest}?",
            ),
        ]
    )


def replace(rng: Rng) -> Turn:
    text = sentence(rng)
    candidates = [w for w in text.strip(".").replace(",", "").split() if len(w) > 3]
    old = rng.choice(candidates)
    new = any_name(rng) if old[0].isupper() else rng.choice(POOL)
    return f"Replace {old} with {new}: {text}", text.replace(old, new)


def polite(rng: Rng) -> Turn:
    base, thing = rng.choice(VERBS).split(":")[0], rng.choice(THINGS)
    return rng.choice(
        [
            (
                f"Make it polite: {base.capitalize()} the {thing}!",
                f"Could you please {base} the {thing}?",
            ),
            (
                f"Make it shorter: Could you please {base} the {thing}?",
                f"{base.capitalize()} the {thing}.",
            ),
            (
                f"Make it an order: Could you please {base} the {thing}?",
                f"{base.capitalize()} the {thing}!",
            ),
        ]
    )


def opposite_sentence(rng: Rng) -> Turn:
    word, other = rng.choice(sorted(OPPOSITES.items())[:16])
    thing = rng.choice(THINGS)
    return f"Turn the meaning around: The {thing} is {word}.", f"The {thing} is {other}."


def describe(rng: Rng) -> Turn:
    thing, adjective, colour = rng.choice(THINGS), rng.choice(ADJECTIVES), rng.choice(COLOURS)
    return rng.choice(
        [
            (
                f"Make a sentence with {thing}, {adjective} and {colour}.",
                f"The {adjective} {thing} is {colour}.",
            ),
            (
                f"Join these: The {thing} is {adjective}. The {thing} is {colour}.",
                f"The {thing} is {adjective} and {colour}.",
            ),
            (
                f"Add the word {adjective}: I see {article(thing)}.",
                f"I see {article(adjective)} {thing}.",
            ),
        ]
    )


def framed(rng: Rng) -> Turn:
    text = " ".join(some_words(rng, 1, 4))
    return rng.choice(
        [
            (f"Put in quotes: {text}", f'"{text}"'),
            (f"Put in brackets: {text}", f"({text})"),
            (f"Put a star before and after: {text}", f"* {text} *"),
            (f"Join with dashes: {text}", "-".join(text.split())),
            (f"Separate with commas: {text}", ", ".join(text.split())),
        ]
    )
