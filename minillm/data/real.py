"""Tasks on real data, from packages of the extra `data`. Nothing about one subject stands in both parts."""
import random
import re
from collections.abc import Callable, Hashable, Iterable

from minillm.data.examples import Example, Task
from minillm.data.packages import LANGUAGES, Article, articles, ascii_folded, emoji_names, exchanges

LONGEST_LEAD = 200         # characters
LONGEST_REPLY = 120
SCIENCES = ("Biology and health sciences", "Mathematics", "Physical sciences", "Technology")
VARIANT = re.compile(r"\b((medium-)?(light|medium|dark) skin tone|facing right|"
                     r"m[ae]n|wom[ae]n|person|people|boys?|girls?|adult|child|and)\b")
# A full stop behind two small letters or digits ends a sentence; one behind an initial does not.
SENTENCE = re.compile(r".*?[a-z0-9)\"]{2}\.(?= [A-Z]|$)", re.DOTALL)


def parts(name: str, seed: int, about: Iterable[tuple[Hashable, Example]]) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Examples in two parts, about nine to one: whatever is about the same subject goes to the same part."""
    groups: dict[Hashable, list[Example]] = {}
    for subject, example in about:
        groups.setdefault(subject, []).append(example)
    draw, subjects = random.Random(f"{name} {seed}"), list(groups)
    draw.shuffle(subjects)
    cut = len(subjects) // 10
    held_out, train = ([example for subject in some for example in groups[subject]] for some in (subjects[:cut], subjects[cut:]))
    draw.shuffle(train)
    draw.shuffle(held_out)
    return tuple(train), tuple(held_out)


def translation_emoji(seed: int) -> Task:
    """What emoji are called, from English to German, Spanish and French: "en>de red apple" -> "roter apfel".

    3,972 phrases a language. Skin tones and genders of one phrase are the same subject: all of them, in every language,
    are trained or all are held out. Copying the English words has a bleu of 0.01 of 100.
    """
    about = [(base(english), Example(f"en>{language} {english}", name))
             for language in LANGUAGES for english, name in emoji_names(language).items()]
    return Task("translation-emoji", *parts("translation-emoji", seed, about), ("bleu", "exact_match", "token_f1"))


def base(english: str) -> str:
    """A phrase without the words that make variants of it."""
    return " ".join(re.findall(r"[\w-]+", VARIANT.sub(" ", english.lower())))


def summarization_wiki(seed: int) -> Task:
    """The first sentence of an article, to 200 characters, and the one line that describes it: 9,862 of them.

    Of seed 0, copying the sentence has rouge_l 0.28, the line that stands most often 0.10.
    """
    about = [(article.title, Example(first_sentence(article.lead), article.description)) for article in described()]
    return Task("summarization-wiki", *parts("summarization-wiki", seed, about), ("rouge_l", "token_f1", "exact_match"))


def first_sentence(lead: str) -> str:
    """A lead up to its first full stop that ends a sentence, or to the last whole word within 200 characters."""
    found = SENTENCE.match(lead)
    sentence = " ".join((found[0] if found else lead).split())
    return sentence if len(sentence) <= LONGEST_LEAD else sentence[:LONGEST_LEAD + 1].rpartition(" ")[0]


def question_answering_wiki(seed: int) -> Task:
    """A title and the line that describes it: "What is Choir?" -> "Ensemble of singers".

    Nothing in the question but the title helps: what is right on held-out titles is knowledge of words, not of the article.
    Of seed 0, the line that stands most often has token_f1 0.10.
    """
    about = [(article.title, Example(f"{'Who' if article.topic == 'People' else 'What'} is {article.title}?", article.description))
             for article in described()]
    return Task("question-answering-wiki", *parts("question-answering-wiki", seed, about), ("token_f1", "rouge_l", "exact_match"))


def described() -> list[Article]:
    return [article for article in articles() if article.description]


def dialogue_chatterbot(seed: int) -> Task:
    """What is said to a chatterbot and its reply, one line of at most 120 characters. The same remark is one subject.

    Each pair counts once: 1,050 of the corpus's 2,026 dialogues are ten exchanges about broken computers, over and over.
    That leaves 767 examples, 69 held out of seed 0; repeating the remark has token_f1 0.06.
    """
    pairs = {(ascii_folded(said), ascii_folded(reply)): None for said, reply in exchanges()}
    about = [(" ".join(re.findall(r"\w+", said.lower())), Example(said, reply)) for said, reply in pairs
             if "\n" not in said + reply and len(reply) <= LONGEST_REPLY]
    return Task("dialogue-chatterbot", *parts("dialogue-chatterbot", seed, about), ("token_f1", "bleu", "exact_match"))


def topics(seed: int) -> Task:
    """Leads of 9,033 articles in 11 classes; the thousand that nobody has categorized are left out.

    Of seed 0, "People" for everyone has accuracy 0.23 and f1 0.03.
    """
    return by_topic("topics", seed, lambda topic: topic)


def sciences(seed: int) -> Task:
    """The same leads in two classes: is an article about a science or technology, or about anything else?

    Of seed 0, "other" for everyone has accuracy 0.67 and f1 0.40, a logistic regression on counts of words 0.95 and 0.94.
    """
    return by_topic("sciences", seed, lambda topic: "science" if topic in SCIENCES else "other")


def by_topic(name: str, seed: int, class_of: Callable[[str], str]) -> Task:
    """Leads of the articles that somebody has categorized, in classes of topics."""
    about = [(article.title, Example(article.lead, class_of(article.topic))) for article in articles()
             if article.topic != "Uncategorized"]
    classes = tuple(sorted({example.target for _, example in about}))
    return Task(name, *parts(name, seed, about), ("accuracy", "f1", "precision", "recall"), classes, "word")
