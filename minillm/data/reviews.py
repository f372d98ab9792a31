"""Reviews by rule: whether one is good or bad hangs on negators and on how strongly a thing is said, so that order counts.

A review is made of clauses: 4 to 11 fillers, a noun, perhaps a negator, perhaps an intensifier or a diminisher, an adjective.
An adjective says +1 or -1, a negator turns that round, an intensifier doubles it and a diminisher halves it. The sum over the
clauses is the score; a review is positive where it is above 0. Scores nearer to 0 than 1 are drawn again.
"""
import random

from minillm.data.examples import Example, Task

LONGEST = 40               # words; the shortest review has 30


def words(text: str) -> list[str]:
    return text.split()


POSITIVE = words("brilliant charming clever delightful elegant enjoyable excellent fine fresh funny good great gripping "
                 "impressive lovely memorable moving pleasant superb wonderful")
NEGATIVE = words("annoying awful bad bland boring clumsy dreadful dull forgettable horrible lame messy poor shallow silly "
                 "stale tedious terrible ugly weak")
NEGATORS = words("hardly never not scarcely")
INTENSIFIERS = words("extremely highly really truly utterly very")
DIMINISHERS = words("barely fairly mildly rather slightly somewhat")
NOUNS = words("acting actor actress audience beginning camera cast chapter character city colour comedy costume dialogue "
              "director drama editing effect ending evening fight film finale forest game garden hero house humour island joke "
              "journey language light lesson love melody middle music mystery novel painting picture place play plot poem "
              "rhythm romance scene score script sequel song stage story style theme villain voice")
FILLERS = words("a about above across after again against ago all almost along already also although always am among an and "
                "another any anyone anything anyway anywhere apparently are around as aside at away back be because been "
                "before behind being below beside besides between beyond both but by can certainly clearly could course did do "
                "does done down during each early either else even eventually ever every everyone everything everywhere few "
                "finally first five for four frankly from further generally given had half has have having he hence her here "
                "hers herself him himself his hour how however i if in indeed inside instead into is it its itself just last "
                "late later let like likely made make many may maybe me meanwhile might mine must my myself near nearly next "
                "nine now of off often on once one only onto or other others otherwise our ours ourselves out outside over own "
                "perhaps possibly said same saw say second see seem seemed seems seen several shall she should since six so "
                "some someone something sometimes somewhere soon still than that the their them then there therefore these "
                "they this those though three through thus time to today together too toward two")


def reviews(seed: int, train: int = 4000, held_out: int = 1000) -> Task:
    """Half of each class in each part; what is held out is in no review to train on. Counting words finds two in three."""
    rng, drawn = random.Random(f"reviews {seed}"), {}
    while len(drawn) < train + held_out:
        drawn[review(rng, positive=len(drawn) % 2 == 1)] = ("negative", "positive")[len(drawn) % 2]
    examples = [Example(text, verdict) for text, verdict in drawn.items()]
    first = examples[:train]
    rng.shuffle(first)
    return Task("reviews", tuple(first), tuple(examples[train:]), ("f1", "accuracy", "precision", "recall"),
                ("negative", "positive"), "word")


def review(rng: random.Random, positive: bool) -> str:
    """One of 30 to 40 words with this verdict."""
    while True:
        text, score, length = [], 0.0, rng.randint(30, LONGEST)
        while len(text) < length:
            more, said = clause(rng)
            text += more
            score += said
        if len(text) <= LONGEST and abs(score) >= 1 and (score > 0) == positive:
            return " ".join(text)


def clause(rng: random.Random) -> tuple[list[str], float]:
    """The words, and what they say."""
    sign, degree = rng.choice((-1, 1)), rng.random()
    text, said = [*rng.choices(FILLERS, k=rng.randint(4, 11)), rng.choice(NOUNS)], float(sign)
    if rng.random() < 0.25:
        text.append(rng.choice(NEGATORS))
        said = -said
    if degree < 0.25:
        text.append(rng.choice(INTENSIFIERS))
        said *= 2
    elif degree < 0.45:
        text.append(rng.choice(DIMINISHERS))
        said /= 2
    return [*text, rng.choice(POSITIVE if sign > 0 else NEGATIVE)], said
