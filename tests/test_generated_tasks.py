"""Generated tasks: a rule written apart from the generator solves each one, simpler rules do not, and held out means unseen."""
import re
from functools import cache

import pytest

from minillm.data.tasks import load_task

loaded = cache(load_task)


def share(rule, examples):
    """How often a rule gives what is wanted."""
    return sum(rule(example.source) == example.target for example in examples) / len(examples)


# --- question answering

def told(source):
    """(person, " no longer" or nothing, relation, value) of each statement, then whom and what the question is about."""
    statements = re.findall(r"(\w+)( no longer)? (lives in|has a|likes) (\w+)\.", source)
    person, asked = re.search(r"(?:Where|What) does (\w+) (live|have|like)\?$", source).groups()
    return statements, person, {"live": "lives in", "have": "has a", "like": "likes"}[asked]


def answer(source):
    statements, person, relation = told(source)
    found = [value for who, gone, which, value in statements if (who, gone, which) == (person, "", relation)]
    assert len(found) == 1, source
    return found[0]


def first_that_fits(source):
    statements, _, relation = told(source)
    return next(value for _, _, which, value in statements if which == relation)


def asked(example):
    _, person, relation = told(example.source)
    return person, relation, example.target


def test_questions_are_answered_by_what_is_still_true_and_by_no_other_statement():
    task = loaded("question-answering")
    for part in task.train, task.held_out:
        assert share(answer, part) == 1
        assert 0.65 < share(first_that_fits, part) < 0.8
        assert 0.3 < share(lambda source: told(source)[0][0][-1], part) < 0.42       # first of all: 1/2, 1/3, 1/4 are 0.36


def test_no_training_passage_holds_a_fact_that_is_held_out():
    task = loaded("question-answering")
    trained = {(who, which, value) for example in task.train for who, _, which, value in told(example.source)[0]}
    held_out = set(map(asked, task.held_out))
    assert not trained & held_out
    assert (len(trained), len(held_out)) == (252, 36)
    for example in (*task.train, *task.held_out):
        people, values = ({statement[at] for statement in told(example.source)[0]} for at in (0, 3))
        assert len(people) == 1
        assert len(values) == len(told(example.source)[0]) in (2, 3, 4)


# --- summarization

STATEMENT = re.compile(r"The (\w+) in room (\d) (.*?)\.")


def statements(source):
    return STATEMENT.findall(source)


def matters(source):
    """The one statement whose verb is in the present and not denied."""
    found = [(machine, room, what) for machine, room, what in statements(source) if re.fullmatch("(?!is )[a-z]+s", what)]
    assert len(found) == 1, source
    return "{2}: {0} {1}".format(*found[0])


def first_fault_word(source):
    """The first statement whose last word is a fault's, denied or not: right unless a denied one stands first."""
    return next(f"{what.split()[-1]}: {machine} {room}" for machine, room, what in statements(source)
                if what.split()[-1] in "burns drips halts jerks leaks reeks trips".split())


def test_one_statement_of_a_report_matters_and_its_words_are_not_enough_to_find_it():
    task = loaded("summarization")
    for part in task.train, task.held_out:
        assert share(matters, part) == 1
        assert share(lambda source: "{2}: {0} {1}".format(*statements(source)[0]), part) == pytest.approx(5 / 12, abs=5 * 0.016)
        assert 0.6 < share(first_fault_word, part) < 0.8


def test_no_training_summary_is_a_held_out_one():
    task = loaded("summarization")
    trained, held_out = ({example.target for example in part} for part in (task.train, task.held_out))
    assert not trained & held_out
    assert (len(trained), len(held_out)) == (567, 63)


# --- dialogue

def heard(source, which):
    """For each slot its first (0) or last (-1) value in the guest's turns."""
    guest = " ".join(source.split(" / ")[::2])
    values = {slot: re.findall(rf"\b{slot} (\w+)", guest, re.IGNORECASE) for slot in ("for", "on", "at")}
    return {slot: said[which] for slot, said in values.items() if said}


def reply(source, which=-1):
    values = heard(source, which)
    questions = {"for": "For how many?", "on": "On which day?", "at": "At what time?"}
    missing = [question for slot, question in questions.items() if slot not in values]
    return missing[0] if missing else "For {for} on {on} at {at}.".format(**values)


def test_the_waiter_asks_for_what_is_missing_and_repeats_what_was_said_last():
    task = loaded("dialogue")
    for part in task.train, task.held_out:
        assert share(reply, part) == 1
        assert 0.5 < share(lambda source: reply(source, 0), part) < 0.65
    assert 0.05 < sum(example.target.endswith("?") for example in task.held_out) / 1_000 < 0.15


def test_no_training_dialogue_is_about_a_held_out_booking():
    task = loaded("dialogue")
    trained, held_out = ({example.target for example in part if not example.target.endswith("?")}
                         for part in (task.train, task.held_out))
    assert not trained & held_out
    assert (len(trained), len(held_out)) == (605, 67)
