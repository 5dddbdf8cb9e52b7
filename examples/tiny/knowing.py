"""Tasks answered from memory: the facts of the world, arithmetic and lists."""

from .copying import POOL, Rng, Turn
from .world import (
    ANIMALS,
    DAYS,
    GROUPS,
    MATERIALS,
    MONTHS,
    OPPOSITES,
    PEOPLE,
    PLURALS,
    TOWNS,
    any_name,
    article,
    listing,
    number_word,
)

Fact = tuple[list[str], str]


def person_facts(rng: Rng) -> Fact:
    p = rng.choice(PEOPLE)
    return rng.choice(
        [
            ([f"What is the job of {p.name}?", f"What does {p.name} do for a living?"],
             f"{p.name} is {article(p.job)}."),
            ([f"Where does {p.name} live?", f"In which town does {p.name} live?"],
             f"{p.name} lives in {p.town}."),
            ([f"What pet does {p.name} have?", f"Which animal lives with {p.name}?"],
             f"{p.name} has {article(p.pet)}."),
            ([f"What does {p.name} like to eat?", f"What is the favourite food of {p.name}?"],
             f"{p.name} likes {p.food}."),
            ([f"Which tool does {p.name} use?", f"What tool does {p.name} work with?"],
             f"{p.name} uses {article(p.tool)}."),
        ]
    )  # fmt: skip


def town_facts(rng: Rng) -> Fact:
    t = rng.choice(TOWNS)
    return rng.choice(
        [
            ([f"Which river flows through {t.name}?", f"What is the river of {t.name}?"],
             f"The {t.river} flows through {t.name}."),
            ([f"What is {t.name} known for?", f"What does {t.name} make?"],
             f"{t.name} is known for {t.goods}."),
            ([f"What colour is the flag of {t.name}?", f"Which colour has the flag of {t.name}?"],
             f"The flag of {t.name} is {t.flag}."),
            ([f"Who is the mayor of {t.name}?", f"Who leads the town of {t.name}?"],
             f"The mayor of {t.name} is {t.mayor}."),
        ]
    )  # fmt: skip


def animal_facts(rng: Rng) -> Fact:
    a = rng.choice(ANIMALS)
    one = article(a.name)
    return rng.choice(
        [
            ([f"Where does {one} live?", f"What is the home of {one}?"],
             f"{one.capitalize()} lives in the {a.home}."),
            ([f"What does {one} eat?", f"What is the food of {one}?"],
             f"{one.capitalize()} eats {a.food}."),
            ([f"What sound does {one} make?", f"What does {one} say?"],
             f"{one.capitalize()} says {a.sound}."),
            ([f"What is a young {a.name} called?", f"What is the name for a baby {a.name}?"],
             f"A young {a.name} is called {article(a.young)}."),
        ]
    )  # fmt: skip


def word_facts(rng: Rng) -> Fact:
    word, other = rng.choice(sorted(OPPOSITES.items()))
    if rng.random() < 0.5:
        word, other = other, word
    one, many = rng.choice(sorted(PLURALS.items()))
    thing, stuff = rng.choice(sorted(MATERIALS.items()))
    i, j = rng.randrange(7), rng.randrange(12)
    group = rng.choice(sorted(GROUPS))
    member = rng.choice(GROUPS[group])
    n = rng.randrange(100)
    return rng.choice(
        [
            ([f"What is the opposite of {word}?"], f"The opposite of {word} is {other}."),
            ([f"What is the plural of {one}?"], f"The plural of {one} is {many}."),
            (
                [f"What is {article(thing)} made of?"],
                f"{article(thing).capitalize()} is made of {stuff}.",
            ),
            ([f"Which day comes after {DAYS[i]}?"], f"After {DAYS[i]} comes {DAYS[(i + 1) % 7]}."),
            (
                [f"Which month comes after {MONTHS[j]}?"],
                f"After {MONTHS[j]} comes {MONTHS[(j + 1) % 12]}.",
            ),
            (
                [f"What kind of word is {member}?", f"What is {member}?"],
                f"{member.capitalize()} is {article(group)}.",
            ),
            ([f"Write {n} in words."], number_word(n)),
            ([f"Write {number_word(n)} in digits."], str(n)),
        ]
    )


def fact(rng: Rng) -> Turn:
    source = rng.choice([person_facts, person_facts, town_facts, animal_facts, word_facts])
    questions, answer = source(rng)
    return rng.choice(questions), answer


def about(rng: Rng) -> tuple[str, str]:
    """A person, town or animal, and all its sentences in any order."""
    kind = rng.choice(["person", "town", "animal"])
    if kind == "person":
        p = rng.choice(PEOPLE)
        subject = p.name
        lines = [f"{p.name} is {article(p.job)}.", f"{p.name} lives in {p.town}.",
                 f"{p.name} has {article(p.pet)}.", f"{p.name} likes {p.food}.",
                 f"{p.name} uses {article(p.tool)}."]  # fmt: skip
    elif kind == "town":
        t = rng.choice(TOWNS)
        subject = t.name
        lines = [
            f"The {t.river} flows through {t.name}.",
            f"{t.name} is known for {t.goods}.",
            f"The flag of {t.name} is {t.flag}.",
            f"The mayor of {t.name} is {t.mayor}.",
        ]
    else:
        a = rng.choice(ANIMALS)
        subject = article(a.name)
        one = subject.capitalize()
        lines = [f"{one} lives in the {a.home}.", f"{one} eats {a.food}.", f"{one} says {a.sound}.",
                 f"A young {a.name} is called {article(a.young)}."]  # fmt: skip
    rng.shuffle(lines)
    return subject, " ".join(lines)


def portrait(rng: Rng) -> str:
    return about(rng)[1]


def tell(rng: Rng) -> Turn:
    subject, text = about(rng)
    return rng.choice([f"Tell me about {subject}.", f"What do you know about {subject}?"]), text


def held_out_sum(a: int, b: int) -> bool:
    """One pair of numbers in ten, which no plain sum of the training data has."""
    return (a * 37 + b * 11) % 10 == 0


def arithmetic(rng: Rng, held_out: bool = False) -> Turn:
    kind = rng.choice(["add", "add", "sub", "sub"] if held_out else
                      ["add", "add", "add", "sub", "sub", "times", "chain"])  # fmt: skip
    if kind == "times":
        a, b = rng.randint(0, 12), rng.randint(0, 12)
        return rng.choice([f"What is {a} times {b}?", f"{a} * {b} ="]), str(a * b)
    while True:
        top = rng.choice((10, 30, 99, 99))
        a, b = rng.randint(0, top), rng.randint(0, top)
        if kind == "sub" and a < b:
            a, b = b, a
        if held_out_sum(a, b) == held_out:
            break
    if kind == "chain":
        c = rng.randint(0, 9)
        return f"{a} + {b} + {c} =", f"{a} + {b} = {a + b}, {a + b} + {c} = {a + b + c}"
    if kind == "add":
        return rng.choice([f"What is {a} plus {b}?", f"{a} + {b} =", f"Add {a} and {b}."]), str(
            a + b
        )
    asks = [f"What is {a} minus {b}?", f"{a} - {b} =", f"Take {b} away from {a}."]
    return rng.choice(asks), str(a - b)


def word_problem(rng: Rng) -> Turn:
    name, thing = any_name(rng), rng.choice(["apples", "coins", "books", "eggs", "shells", "pens"])
    a, b = rng.randint(1, 20), rng.randint(1, 20)
    if rng.random() < 0.5 or a == b:
        text = f"{name} has {a} {thing} and finds {b} more. How many {thing} does {name} have?"
        return text, f"{name} has {a + b} {thing}."
    a, b = max(a, b), min(a, b)
    text = f"{name} has {a} {thing} and gives {b} away. How many {thing} are left?"
    return text, f"{a - b} {thing} are left."


def compare(rng: Rng) -> Turn:
    a, b = rng.sample(range(100), 2)
    if rng.random() < 0.5:
        return f"Which is bigger, {a} or {b}?", str(max(a, b))
    return f"Which is smaller, {a} or {b}?", str(min(a, b))


def sorting(rng: Rng) -> Turn:
    if rng.random() < 0.5:
        numbers = rng.sample(range(1, 60), rng.randint(3, 5))
        text = ", ".join(map(str, numbers))
        return f"Sort these numbers: {text}", ", ".join(map(str, sorted(numbers)))
    items = rng.sample(POOL, rng.randint(2, 4))
    return f"Sort these words by letter: {', '.join(items)}", ", ".join(sorted(items))


def naming(rng: Rng) -> Turn:
    group = rng.choice(sorted(GROUPS))
    n = rng.randint(2, 5)
    start = rng.randrange(len(GROUPS[group]))
    picked = [GROUPS[group][(start + k) % len(GROUPS[group])] for k in range(n)]
    noun = {"day": "days of the week"}.get(group, group + "s")
    return f"Name {number_word(n)} {noun}.", listing(picked) + "."


def odd_one_out(rng: Rng) -> Turn:
    group, other = rng.sample(["animal", "colour", "fruit", "tool", "job", "day", "place"], 2)
    items = [*rng.sample(GROUPS[group], 3), rng.choice(GROUPS[other])]
    rng.shuffle(items)
    odd = next(i for i in items if i not in GROUPS[group])
    if rng.random() < 0.5:
        return f"Which one does not belong? {', '.join(items)}", odd
    return f"Which of these is {article(other)}? {', '.join(items)}", odd


def change_list(rng: Rng) -> Turn:
    items = rng.sample(POOL, rng.randint(3, 6))
    word = rng.choice(items)
    new = rng.choice([w for w in POOL if w not in items])
    text = ", ".join(items)
    return rng.choice(
        [
            (f"Remove {word} from this list: {text}", ", ".join(i for i in items if i != word)),
            (f"Add {new} to this list: {text}", f"{text}, {new}"),
            (f"Write one item a line: {text}", "\n".join(f"- {i}" for i in items)),
            (f"Number these: {text}", "\n".join(f"{k}. {i}" for k, i in enumerate(items, 1))),
        ]
    )
