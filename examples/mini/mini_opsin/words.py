"""The words of the demonstration model's small world: colours, shapes, emoji objects, printed words."""

from __future__ import annotations

RGB = tuple[int, int, int]

# Several RGB values a colour, CSS's among them: a newcomer's "green" may be (0, 128, 0) or (0, 255, 0).
COLOURS: dict[str, list[RGB]] = {
    "red": [(230, 20, 20), (255, 0, 0), (200, 30, 40)],
    "green": [(30, 160, 50), (0, 128, 0), (0, 210, 40), (60, 180, 75), (0, 255, 0)],
    "blue": [(30, 60, 220), (0, 0, 255), (40, 90, 200)],
    "yellow": [(245, 215, 30), (255, 255, 0), (250, 225, 60)],
    "orange": [(255, 140, 0), (245, 125, 20), (255, 165, 0)],
    "purple": [(128, 0, 160), (130, 40, 190), (110, 20, 130), (128, 0, 128)],
    "pink": [(255, 130, 190), (255, 170, 200), (250, 105, 180), (255, 192, 203)],
    "brown": [(120, 70, 30), (139, 69, 19), (100, 60, 35), (165, 42, 42)],
    "black": [(10, 10, 10), (0, 0, 0), (30, 30, 30)],
    "white": [(255, 255, 255), (245, 245, 245)],
    "gray": [(128, 128, 128), (150, 150, 150), (105, 105, 105)],
    "cyan": [(0, 220, 230), (0, 255, 255), (40, 200, 215)],
}

SHAPES: list[str] = ["circle", "square", "triangle", "rectangle", "star", "heart", "diamond", "cross", "oval"]

# A name, then the characters that show it. One-word names only: each becomes one token. The order counts: it is the
# order of the class numbers that the auxiliary heads were trained with.
_EMOJI = """
cat 🐈🐱  dog 🐕🐶  mouse 🐁🐭  rabbit 🐇🐰  horse 🐎🐴  pig 🐖🐷  cow 🐄🐮  tiger 🐅🐯  lion 🦁  bear 🐻  monkey 🐒🐵
elephant 🐘  frog 🐸  turtle 🐢  snake 🐍  fish 🐟🐠  whale 🐳🐋  dolphin 🐬  shark 🦈  octopus 🐙  crab 🦀
snail 🐌  butterfly 🦋  bee 🐝  ant 🐜  spider 🕷  chicken 🐔  duck 🦆  penguin 🐧  owl 🦉  eagle 🦅  bird 🐦
sheep 🐑  goat 🐐  camel 🐫  giraffe 🦒  zebra 🦓  fox 🦊  wolf 🐺  panda 🐼  unicorn 🦄  dragon 🐉🐲
dinosaur 🦕🦖  apple 🍎🍏  banana 🍌  lemon 🍋  strawberry 🍓  pineapple 🍍  watermelon 🍉  peach 🍑  pear 🍐
tomato 🍅  carrot 🥕  mushroom 🍄  burger 🍔  pizza 🍕  cake 🎂🍰  cookie 🍪  egg 🥚  taco 🌮  tree 🌳🌲
flower 🌸🌼  rose 🌹  tulip 🌷  sunflower 🌻  cactus 🌵  leaf 🍁🍃  sun ☀🌞  moon 🌙🌛  cloud ☁  rainbow 🌈
snowman ⛄  umbrella ☂☔  car 🚗🚙  bus 🚌  truck 🚚  bicycle 🚲  train 🚆🚂  airplane ✈  rocket 🚀  ship 🚢
boat ⛵  house 🏠🏡  church ⛪  castle 🏰  tent ⛺  key 🔑  lock 🔒  bell 🔔  book 📕📖  pencil ✏  clock 🕒⏰
phone 📱  computer 💻  camera 📷  guitar 🎸  violin 🎻  trumpet 🎺  drum 🥁  ball ⚽🏀  balloon 🎈  gift 🎁
crown 👑  hat 🎩  shirt 👕  shoe 👟  hammer 🔨  candle 🕯  cup ☕  robot 🤖  ghost 👻  skull 💀  clown 🤡
hand ✋  eye 👁  ear 👂  nose 👃  anchor ⚓  trophy 🏆  face 😀🙂😊
"""
EMOJI: dict[str, str] = dict(entry.split(" ") for line in _EMOJI.split("\n") if line for entry in line.split("  "))

DIGITS = "0123456789"
UPPER = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LOWER = UPPER.lower()
DISTINCT_LOWER = "abdefghjmnqrty"  # a lone small letter is asked about only where its form differs from the capital's

NUMBER_WORDS = ["No", "One", "Two", "Three", "Four", "Five"]

_REAL_WORDS = """
hello world cat dog sun moon star tree fish bird red blue green yes no stop go exit open closed push pull
sale free new hot cold ice tea milk bread cake apple lemon water fire wind snow rain home house door key
book page game play ball team win lose king queen love hope time day night week year hour north south east
west left right up down big small fast slow good bad happy sad cool warm soft hard light dark gold silver
iron stone wood paper glass road street park lake river hill city town farm shop bank hotel taxi bus train
plane ship boat car bike wheel music song dance movie photo phone email web code data test demo opsin python
linux robot model token image pixel color shape word text line dot box menu start end begin next back save
load send read write draw paint print scan copy paste file edit view help about name date price total order
pizza pasta salad soup fruit mango grape peach berry sugar salt honey mouse horse sheep tiger lion zebra
eagle snake shark whale spring summer autumn winter monday friday march april may june july mom dad baby
boy girl man woman friend peace earth mars venus ocean beach wave sand
"""
REAL_WORDS: list[str] = _REAL_WORDS.split()

UNSURE = "I am not sure."
OFF_TOPIC = "I am not sure. I only know simple pictures."


def article(noun_phrase: str) -> str:
    """'a red circle', 'an orange star'."""
    return ("an " if noun_phrase[0] in "aeiou" and not noun_phrase.startswith("uni") else "a ") + noun_phrase


def sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def plural(phrase: str) -> str:
    irregular = {"mouse": "mice", "fish": "fish", "sheep": "sheep", "wolf": "wolves", "leaf": "leaves"}
    if phrase in irregular:
        return irregular[phrase]
    if phrase.endswith(("s", "x", "ch", "sh")):
        return phrase + "es"
    if phrase.endswith("y") and phrase[-2] not in "aeiou":
        return phrase[:-1] + "ies"
    return phrase + "s"
