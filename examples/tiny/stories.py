"""Short stories, made of interchangeable sentences around one hero, one friend and one thing."""

from .copying import Rng, Turn
from .world import ADJECTIVES, ANIMALS, COLOURS, PLACES, THINGS, TOWN_NAMES, any_name, article

START = [
    "Once there was {a_adj} {animal} named {hero} who lived near {town}.",
    "In {town} there lived {a_adj} {animal} called {hero}.",
    "Long ago, in the {place}, lived {a_adj} {animal}. Its name was {hero}.",
    "{hero} was {a_adj} {animal} from {town}.",
]
WISH = [
    "More than anything {hero} wanted to find a {colour} {thing}.",
    "Every day {hero} looked for a {colour} {thing}.",
    "One morning {hero} lost a {colour} {thing}.",
    "{hero} had a {colour} {thing} and kept it in the {place}.",
]
TROUBLE = [
    "But a storm came and the {place} was dark.",
    "One night the {colour} {thing} was gone.",
    "But the way to the {place} was long and cold.",
    "Then the rain fell for three days and {hero} was afraid.",
    "But nobody in {town} knew where to look.",
]
MEETING = [
    "On the road {hero} met {friend}, an old {job}.",
    "There {hero} saw {friend}, who was looking for food.",
    "A stranger named {friend} came to the door.",
    "At the {place} sat {friend}, all alone.",
]
TALK = [
    '"Do not be sad," said {friend}. "I will help you."',
    '"Come with me," said {friend}. "I know the way."',
    '"What are you looking for?" asked {friend}. "A {colour} {thing}," said {hero}.',
    '"Are you hungry?" asked {hero}, and they shared a warm loaf of bread.',
]
TURN = [
    "Together they walked to the {place} and looked under every stone.",
    "They climbed the hill, crossed the bridge and came to the {place}.",
    "{friend} lit a lamp, and soon they saw the {colour} {thing} in the grass.",
    "They worked all night, and in the morning the sun came out.",
]
END = [
    "At last {hero} found the {colour} {thing} and danced with joy.",
    "In the end {hero} gave the {colour} {thing} to {friend}.",
    "From that day {hero} and {friend} were friends.",
    "{hero} came home to {town}, tired and happy.",
    "And {hero} was never alone again.",
]
MORAL = [
    "A friend is worth more than gold.",
    "Kindness always comes back.",
    "Those who look will find.",
]


def story_for(rng: Rng, hero: str, animal: str, thing: str) -> str:
    row = {
        "hero": hero, "animal": animal, "thing": thing, "a_adj": article(rng.choice(ADJECTIVES)),
        "friend": any_name(rng), "town": rng.choice(TOWN_NAMES), "place": rng.choice(PLACES),
        "colour": rng.choice([c for c in COLOURS if c[0] not in "aeiou"]),
        "job": rng.choice(["baker", "miller", "sailor", "shepherd", "weaver"]),
    }  # fmt: skip
    parts = [START, WISH, TROUBLE, MEETING, TALK, TURN, END]
    if rng.random() < 0.35:
        parts.remove(rng.choice([WISH, TROUBLE, TALK, TURN]))
    text = " ".join(rng.choice(part).format(**row) for part in parts)
    return text + (f" {rng.choice(MORAL)}" if rng.random() < 0.3 else "")


def story(rng: Rng) -> str:
    return story_for(rng, any_name(rng), rng.choice(ANIMALS).name, rng.choice(THINGS))


def tell_story(rng: Rng) -> Turn:
    hero, animal, thing = any_name(rng), rng.choice(ANIMALS).name, rng.choice(THINGS)
    text = story_for(rng, hero, animal, thing)
    if rng.random() < 0.3:
        return rng.choice(["Tell me a story.", "Tell me a short story please."]), text
    return f"Tell me a story about {article(animal)} named {hero} and {article(thing)}.", text


def about_story(rng: Rng) -> Turn:
    hero, animal, thing = any_name(rng), rng.choice(ANIMALS).name, rng.choice(THINGS)
    text = story_for(rng, hero, animal, thing)
    return rng.choice(
        [
            (f"{text}\nWho is the story about?", hero),
            (f"{text}\nWhat animal is {hero}?", f"{hero} is {article(animal)}."),
        ]
    )
