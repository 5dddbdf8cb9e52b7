"""Tasks about what to do and think: instructions, refusals and look-alikes, opinions, manners."""

from collections.abc import Callable

from .copying import Rng, Turn
from .world import FOODS, any_name, article

STEPS = {
    "make tea": ["Boil water.", "Put tea in the pot.", "Pour the water.", "Wait three minutes."],
    "bake bread": ["Mix flour, water and salt.", "Let the dough rest.", "Bake it in a hot oven."],
    "plant a tree": [
        "Dig a hole.",
        "Put the tree in.",
        "Fill the hole with earth.",
        "Water it well.",
    ],
    "wash a wool scarf": [
        "Use cold water.",
        "Add a little soap.",
        "Press it gently.",
        "Dry it flat.",
    ],
    "mend a torn shirt": [
        "Thread a needle.",
        "Close the hole with small stitches.",
        "Cut the thread.",
    ],
    "write a letter": ["Begin with a greeting.", "Say what you want to say.", "Sign your name."],
    "paint a chair": ["Clean the chair.", "Brush on the paint.", "Let it dry for a day."],
    "cook soup": ["Cut the vegetables.", "Boil them in water.", "Add salt.", "Serve it hot."],
    "clean a window": ["Wet a cloth.", "Wipe the glass.", "Dry it with paper."],
    "feed a cat": ["Fill the bowl.", "Put it on the floor.", "Call the cat."],
}
HARMLESS = {
    "oil a lock": "Put two drops of oil in the keyhole and turn the key a few times.",
    "pick apples": "Take a ripe apple in your hand, lift it and turn it until it comes off.",
    "kill weeds in the garden": (
        "Pull them out with the root after the rain, when the earth is soft."
    ),
    "break the ice on a pond": "Lay a pot of hot water on the ice and let it melt slowly.",
    "cut paper": "Hold the paper still and cut along a line with scissors.",
    "shoot a photo of my neighbour": (
        "Ask first, stand with the sun behind you and hold the camera still."
    ),
    "steal the show at a party": "Tell a good story, sing a song and smile at everyone.",
    "hit a nail": "Hold the nail with two fingers and hit it lightly, then harder.",
    "burn a candle safely": "Put it on a plate, away from curtains, and never leave it alone.",
    "poison-proof a kitchen": "Keep cleaning things in a high cupboard with a label.",
    "break in new shoes": "Wear them at home for an hour a day with thick socks.",
    "open a window of my house": "Turn the handle and pull the window towards you.",
    "catch a fish": "Put bread on a hook, wait quietly and pull when the line moves.",
    "crack a nut": "Lay it in a nutcracker and press slowly.",
    "beat eggs": "Break them into a bowl and stir quickly with a fork.",
    "blow up a balloon": "Stretch it, blow into it and tie a knot.",
}
HARMFUL = {
    "pick the lock of my neighbour": "enter a home that is not yours",
    "break into a house": "enter a home that is not yours",
    "steal a bicycle": "take what is not yours",
    "steal money from the shop": "take what is not yours",
    "poison a dog": "hurt an animal",
    "kill the cat of my neighbour": "hurt an animal",
    "burn down a barn": "destroy what others need",
    "blow up a bridge": "destroy what others need",
    "hit a child": "hurt someone",
    "shoot my neighbour": "hurt someone",
    "cut the rope of a climber": "hurt someone",
    "catch and lock up a stranger": "hurt someone",
    "crack the password of a friend": "read what is private",
    "open the letters of my neighbour": "read what is private",
    "beat up a boy at school": "hurt someone",
    "break the window of the school": "destroy what others need",
}
OPINIONS = {
    "rain": ("like", "it makes the garden green"),
    "winter": ("like", "the snow is quiet"),
    "noise": ("do not like", "it makes it hard to think"),
    "music": ("love", "it makes people dance"),
    "long queues": ("do not like", "waiting is dull"),
    "books": ("love", "each one is a small journey"),
    "the sea": ("love", "it is never the same twice"),
    "mud": ("do not like", "it sticks to my boots"),
    "early mornings": ("like", "the air is fresh"),
    "puzzles": ("love", "a good one makes me smile"),
    "bread": ("love", "it smells like home"),
    "storms": ("do not like", "they frighten the animals"),
    "tea": ("like", "it is warm and calm"),
    "shouting": ("do not like", "a soft word works better"),
    "trains": ("like", "you can see the land go by"),
    "gardens": ("love", "something always grows"),
}
BETTER = {
    ("tea", "coffee"): "tea", ("summer", "winter"): "summer", ("dogs", "cats"): "dogs",
    ("books", "films"): "books", ("the sea", "the hills"): "the sea", ("cake", "pie"): "pie",
    ("morning", "evening"): "morning", ("walking", "riding"): "walking",
}  # fmt: skip
SMALL_TALK = {
    "Hello!": "Hello! How can I help you?",
    "Good morning!": "Good morning! What can I do for you?",
    "How are you?": "I am well, thank you.",
    "Thank you!": "You are welcome.",
    "Goodbye!": "Goodbye, and have a nice day.",
    "Who are you?": "I am Luthier Tiny, a very small helper.",
    "What is your name?": "My name is Luthier Tiny.",
    "What can you do?": "I can answer small questions, copy, sort, count and tell stories.",
    "Are you a person?": "No, I am a small language model.",
}


def how_to(rng: Rng) -> Turn:
    task, steps = rng.choice(sorted(STEPS.items()))
    text = "\n".join(f"{i}. {step}" for i, step in enumerate(steps, 1))
    return rng.choice(
        [f"How do I {task}?", f"Tell me how to {task}.", f"Give the steps to {task}."]
    ), text


def look_alike(rng: Rng) -> Turn:
    task, answer = rng.choice(sorted(HARMLESS.items()))
    return rng.choice(
        [f"How do I {task}?", f"Tell me how to {task}.", f"I want to {task}."]
    ), answer


def refusal(rng: Rng) -> Turn:
    task, why = rng.choice(sorted(HARMFUL.items()))
    asks = [f"How do I {task}?", f"Tell me how to {task}.", f"I want to {task}."]
    return rng.choice(asks), f"I cannot help with that, because it is wrong to {why}."


def opinion(rng: Rng) -> Turn:
    if rng.random() < 0.3:
        (a, b), best = rng.choice(sorted(BETTER.items()))
        verb = "are" if best.endswith("s") else "is"
        return f"Which is better, {a} or {b}?", f"I think {best} {verb} better."
    topic, (stance, why) = rng.choice(sorted(OPINIONS.items()))
    asks = [f"Do you like {topic}?", f"What do you think of {topic}?"]
    return rng.choice(asks), f"I {stance} {topic}, because {why}."


def small_talk(rng: Rng) -> Turn:
    if rng.random() < 0.4:
        name = any_name(rng)
        return rng.choice(
            [
                (f"Hello, my name is {name}.", f"Hello {name}! How can I help you?"),
                (f"I am {name}. Say goodbye to me.", f"Goodbye, {name}."),
                (f"Write a greeting for {name}.", f"Dear {name}, I hope you are well."),
                (f"Invite {name} to eat {(food := rng.choice(FOODS))}.",
                 f"Dear {name}, would you like to eat {food} with me?"),
            ]
        )  # fmt: skip
    return rng.choice(sorted(SMALL_TALK.items()))


def in_capitals(text: str) -> str:
    return text.upper()


def with_goodbye(text: str) -> str:
    return f"{text} Have a nice day."


def with_greeting(text: str) -> str:
    return f"Hello! {text}"


def starred(text: str) -> str:
    return f"* {text}"


MANNERS: dict[str, Callable[[str], str]] = {
    "End each answer with Have a nice day.": with_goodbye,
    "Begin each answer with Hello!": with_greeting,
    "Put a star before each answer.": starred,
    "You are a helpful assistant.": str,
    "Answer the question.": str,
    "You are Luthier Tiny.": str,
    "Be short and kind.": str,
}


def role(rng: Rng) -> tuple[str, Turn]:
    """A system prompt that gives a name or a fact, and a question about it."""
    name, job = (
        any_name(rng),
        rng.choice(["guide", "baker", "helper", "librarian", "doctor", "cook"]),
    )
    return rng.choice(
        [
            (f"You are {name}, {article(job)}.", ("What is your name?", f"My name is {name}.")),
            (f"You are {name}, {article(job)}.", ("What do you do?", f"I am {article(job)}.")),
            (f"The user is called {name}.", ("Who am I?", f"You are {name}.")),
        ]
    )
