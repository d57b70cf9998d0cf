"""Exact match, F1 of answers and F1 of entities, against hand-made cases and slow oracles."""

import itertools
import random

import pytest

from tritune.errors import TrituneError
from tritune.tasks.span_metrics import answer_f1, entities, entity_f1, iob2, names_entities, normalized, tag_accuracy

PAIRS = [  # predicted, gold answers, exact match, F1
    ("Denver Broncos", ["Denver Broncos"], 1, 1),
    ("the Denver  Broncos!", ["Denver Broncos"], 1, 1),
    ("Broncos", ["Denver Broncos"], 0, 2 / 3),
    ("Denver Broncos won it", ["Denver Broncos"], 0, 4 / 6),
    ("Broncos Broncos", ["Broncos"], 0, 2 / 3),  # a word counts as often as both have it
    ("Broncos", ["Panthers"], 0, 0),
    ("in 1968", ["1967", "in 1968", "1968"], 1, 1),
    ("year 1968", ["1967", "in 1968", "1968"], 0, 2 / 3),  # the best of all gold answers
    ("Ünïcode Straße", ["ünïcode straße"], 1, 1),
    ("naïve café", ["naive café"], 0, 1 / 2),  # accents are letters
    ("«Denver»", ["Denver"], 0, 0),  # only ASCII punctuation is dropped
    ("東京", ["東京"], 1, 1),
    ("$1,345,596", ["1345596"], 1, 1),
    ("-", ["-"], 1, 1),  # nothing is left of either
    ("-", ["Denver"], 0, 0),
    ("the", ["an"], 1, 1),
    ("theatre", ["atre"], 0, 0),  # an article is a whole word
    ("", ["Denver"], 0, 0),
    ("", [], 1, 1),
    ("Denver", [], 0, 0),
    ("", ["..."], 1, 1),
    ("Denver", ["...", "Denver"], 1, 1),
    ("\xa0Denver\n", ["Denver"], 1, 1),
]


@pytest.mark.parametrize(("predicted", "gold", "exact", "f1"), PAIRS)
def test_answers(predicted, gold, exact, f1):
    assert answer_f1([predicted], [gold]) == {"exact_match": exact, "f1": pytest.approx(f1, abs=1e-12)}


def test_answers_are_averaged_and_kinds_of_questions_told_apart():
    scores = answer_f1(["a cat", "dog", "", "fish"], [["cat"], ["big dog"], [], []])
    assert scores == pytest.approx(
        {"exact_match": 0.5, "f1": (1 + 2 / 3 + 1) / 4, "f1_answerable": 5 / 6, "f1_unanswerable": 0.5}
    )


def test_normalized_is_a_fixed_point():
    for text, golds, *_ in PAIRS:
        for one in (text, *golds):
            assert normalized(normalized(one)) == normalized(one)


def test_answers_that_cannot_be_scored():
    for predicted, gold in (([], []), (["a"], [])):
        with pytest.raises(TrituneError, match="cannot score"):
            answer_f1(predicted, gold)


def entities_by_force(tags):
    """Every span that is one entity: it begins where one must begin, goes on throughout, and cannot go on further."""

    def split(tag):
        return (None, None) if tag == "O" else tuple(tag.split("-"))

    def joined(left, right):
        """Whether two neighbouring tags belong to one entity."""
        (before, one), (prefix, other) = split(left), split(right)
        return one is not None and one == other and prefix in "IEL" and before in "BI"

    found = []
    for start, end in itertools.combinations(range(len(tags) + 1), 2):
        inner = tags[start:end]
        whole = "O" not in inner and all(joined(*pair) for pair in itertools.pairwise(inner))
        begins = start == 0 or not joined(tags[start - 1], tags[start])
        ends = end == len(tags) or not joined(tags[end - 1], tags[end])
        if whole and begins and ends:
            found.append((split(inner[0])[1], start, end))
    return sorted(found, key=lambda entity: entity[1])


TAGS = ["O", *(f"{prefix}-{kind}" for prefix in "BIES" for kind in ("X", "Y"))]


def test_entities_of_all_short_sentences():
    for length in (0, 1, 2, 3):
        for tags in itertools.product(TAGS, repeat=length):
            assert entities(tags) == entities_by_force(tags), tags


def test_schemes_of_one_sentence_have_the_same_entities():
    expected = [("X", 0, 2), ("X", 2, 3), ("Y", 4, 5)]
    for tags in ("I-X I-X B-X O I-Y", "B-X I-X B-X O B-Y", "B-X E-X S-X O S-Y", "B-X L-X U-X O U-Y"):
        assert entities(tags.split()) == expected


def test_iob2_keeps_the_entities_and_is_idempotent():
    for tags in itertools.product(["O", "B-X", "I-X", "I-Y"], repeat=4):
        turned = iob2(tags)
        assert entities(turned) == entities(tags) and iob2(turned) == turned
        starts = {start for _, start, _ in entities(tags)}
        assert [place for place, tag in enumerate(turned) if tag[0] == "B"] == sorted(starts)
    assert iob2(["S-X", "I-X"]) == ["S-X", "I-X"]


def test_entity_f1_against_counting():
    chance = random.Random(0)
    for _ in range(50):
        sentences = [[chance.choices(TAGS[:5], k=length) for _ in range(2)] for length in (1, 4, 6)]
        gold, predicted = ([pair[side] for pair in sentences] for side in (0, 1))
        right = guessed = there = 0
        for ours, theirs in zip(gold, predicted, strict=True):
            ours, theirs = entities_by_force(ours), entities_by_force(theirs)
            right += sum(one in ours for one in theirs)
            guessed, there = guessed + len(theirs), there + len(ours)
        precision, recall = (right / count if count else 0.0 for count in (guessed, there))
        f1 = 2 * precision * recall / (precision + recall) if right else 0.0
        pairs = [(a, b) for one, other in sentences for a, b in zip(one, other, strict=True)]
        accuracy = sum(a == b for a, b in pairs) / len(pairs)
        expected = {"entity_f1": f1, "precision": precision, "recall": recall, "accuracy": accuracy}
        assert entity_f1(predicted, gold) == pytest.approx(expected)


def test_the_same_entity_in_two_sentences_counts_twice():
    assert entity_f1([["B-X"], ["O"]], [["B-X"], ["B-X"]])["recall"] == 0.5


def test_tags_that_cannot_be_scored():
    for predicted, gold in (([], []), ([["O"]], [["O", "O"]]), ([["O", "O"], []], [["O"], ["O"]])):
        with pytest.raises(TrituneError, match="cannot score"):
            tag_accuracy(predicted, gold)


def test_what_names_entities():
    assert names_entities(["O", "B-X"]) and names_entities(["U-X"])
    assert not names_entities(["O", "NOUN", "X-Y"])
