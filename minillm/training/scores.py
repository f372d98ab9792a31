"""Placeholder until the scores come."""


def exact_match(answers, wanted):
    return sum(a == w for a, w in zip(answers, wanted, strict=True)) / len(wanted)


SCORES = {"exact_match": exact_match}
for _n in ("accuracy", "f1", "precision", "recall", "token_f1", "bleu", "rouge_l", "character_accuracy"):
    SCORES[_n] = exact_match
