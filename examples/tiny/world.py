"""The closed world of luthier-tiny: people, towns, animals, words and habits, as fixed tables."""

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Person:
    name: str
    job: str
    town: str
    pet: str
    food: str
    tool: str


@dataclass(frozen=True)
class Town:
    name: str
    river: str
    goods: str
    flag: str
    mayor: str


@dataclass(frozen=True)
class Animal:
    name: str
    home: str
    food: str
    sound: str
    young: str


def words(text: str) -> list[str]:
    return text.split()


def phrases(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def pairs(text: str) -> dict[str, str]:
    return dict(part.strip().split(":") for part in text.split(","))


COLOURS = words("red blue green yellow white black brown grey orange purple pink silver golden")
DAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = words(
    "January February March April May June July August September October November December"
)
JOBS = words(
    "baker farmer teacher doctor potter weaver miller sailor painter smith tailor gardener "
    "shepherd librarian carpenter fisher cook clockmaker"
)
FOODS = words("bread soup cheese honey pie rice fish stew jam cake salad porridge pancakes noodles")
FRUITS = words("apple pear plum cherry lemon peach grape melon berry lime banana fig")
PETS = words("dog cat rabbit parrot goat turtle pony hen mouse duck")
TOOLS = words(
    "hammer needle spade ladder lantern brush kettle rope wheel basket oven compass saw bucket"
)
ITEMS = words(
    "lamp chair table kettle clock radio bicycle umbrella mirror blanket teapot backpack camera "
    "stove fan watch heater toaster guitar pillow drum kite vase bell tent boat piano printer "
    "phone jacket shelf desk fridge speaker scarf"
)
THINGS = words(
    "key book coin ball cup hat pen ring map box letter spoon candle button stone feather shell "
    "bottle plate glove mug bag card flute"
)
PLACES = words(
    "garden kitchen barn mill market school library harbour forest tower bakery bridge cellar "
    "meadow station workshop cave attic orchard inn"
)
ADJECTIVES = words(
    "small big old new quiet loud bright dark warm cold kind brave clever gentle happy sad "
    "shiny heavy light soft tall short clean dusty"
)
VERBS = words(
    "walk:walked:walking talk:talked:talking jump:jumped:jumping cook:cooked:cooking "
    "paint:painted:painting wash:washed:washing play:played:playing open:opened:opening "
    "close:closed:closing help:helped:helping clean:cleaned:cleaning carry:carried:carrying "
    "find:found:finding see:saw:seeing take:took:taking make:made:making eat:ate:eating "
    "drink:drank:drinking give:gave:giving sing:sang:singing run:ran:running write:wrote:writing "
    "read:read:reading buy:bought:buying sell:sold:selling bring:brought:bringing "
    "break:broke:breaking build:built:building draw:drew:drawing hold:held:holding"
)
OPPOSITES = pairs(
    "hot:cold,big:small,old:young,fast:slow,light:dark,happy:sad,high:low,long:short,wet:dry,"
    "full:empty,hard:soft,loud:quiet,open:closed,early:late,rich:poor,strong:weak,clean:dirty,"
    "near:far,thick:thin,left:right,up:down,day:night,summer:winter,north:south,east:west,"
    "sweet:sour,true:false,first:last,heavy:light,brave:shy"
)
PLURALS = pairs(
    "cat:cats,dog:dogs,child:children,mouse:mice,goose:geese,foot:feet,tooth:teeth,man:men,"
    "woman:women,leaf:leaves,wolf:wolves,box:boxes,berry:berries,baby:babies,sheep:sheep,"
    "fish:fish,knife:knives,city:cities,glass:glasses,bus:buses,apple:apples,book:books"
)
MATERIALS = pairs(
    "chair:wood,table:wood,window:glass,bottle:glass,ring:gold,coin:silver,knife:steel,"
    "nail:iron,bread:flour,cheese:milk,candle:wax,shoe:leather,belt:leather,scarf:wool,"
    "shirt:cotton,book:paper,letter:paper,brick:clay,pot:clay,wine:grapes,rope:hemp,tyre:rubber"
)
NUMBER_WORDS = words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen twenty"
)
TENS = words("twenty thirty forty fifty sixty seventy eighty ninety")
GROUPS: dict[str, list[str]] = {
    "animal": [],
    "colour": COLOURS[:11],
    "fruit": FRUITS,
    "tool": TOOLS,
    "food": FOODS,
    "job": JOBS,
    "day": DAYS,
    "place": PLACES,
}

ANIMALS = [
    Animal(*row.split(":"))
    for row in phrases(
        "cow:barn:grass:moo:calf, sheep:meadow:grass:baa:lamb, dog:house:bones:woof:puppy,"
        "cat:house:fish:meow:kitten, hen:coop:corn:cluck:chick, duck:pond:bread:quack:duckling,"
        "frog:pond:flies:croak:tadpole, owl:tree:mice:hoot:owlet, bee:hive:nectar:buzz:larva,"
        "bear:cave:honey:growl:cub, wolf:forest:meat:howl:pup, horse:stable:hay:neigh:foal,"
        "pig:pen:roots:oink:piglet, goat:hill:leaves:bleat:kid, lion:plain:meat:roar:cub,"
        "snake:hole:eggs:hiss:hatchling, mouse:wall:cheese:squeak:pinkie,"
        "crow:tree:seeds:caw:nestling,"
        "goose:lake:grass:honk:gosling, fox:den:berries:yelp:kit"
    )
]
GROUPS["animal"] = [a.name for a in ANIMALS]

WORLD_NAMES = words(
    "Mara Otto Lena Bruno Tilda Hugo Nora Felix Ida Jonas Greta Emil Wanda Rufus Clara Anton "
    "Selma Victor Paula Edgar Rosa Oskar Hanna Milo Petra Casper Elsa Arlo Vera Theo Agnes Silas"
)
TOWN_NAMES = words(
    "Elmbrook Fernvale Oakham Stonebury Millford Windmere Ashby Larkfield Redcliff Thornton "
    "Seaholm Brightwater"
)
RIVERS = words("Alder Brine Coldrun Dart Ember Fallow Glim Hazel Iris Juniper Kestrel Lumen")
GOODS = words("honey glass wool salt cheese clocks bread ropes apples paper boats bells")
OTHER_NAMES = words(
    "Anna Ben Carl Dora Erik Fiona Gus Helen Ivan Julia Karl Laura Max Nina Omar Peter Quinn Rita "
    "Sam Tina Uma Will Xena Yuri Zoe Adam Beth Cora Dean Ella Finn Gina Hank Iris Jack Kate Liam "
    "Mona Ned Olga Paul Ruth Seth Tess Vince Wendy Alma Boris Celia David Eva Frank Gloria Henry "
    "Irma James Kira Leo Maya Nils Olive Philip Rachel Simon Tom Ursula Vivian Walter Alice Bob "
    "Cleo Dan Edith Fred Grace Harry Isla Joan Ken Lucy Marta Noah Opal Pia Ralph Sara Tim"
)
OTHER_TOWNS = words(
    "Northgate Highmoor Eastwick Greenhill Westport Riverton Lakeside Marlow Dunmore Kingsley "
    "Foxton Harwick Pinewood Sandgate Whitby Cranford Hollin Barrow Penrose Tilbury"
)
NAMES = WORLD_NAMES + OTHER_NAMES
TOWNS_ALL = TOWN_NAMES + OTHER_TOWNS
SYLLABLES = words(
    "ba be bi bo da de di do fa fe ga go ha he ka ke ki ko la le li lo ma me mi mo na ne ni no pa "
    "pe ra re ri ro sa se si so ta te ti to va ve vi wa wi za zo el an or in ar us"
)


def _make_people() -> list[Person]:
    rng = random.Random("people of the valley")
    return [
        Person(
            name,
            JOBS[i % len(JOBS)],
            TOWN_NAMES[rng.randrange(len(TOWN_NAMES))],
            rng.choice(PETS),
            rng.choice(FOODS),
            rng.choice(TOOLS),
        )
        for i, name in enumerate(WORLD_NAMES)
    ]


def _make_towns() -> list[Town]:
    rng = random.Random("towns of the valley")
    mayors = rng.sample(WORLD_NAMES, len(TOWN_NAMES))
    flags = rng.sample(COLOURS, len(TOWN_NAMES))
    return [Town(*row) for row in zip(TOWN_NAMES, RIVERS, GOODS, flags, mayors, strict=True)]


PEOPLE = _make_people()
TOWNS = _make_towns()


def invented(rng: random.Random) -> str:
    """A made-up name of two or three syllables, so that copying cannot be learnt by heart."""
    return "".join(rng.choice(SYLLABLES) for _ in range(rng.choice((2, 2, 3)))).capitalize()


def any_name(rng: random.Random) -> str:
    return rng.choice(NAMES) if rng.random() < 0.75 else invented(rng)


def any_town(rng: random.Random) -> str:
    return rng.choice(TOWNS_ALL) if rng.random() < 0.8 else invented(rng)


def number_word(n: int) -> str:
    """`n` in words, for 0 to 99."""
    if n <= 20:
        return NUMBER_WORDS[n]
    tens, ones = divmod(n, 10)
    return TENS[tens - 2] + (f"-{NUMBER_WORDS[ones]}" if ones else "")


def article(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def listing(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
