"""Translation by rule: spelled as an independent package spells, read back by other rules, split by number and by date."""
import re
from datetime import datetime
from functools import cache
from itertools import permutations

import pytest

from minillm.data.numbers import chinese, english, german
from minillm.data.tasks import load_task

SMALL = {"en": "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
               "eighteen nineteen".split(),
         "de": "null ein zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn fünfzehn sechzehn siebzehn "
               "achtzehn neunzehn".split()}
TENS = {"en": "twenty thirty forty fifty sixty seventy eighty ninety".split(),
        "de": "zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig".split()}


def from_english(words):
    """Adds word by word; a multiplier multiplies what stands since the last one."""
    whole = part = 0
    for word in re.split("[ -]", words):
        if word == "thousand":
            whole, part = part * 1000, 0
        elif word == "hundred":
            part *= 100
        else:
            part += SMALL["en"].index(word) if word in SMALL["en"] else 10 * TENS["en"].index(word) + 20
    return whole + part


def from_german(word):
    """The parts between "tausend" and "hundert", of which the last may be ones "und" tens."""
    parts = re.fullmatch("(?:(.+)tausend)?(?:(.+)hundert)?(?:(.*)und)?(.*?)", word).groups(default="")
    thousands, hundreds, ones = (SMALL["de"].index(part) if part else 0 for part in parts[:3])
    last = re.sub("eins$", "ein", parts[3])
    rest = 10 * TENS["de"].index(last) + 20 if last in TENS["de"] else SMALL["de"].index(last) if last else 0
    return 1000 * thousands + 100 * hundreds + ones + rest


def from_chinese(characters):
    """A digit counts by the unit behind it; ten in front has no digit."""
    found = re.findall("([一二三四五六七八九]?)([千百十]|$)", re.sub("^十", "一十", characters).replace("零", ""))
    return sum(" 一二三四五六七八九".index(digit or " ") * {"千": 1000, "百": 100, "十": 10, "": 1}[unit] for digit, unit in found)


READ = {"en": from_english, "de": from_german, "zh": from_chinese}
WRITE = {"en": english, "de": german, "zh": chinese}


@pytest.mark.parametrize("language", READ)
def test_every_number_is_read_back_by_another_rule(language):
    assert [READ[language](WRITE[language](number)) for number in range(10_000)] == list(range(10_000))


def test_english_and_german_are_spelled_as_num2words_spells_them():
    num2words = pytest.importorskip("num2words").num2words
    for number in (*range(1_200), *range(1_200, 10_000, 7)):
        assert english(number) == num2words(number).replace(" and ", " ").replace(",", "")
        assert german(number) == num2words(number, lang="de")


def test_chinese_follows_the_stated_rule():
    numbers = (0, 7, 10, 12, 20, 22, 100, 101, 110, 112, 2000, 2002, 2020, 2200, 9999)
    spelled = "零 七 十 十二 二十 二十二 一百 一百零一 一百一十 一百一十二 二千 二千零二 二千零二十 二千二百 九千九百九十九"
    assert [chinese(number) for number in numbers] == spelled.split()


def as_date(language, text):
    """The date by strptime, month names as numbers first."""
    german = dict(zip("Januar Februar März April Mai Juni Juli August September Oktober November Dezember".split(), range(1, 13),
                      strict=True))
    if language == "de":
        text = re.sub(r"\w+ (?=\d{4}$)", lambda month: f"{german[month[0].strip()]} ", text)
    return datetime.strptime(text, {"en": "%B %d, %Y", "zh": "%Y年%m月%d日", "de": "%d. %m %Y"}[language]).date()


@cache
def meaning(language, text):
    return as_date(language, text) if re.search("[0-9]", text) else READ[language](text)


def meanings(examples):
    """What each example is about, and in which direction; both sides must say the same."""
    found = []
    for example in examples:
        here, there, text = re.fullmatch("(..)>(..) (.*)", example.source).groups()
        assert meaning(here, text) == meaning(there, example.target), example
        found.append((meaning(here, text), (here, there)))
    return found


@pytest.fixture(scope="module")
def parts():
    task = load_task("translation", 3)
    return meanings(task.train), meanings(task.held_out)


def test_both_sides_say_the_same_and_each_item_comes_once_in_each_direction(parts):
    for part, numbers, dates in zip(parts, (8_000, 1_000), (2_000, 250), strict=True):
        items = {item for item, _ in part}
        assert len(part) == len(set(part)) == 6 * (numbers + dates)
        assert {direction for _, direction in part} == set(permutations(("en", "zh", "de"), 2))
        assert sum(isinstance(item, int) for item in items) == numbers
        assert len(items) == numbers + dates


def test_what_is_held_out_is_trained_in_no_direction(parts):
    trained, held_out = ({item for item, _ in part} for part in parts)
    assert not trained & held_out
    assert 0 in trained


def test_the_first_held_out_examples_are_a_fair_sample(parts):
    shares = [sum(isinstance(item, int) for item, _ in part[:600]) / 600 for part in parts]
    for share, whole in zip(shares, (8 / 10, 1_000 / 1_250), strict=True):     # a deviation of sqrt(.8 * .2 / 600) is 0.0163
        assert abs(share - whole) < 5 * 0.0163
