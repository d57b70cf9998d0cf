"""What scores spans: exact match and F1 of answers (SQuAD), and F1 of entities (CoNLL).

Entities are read out of tags by one rule, which serves IOB1, IOB2, BIOES and BILOU alike and gives the counts of the
shared task's own script. seqeval does the same; it was not taken, because its last release is of 2020.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence
from itertools import compress
from statistics import fmean

import numpy as np

from ..engine.answers import OUTSIDE
from ..errors import TrituneError

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
# Prefixes of tags inside an entity, and of those after which it is over.
_INSIDE, _LAST = ("I-", "E-", "L-"), ("E-", "L-", "S-", "U-")


def normalized(answer: str) -> str:
    """An answer as SQuAD compares it: lower case, without punctuation and articles, single spaces (2016, section 6.1).

    >>> normalized("The  Eiffel Tower!")
    'eiffel tower'
    """
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split())


def _word_f1(predicted: str, gold: str) -> float:
    """Harmonic mean of precision and recall of the words of two normalized answers; no words match only no words."""
    words = predicted.split(), gold.split()
    if not all(words):
        return float(predicted == gold)
    common = (Counter(words[0]) & Counter(words[1])).total()
    return 2 * common / (len(words[0]) + len(words[1]))


def answer_f1(predicted: Sequence[str], gold: Sequence[Sequence[str]]) -> dict[str, float]:
    """`exact_match` and `f1`, means over the questions; of several gold answers the best counts.

    Rajpurkar et al., SQuAD (EMNLP 2016), section 6.1; for questions without an answer, *Know What You Don't Know* (ACL
    2018): the right answer is then the empty one. Where there are both kinds of questions, `f1_answerable` and
    `f1_unanswerable` tell them apart.

    Args:
        predicted: one answer per question, empty for none.
        gold: one list per question of the answers that are right, empty where there is no answer.

    Raises:
        TrituneError: there is no question, or not one answer per question.

    >>> answer_f1(["the red house"], [["Red house", "a house"]])
    {'exact_match': 1.0, 'f1': 1.0}
    """
    return answer_means(answer_scores(predicted, gold))


def answer_scores(predicted: Sequence[str], gold: Sequence[Sequence[str]]) -> np.ndarray:
    """Exact match, F1, and whether there is an answer, float64 (questions, 3): what `answer_f1` averages."""
    if not len(predicted) == len(gold) > 0:
        raise TrituneError(f"cannot score {len(predicted)} answers to {len(gold)} questions")
    scores = []
    for answer, texts in zip(map(normalized, predicted), gold, strict=True):
        # What is punctuation alone says nothing that could be compared.
        right = [text for text in map(normalized, texts) if text] or [""]
        scores.append((float(answer in right), max(_word_f1(answer, text) for text in right), right != [""]))
    return np.array(scores, np.float64)


def answer_means(scores: np.ndarray) -> dict[str, float]:
    """The metrics of `answer_f1` from the `answer_scores` of some questions, (questions, 3)."""
    exact, f1, answerable = scores.T.tolist()
    means = {"exact_match": fmean(exact), "f1": fmean(f1)}
    if 0 < sum(answerable) < len(scores):
        means["f1_answerable"] = fmean(compress(f1, answerable))
        means["f1_unanswerable"] = fmean(one for one, has_answer in zip(f1, answerable, strict=True) if not has_answer)
    return means


def entities(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """The entities of a sentence: type, first word, and the word after the last.

    A tag goes on with the entity before it if it is of the same type, its own prefix says "inside" (I, E, L) and the
    prefix before it does not say "over" (E, L, S, U); every other tag but O begins an entity.

    >>> entities(["B-PER", "I-PER", "O", "I-LOC", "B-LOC"])
    [('PER', 0, 2), ('LOC', 3, 4), ('LOC', 4, 5)]
    """
    found: list[tuple[str, int, int]] = []
    before = OUTSIDE
    for place, tag in enumerate(tags):
        if tag != OUTSIDE:
            kind, first = _kind(tag), place
            if _goes_on(before, tag):
                kind, first, _ = found.pop()
            found.append((kind, first, place + 1))
        before = tag
    return found


def iob2(tags: Sequence[str]) -> list[str]:
    """Tags whose entities all begin with B; those of another scheme than IOB1 and IOB2 stay as they are.

    >>> iob2(["I-PER", "I-PER", "B-PER", "O", "I-LOC"])
    ['B-PER', 'I-PER', 'B-PER', 'O', 'B-LOC']
    """
    if any(tag != OUTSIDE and tag[:2] not in ("B-", "I-") for tag in tags):
        return list(tags)
    pairs = zip([OUTSIDE, *tags], tags, strict=False)
    return [f"B-{_kind(tag)}" if tag[:2] == "I-" and not _goes_on(before, tag) else tag for before, tag in pairs]


def names_entities(tags: Sequence[str]) -> bool:
    """Whether tags mark entities (B-PER) rather than words (NOUN)."""
    return any(tag[1:2] == "-" and tag[0] in "BIESLU" for tag in tags)


def entity_f1(predicted: Sequence[Sequence[str]], gold: Sequence[Sequence[str]]) -> dict[str, float]:
    """`entity_f1`, `precision` and `recall` of whole entities, and `accuracy` of the words' tags.

    An entity counts if type and both borders are right (Tjong Kim Sang and De Meulder, CoNLL-2003, section 4); counts
    are summed over all sentences. A ratio of nothing to nothing is 0.

    Args:
        predicted, gold: one list per sentence, with a tag per word.

    Raises:
        TrituneError: there are no words, or sentences differ in length.
    """
    return entity_ratios(tag_counts(predicted, gold))


def tag_accuracy(predicted: Sequence[Sequence[str]], gold: Sequence[Sequence[str]]) -> dict[str, float]:
    """`accuracy`, the share of words with the right tag; inputs and errors are those of `entity_f1`."""
    return accuracy_ratio(tag_counts(predicted, gold))


def tag_counts(predicted: Sequence[Sequence[str]], gold: Sequence[Sequence[str]]) -> np.ndarray:
    """Counts of every sentence, int64 (sentences, 5): what `entity_f1` sums up.

    Entities that are right, predicted, and true; words with the right tag, and words.
    """
    words = sum(map(len, gold))
    if not words or list(map(len, predicted)) != list(map(len, gold)):
        raise TrituneError(f"cannot score the tags of {sum(map(len, predicted))} words against those of {words}")
    counts = []
    for theirs, ours in zip(predicted, gold, strict=True):
        found, true = set(entities(theirs)), set(entities(ours))
        same = sum(one == other for one, other in zip(theirs, ours, strict=True))
        counts.append((len(found & true), len(found), len(true), same, len(ours)))
    return np.array(counts, np.int64)


def entity_ratios(counts: np.ndarray) -> dict[str, float]:
    """The metrics of `entity_f1` from the `tag_counts` of some sentences, (sentences, 5)."""
    right, theirs, ours, *_ = counts.sum(0).tolist()
    return {
        "entity_f1": _ratio(2 * right, theirs + ours),
        "precision": _ratio(right, theirs),
        "recall": _ratio(right, ours),
        **accuracy_ratio(counts),
    }


def accuracy_ratio(counts: np.ndarray) -> dict[str, float]:
    """The metric of `tag_accuracy` from the `tag_counts` of some sentences, (sentences, 5)."""
    *_, same, words = counts.sum(0).tolist()
    return {"accuracy": _ratio(same, words)}


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _kind(tag: str) -> str:
    """The type of a tag; what has no prefix is all type."""
    return tag[2:] if tag[1:2] == "-" else tag


def _goes_on(before: str, tag: str) -> bool:
    inside = tag.startswith(_INSIDE) and before != OUTSIDE and not before.startswith(_LAST)
    return inside and _kind(before) == _kind(tag)
