"""Translation by rule: numbers in words and dates, from each of English, Chinese and German to each other."""
import random
from collections.abc import Callable, Iterable
from datetime import date
from itertools import permutations
from typing import TypeVar

from minillm.data import numbers
from minillm.data.examples import Example, Task

Item = TypeVar("Item")
Speakers = dict[str, Callable[[Item], str]]

ENGLISH_MONTHS = "January February March April May June July August September October November December".split()
GERMAN_MONTHS = "Januar Februar März April Mai Juni Juli August September Oktober November Dezember".split()
FIRST_DAY, LAST_DAY = date(1800, 1, 1), date(2099, 12, 31)

NUMBERS: Speakers[int] = {"en": numbers.english, "zh": numbers.chinese, "de": numbers.german}
DATES: Speakers[date] = {
    "en": lambda day: f"{ENGLISH_MONTHS[day.month - 1]} {day.day}, {day.year}",           # March 3, 1987
    "zh": lambda day: f"{day.year}年{day.month}月{day.day}日",                               # 1987年3月3日
    "de": lambda day: f"{day.day}. {GERMAN_MONTHS[day.month - 1]} {day.year}",            # 3. März 1987
}


def translation(seed: int) -> Task:
    """All six directions between English (en), Chinese (zh) and German (de) in one task, "en>zh twelve" -> "十二".

    Numbers from 0 to 9,999 as `data.numbers` spells them, 8,000 to train and 1,000 held out; dates from 1800 to 2099,
    2,000 to train and 250 held out. Split by number and by date: what is held out is trained in no direction. An example is
    one number or date in one direction, all of them in an order drawn from the seed: 60,000 to train, 7,500 held out.
    Sources have at most 48 characters, targets 42. A constant answer matches less than 0.001 of the held-out part.
    """
    draw = random.Random(f"translation {seed}")
    # Zero is a word that no other number teaches: it is always trained.
    order = [0, *draw.sample(range(1, 10_000), 9_999)]
    days = [date.fromordinal(day) for day in draw.sample(range(FIRST_DAY.toordinal(), LAST_DAY.toordinal() + 1), 2_250)]
    train = [*in_all_directions(order[:8_000], NUMBERS), *in_all_directions(days[:2_000], DATES)]
    held_out = [*in_all_directions(order[-1_000:], NUMBERS), *in_all_directions(days[2_000:], DATES)]
    draw.shuffle(train)
    draw.shuffle(held_out)                       # so that its first examples are a fair sample
    return Task("translation", tuple(train), tuple(held_out), ("exact_match", "bleu"))


def in_all_directions(items: Iterable[Item], speakers: Speakers[Item]) -> list[Example]:
    """Each item in each pair of languages, the direction in front of the source."""
    return [Example(f"{here}>{there} {speakers[here](item)}", speakers[there](item))
            for item in items for here, there in permutations(speakers, 2)]
