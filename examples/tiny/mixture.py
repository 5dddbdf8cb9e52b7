"""Mixes the tasks into documents: chats of one or more turns, and raw text."""

from collections.abc import Callable

from . import advice, copying, knowing, records, rewriting, stories
from .copying import Rng, Turn

Task = Callable[[Rng], Turn]
Message = dict[str, str]
Document = list[Message] | str

COPYING: dict[Task, float] = {
    copying.repeat: 5,
    copying.repeat_times: 1,
    copying.reverse: 3,
    copying.nth: 3,
    copying.after: 3,
    copying.where: 4,
    copying.owner: 4,
    copying.key_value: 5,
    copying.all_keys: 4,
    copying.all_people: 3,
    copying.count: 1,
    copying.contains: 2,
    records.to_json: 4,
    records.from_json: 3,
    records.json_list: 1.5,
    records.json_pick: 5,
    records.reply: 3,
    records.about_message: 6,
    records.feeling: 0.7,
    stories.about_story: 0.7,
}
OTHERS: dict[Task, float] = {
    knowing.fact: 12,
    knowing.tell: 1.5,
    knowing.arithmetic: 11,
    knowing.word_problem: 2.5,
    knowing.compare: 1.5,
    knowing.sorting: 3,
    knowing.naming: 1.5,
    knowing.odd_one_out: 2,
    knowing.change_list: 3,
    rewriting.shouted: 2,
    rewriting.lowered: 1,
    rewriting.titled: 1,
    rewriting.tense: 3.5,
    rewriting.replace: 3,
    rewriting.polite: 1,
    rewriting.opposite_sentence: 0.7,
    rewriting.describe: 1.2,
    rewriting.framed: 2,
    stories.tell_story: 2,
    advice.how_to: 1,
    advice.look_alike: 1.5,
    advice.refusal: 1.5,
    advice.opinion: 1.5,
    advice.small_talk: 1.5,
}
RAW: dict[Callable[[Rng], str], float] = {
    copying.induction: 2,
    copying.chain: 3,
    copying.note: 3,
    stories.story: 3,
    knowing.portrait: 3,
}


def pick_task(rng: Rng, copying_share: float) -> Task:
    table = COPYING if rng.random() < copying_share else OTHERS
    return rng.choices(list(table), list(table.values()))[0]


def chat(rng: Rng, copying_share: float, turns: int) -> list[Message]:
    messages: list[Message] = []
    manner: Callable[[str], str] = str
    if rng.random() < 0.03:
        system, (question, answer) = advice.role(rng)
        return [
            {"role": "system", "content": system},
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    if rng.random() < 0.2:
        system = rng.choice(list(advice.MANNERS))
        manner = advice.MANNERS[system]
        messages.append({"role": "system", "content": system})
    asked = (pick_task(rng, copying_share)(rng) for _ in range(turns))
    return messages + spoken([(question, manner(answer)) for question, answer in asked])


def spoken(turns: list[Turn]) -> list[Message]:
    messages: list[Message] = []
    for question, answer in turns:
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": answer})
    return messages


def document(rng: Rng, copying_share: float = 0.45) -> Document:
    """One training document; `copying_share` of the tasks are answered from the prompt itself."""
    kind = rng.random()
    if kind < 0.13:
        raw = rng.choices(list(RAW), list(RAW.values()))[0](rng)
        if rng.random() < 0.1:
            raw = "\n\n".join([raw] + [stories.story(rng) for _ in range(rng.randint(1, 3))])
        return raw
    if kind < 0.13 + 0.25 * copying_share:
        return second_lesson(rng)
    turns = rng.choices([1, 2, 3, 6, 10], [74, 14, 7, 3.5, 1.5])[0]
    return chat(rng, copying_share, turns)


LESSONS: dict[Task, float] = {
    copying.all_keys: 4,
    copying.all_people: 1,
    copying.where: 1.5,
    copying.owner: 1.5,
    copying.key_value: 1.5,
    copying.after: 1,
}


def first_lesson(rng: Rng) -> Document:
    """What the pre-training begins with: a few words that follow each other, and pairs of them."""
    return copying.chain(rng) if rng.random() < 0.3 else spoken([copying.all_keys(rng)])


def second_lesson(rng: Rng) -> Document:
    """Look-up of everything: keys further from their values, questions, people, what follows."""
    kind = rng.random()
    if kind < 0.2:
        return first_lesson(rng)
    if kind < 0.45:
        return spoken(copying.follow_ups(rng))
    return spoken([rng.choices(list(LESSONS), list(LESSONS.values()))[0](rng)])
