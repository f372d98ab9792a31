"""Whole numbers from 0 to 9,999 in English, German and Chinese words, one spelling each.

English as in the United States, without "and": 1,121 is "one thousand one hundred twenty-one". German in one word and small
letters: "eintausendeinhunderteinundzwanzig". Chinese in plain characters: one 零 for a gap, however wide, 二 and never 两,
十 and not 一十 in front: 2,002 is 二千零二, 12 is 十二, 112 is 一百一十二.
"""
import re

ENGLISH_ONES = ("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
                "eighteen nineteen").split()
ENGLISH_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
GERMAN_ONES = ("null eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn fünfzehn sechzehn siebzehn "
               "achtzehn neunzehn").split()
GERMAN_TENS = "zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig".split()
CHINESE_DIGITS = "零一二三四五六七八九"


def english(number: int) -> str:
    """7,214 -> seven thousand two hundred fourteen."""
    if number < 20:
        return ENGLISH_ONES[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return ENGLISH_TENS[tens - 2] + (f"-{ENGLISH_ONES[ones]}" if ones else "")
    size, name = (1000, "thousand") if number >= 1000 else (100, "hundred")
    high, low = divmod(number, size)
    return f"{ENGLISH_ONES[high]} {name}" + (f" {english(low)}" if low else "")


def german(number: int) -> str:
    """7,214 -> siebentausendzweihundertvierzehn."""
    if number < 20:
        return GERMAN_ONES[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return (f"{german_before(ones)}und" if ones else "") + GERMAN_TENS[tens - 2]
    size, name = (1000, "tausend") if number >= 1000 else (100, "hundert")
    high, low = divmod(number, size)
    return f"{german_before(high)}{name}" + (german(low) if low else "")


def german_before(digit: int) -> str:
    """A digit in front of another word: einhundert, but hunderteins."""
    return "ein" if digit == 1 else GERMAN_ONES[digit]


def chinese(number: int) -> str:
    """7,214 -> 七千二百一十四."""
    if number < 10:
        return CHINESE_DIGITS[number]
    digits = [int(digit) for digit in str(number)]
    units = ["千", "百", "十", ""][-len(digits):]
    spelled = "".join(CHINESE_DIGITS[digit] + (unit if digit else "") for digit, unit in zip(digits, units, strict=True))
    return re.sub("^一十", "十", re.sub("零+", "零", spelled).rstrip("零"))
