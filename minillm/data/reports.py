"""Summarization by rule: of two or three statements about machines one reports a fault; say it in three words."""
import random
from itertools import product

from minillm.data.examples import Example, Task, distinct

MACHINES = "belt door gate hose lift mill oven pump tank vent".split()
ROOMS = range(1, 10)
FAULTS = "burns drips halts jerks leaks reeks trips".split()
CHORES = "was cleaned|was painted|was checked|was oiled|is new|is still off".split("|")

Fault = tuple[str, int, str]


def summarization(seed: int) -> Task:
    """"The mill in room 3 was oiled. The pump in room 7 leaks. The lift in room 7 no longer jerks." -> "leaks: pump 7".

    Two or three statements in any order about as many machines: one fault, the others a chore (6 kinds) or a fault that is no
    longer there. 10 machines of four letters, 9 rooms, 7 faults of five, no two of a kind with the same first letter. Of the 630
    possible faults 63 are held out: no training report has them for its fault, and every held-out report has one. 20,000
    examples to train, 1,000 held out. Sources have at most 97 characters, targets 13. Summing up any of the statements matches
    0.42, the first word of a fault, denied or not, 0.67, a constant answer less than 0.04.
    """
    draw = random.Random(f"summarization {seed}")
    faults = list(product(MACHINES, ROOMS, FAULTS))
    draw.shuffle(faults)
    unseen, seen = faults[:63], faults[63:]
    train = distinct(lambda: report(draw, draw.choice(seen)), 20_000)
    return Task("summarization", train, distinct(lambda: report(draw, draw.choice(unseen)), 1_000), ("exact_match", "rouge_l"))


def report(draw: random.Random, fault: Fault) -> Example:
    """A report in which one fault matters, and its summary."""
    machine, room, trouble = fault
    others = draw.sample([name for name in MACHINES if name != machine], draw.choice((1, 2)))
    statements = [(machine, room, trouble), *((name, draw.choice(ROOMS), harmless(draw)) for name in others)]
    draw.shuffle(statements)
    return Example(" ".join("The {} in room {} {}.".format(*statement) for statement in statements), f"{trouble}: {machine} {room}")


def harmless(draw: random.Random) -> str:
    """What is no fault: a chore, or a fault that is gone; either is as likely."""
    return draw.choice(CHORES) if draw.random() < 0.5 else f"no longer {draw.choice(FAULTS)}"
