"""The things scenes are made of: OpenMoji drawings that look like what they are called, one of each look-alike group.

The glyphs are single code points of the OpenMoji colour font, chosen by eye: no people, flags or abstract signs, and
where several drawings would pass for each other (five books, four moons, three clocks) only one. Their names are
Unicode's, tidied into plain English.
"""

import functools
import unicodedata
from dataclasses import dataclass

ANIMALS = """
🐁🐄🐅🐇🐈🐊🐋🐌🐍🐎🐑🐒🐓🐕🐖🐘🐙🐛🐜🐝🐞🐟🐢🐥🐧🐨🐫🐻🐼🕷🦀🦁🦄🦆🦇🦈🦉🦊🦋🦌🦒🦓🦔🦖🦘🦚🦜🦞🦢🦨🦩"""
FOOD = """
🍅🍆🍇🍉🍊🍋🍌🍍🍎🍐🍑🍓🥝🥑🥕🌽🌶🧅🍄🍞🥐🥨🧀🍔🍟🍕🌭🌮🥚🍳🍩🍪🎂🧁🍭🫖🍷🍺"""
OUTDOORS = """
🌳🌴🌵🌹🌻🍁🪴🎄🪶🦴🦷🧠🌈🌋⛄⭐🌙☀🔥🪐🌍🏠🏭🏰⛺🎡"""
VEHICLES = """
🚀🚁🚂🚌🚑🚒🚕🚗🚜🏍🚲🛹🛼⛵🛶✈🛸🎈🪂⚓🚦🛞🛟🚧🛑"""
HOUSEHOLD = """
🪑🛏🚪🚽🛁🧹🪣🧺🕯💡🧯🪜🔨🪓🪚🔧🪛🧲🔑🔒🔔⏰⌛🧭🛡💣🔬💉💊🩹☎📷📺🔋🕹🎮🎧🔍📖✉📦📫✂📅🖌✏🎨🎒🧳🎁🎀🏺"""
PLAY_AND_WEAR = """
⚽🏀🏈🎾🥊🎯🪁🎲🧩🧸🎱🏆🎸🎻🎺🎷🪗🥁👓👕👖🧣🧤👗👠👢👑🎩🎓🧢💍💄💎☂🧶👻👽🤖🎃💀📣"""

PLAIN_ENGLISH = {
    "adhesive bandage": "bandage",
    "american football": "football",
    "amphora": "vase",
    "artist palette": "paint palette",
    "aubergine": "eggplant",
    "automobile": "car",
    "bactrian camel": "camel",
    "basketball and hoop": "basketball",
    "bear face": "bear",
    "billed cap": "cap",
    "billiards": "eight ball",
    "birthday cake": "cake",
    "black scissors": "pair of scissors",
    "black sun with rays": "sun",
    "black telephone": "telephone",
    "bread": "loaf of bread",
    "bug": "caterpillar",
    "carpentry saw": "saw",
    "cheering megaphone": "megaphone",
    "cheese wedge": "wedge of cheese",
    "closed mailbox with raised flag": "mailbox",
    "construction sign": "road barrier",
    "cooking": "frying pan",
    "crescent moon": "moon",
    "deciduous tree": "tree",
    "direct hit": "target",
    "doughnut": "donut",
    "drum with drumsticks": "drum",
    "ear of maize": "ear of corn",
    "earth globe europe-africa": "globe",
    "electric light bulb": "light bulb",
    "european castle": "castle",
    "extraterrestrial alien": "alien",
    "eyeglasses": "pair of glasses",
    "fire": "flame",
    "fire engine": "fire truck",
    "fox face": "fox",
    "french fries": "box of fries",
    "front-facing baby chick": "chick",
    "game die": "die",
    "gem stone": "diamond",
    "giraffe face": "giraffe",
    "gloves": "pair of mittens",
    "grapes": "bunch of grapes",
    "headphone": "pair of headphones",
    "high-heeled shoe": "high heel",
    "honeybee": "bee",
    "hot pepper": "chili pepper",
    "house building": "house",
    "jack-o-lantern": "pumpkin",
    "jeans": "pair of jeans",
    "jigsaw puzzle piece": "puzzle piece",
    "kiwifruit": "kiwi",
    "lady beetle": "ladybug",
    "left-pointing magnifying glass": "magnifying glass",
    "lion face": "lion",
    "lock": "padlock",
    "lower left paintbrush": "paintbrush",
    "luggage": "suitcase",
    "octagonal sign": "stop sign",
    "package": "cardboard box",
    "panda face": "panda",
    "racing motorcycle": "motorcycle",
    "red apple": "apple",
    "ring buoy": "life ring",
    "ringed planet": "planet",
    "robot face": "robot",
    "school satchel": "backpack",
    "snowman without snow": "snowman",
    "steam locomotive": "train",
    "t-rex": "dinosaur",
    "tangerine": "orange",
    "tennis racquet and ball": "tennis ball",
    "unicorn face": "unicorn",
    "vertical traffic light": "traffic light",
    "video game": "game controller",
    "white medium star": "star",
    "womans boots": "boot",
    "wrapped present": "gift",
    "zebra face": "zebra",
}
IRREGULAR_PLURALS = {
    "cactus": "cacti",
    "deer": "deer",
    "die": "dice",
    "fish": "fish",
    "leaf": "leaves",
    "loaf": "loaves",
    "mouse": "mice",
    "scarf": "scarves",
    "sheep": "sheep",
    "snowman": "snowmen",
    "tomato": "tomatoes",
    "tooth": "teeth",
    "volcano": "volcanoes",
}
IRREGULAR_ARTICLES = {"hourglass": "an", "unicorn": "a"}
NUMBERS = {2: "two", 3: "three"}


@dataclass(frozen=True, order=True)
class Object:
    """A kind of thing: its plain English `name` (a lowercase singular) and the `glyph` that draws it."""

    name: str
    glyph: str

    @property
    def plural(self) -> str:
        """What several are called: the word before " of " takes the ending ("loaves of bread")."""
        head, of, rest = self.name.partition(" of ")
        *before, noun = head.split(" ")
        return " ".join([*before, IRREGULAR_PLURALS.get(noun) or _regular_plural(noun)]) + of + rest

    def counted(self, count: int) -> str:
        """`count` (1 to 3) of them in words: "an axe", "two axes"."""
        if count > 1:
            return f"{NUMBERS[count]} {self.plural}"
        return f"{IRREGULAR_ARTICLES.get(self.name) or ('an' if self.name[0] in 'aeiou' else 'a')} {self.name}"


def _regular_plural(noun: str) -> str:
    if noun.endswith(("s", "x", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


@functools.cache
def all_objects() -> tuple[Object, ...]:
    """Every object, sorted by name."""
    glyphs = "".join((ANIMALS + FOOD + OUTDOORS + VEHICLES + HOUSEHOLD + PLAY_AND_WEAR).split())
    names = (unicodedata.name(glyph).lower() for glyph in glyphs)
    return tuple(
        sorted(Object(PLAIN_ENGLISH.get(name, name), glyph) for name, glyph in zip(names, glyphs, strict=True))
    )
