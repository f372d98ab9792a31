"""Dialogue by rule: a waiter takes a booking, asks for what is missing and repeats what was said last."""
import random
from itertools import product

from minillm.data.examples import Example, Task, distinct

DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
VALUES = {"for": [str(guests) for guests in range(2, 10)], "on": DAYS, "at": [str(hour) for hour in range(1, 13)]}
QUESTIONS = {"for": "For how many?", "on": "On which day?", "at": "At what time?"}
OPENINGS = ("A table", "Hello, a table", "I want a table", "Please book a table")

Booking = dict[str, str]


def dialogue(seed: int) -> Task:
    """"A table on Friday. / For how many? / For 4. / At what time? / At 7. No, at 8." -> "For 4 on Friday at 8."

    What was said so far, guest and waiter in turn, and what the waiter says next: the first question whose answer is missing
    (guests, day, hour), or all three, each as it was said last. The guest opens with one or two of them in any order, answers
    what is asked, and corrects in one turn of four what that turn said. 8 numbers of guests, 7 days, 12 hours, 4 ways to open.
    Of the 672 possible bookings 67 are held out: no training dialogue is about them, every held-out one is. 20,000 examples to
    train, 1,000 held out, of which one in ten ends in a question. Sources have at most 122 characters, targets 25. A constant
    answer matches less than 0.05; to repeat what was said first, not last, matches less than 0.65.
    """
    draw = random.Random(f"dialogue {seed}")
    bookings = [dict(zip(VALUES, values, strict=True)) for values in product(*VALUES.values())]
    draw.shuffle(bookings)
    unseen, seen = bookings[:67], bookings[67:]
    train = distinct(lambda: exchange(draw, draw.choice(seen)), 20_000)
    return Task("dialogue", train, distinct(lambda: exchange(draw, draw.choice(unseen)), 1_000, train), ("exact_match", "token_f1"))


def exchange(draw: random.Random, booking: Booking) -> Example:
    """A dialogue up to one turn of the waiter: in two of three cases the last, else any of them."""
    told = draw.sample(list(VALUES), draw.choice((1, 2)))
    turns = [f"{draw.choice(OPENINGS)} {said(draw, booking, told)}"]
    for slot in [slot for slot in VALUES if slot not in told]:
        turns += [QUESTIONS[slot], sentence(said(draw, booking, [slot]))]
    turns.append(sentence(" ".join(f"{slot} {value}" for slot, value in booking.items()) + "."))
    end = len(turns) - 1 if draw.random() < 2 / 3 else draw.randrange(1, len(turns), 2)
    return Example(" / ".join(turns[:end]), turns[end])


def said(draw: random.Random, booking: Booking, slots: list[str]) -> str:
    """Some slots of a booking in the guest's words; in one turn of four one of them is wrong first."""
    values = booking | ({} if draw.random() < 0.75 else {(wrong := draw.choice(slots)): draw.choice(VALUES[wrong])})
    first = " ".join(f"{slot} {values[slot]}" for slot in slots) + "."
    return first + "".join(f" No, {slot} {booking[slot]}." for slot in slots if values[slot] != booking[slot])


def sentence(text: str) -> str:
    """With a capital letter in front."""
    return text[0].upper() + text[1:]
