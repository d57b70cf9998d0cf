"""A generated acceptability corpus: English-like sentences, half of them ungrammatical, that no word count can judge.

What: labelled sentences in the manner of CoLA, made without any download, for the demo and for tests that need a task
a tiny Transformer learns from scratch in a minute and loses again when its weights are crudely quantized.  Sentences
come in twins, an acceptable one and an unacceptable one of the same length.  Three dependencies are covered:

* subject-verb agreement: "the dog near the cats often sleeps" / "the cats near the dog often sleeps";
* reflexive agreement in number and gender: "the king that the girls saw praised himself" / "the girls that the king
  saw praised himself";
* paired conjunctions: "both the king and the nurse saw either the dog or the cat" / "either the king and the nurse saw
  both the dog or the cat".

Why this way: in most twins two phrases have traded places, so the twins are the very same bag of words; the others
("plain": "the dog often sleeps" / "the dog often sleep") differ in the form of one word, and every form is as frequent
in one class as in the other.  Word counts and length therefore predict nothing (a linear classifier of them is at
chance, which the tests check).  An adverb between the intruding noun and the verb, further nouns of random number, and
templates in which the first noun is not the subject keep neighbouring words from giving the label away, so that a model
has to relate distant words: attention counts.  Common words are far more common than rare ones, as in real text, so a
model learns the rule on the common words first and its accuracy rises gradually.

How to learn it: twins stand side by side (rows 2k and 2k + 1) and a teacher trained from scratch should see both in one
batch.  What the words of a sentence contribute regardless of order then cancels, and the rule is found within a few
hundred steps; with rows shuffled one by one a small model can sit at chance for thousands.  A model that starts from a
teacher needs no such care.

Rejected: traded places only, without plain twins, because a tiny model then stays at chance for minutes; negative
polarity ("no dog ... ever"), because its twin has the word pair "that no", which no acceptable sentence has; sentences
of CoLA itself, because they cannot be shipped and a tiny model cannot learn them from scratch.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TypeVar

from ..errors import TrituneError

MAX_WORDS = 16
"""No sentence has more words than this."""

_MASCULINE = "boy boys, man men, king kings, father fathers, uncle uncles, prince princes, actor actors, monk monks"
_FEMININE = (
    "girl girls, woman women, queen queens, mother mothers, aunt aunts, princess princesses, actress actresses, "
    "nun nuns"
)
_NEUTRAL = (
    "dog dogs, cat cats, child children, doctor doctors, horse horses, teacher teachers, nurse nurses, judge judges, "
    "guard guards, pilot pilots, baker bakers, clerk clerks"
)
_VERBS = "sleeps sleep, runs run, sings sing, waits wait, laughs laugh, swims swim, dances dance, travels travel"
_COPULAS = "is are, was were, seems seem"


def _forms(text: str) -> tuple[tuple[str, str], ...]:
    """Read "singular plural, singular plural" into pairs."""
    pairs = [entry.split() for entry in text.split(",")]
    return tuple((singular, plural) for singular, plural in pairs)


_GENDERED = {"himself": _forms(_MASCULINE), "herself": _forms(_FEMININE)}
_GENDERS = (*_GENDERED.values(), _forms(_NEUTRAL))
_AGREEING = _forms(_VERBS)
_LINKING = _forms(_COPULAS)
_ADJECTIVES = ("old", "young", "tall", "tired", "happy", "quiet", "proud", "clever")
_ADVERBS = ("often", "still", "now", "clearly", "always")
_PREPOSITIONS = ("near", "behind", "beside", "with", "opposite")
_PAST = ("saw", "admired", "chased", "praised", "blamed", "helped", "followed", "trusted", "hurt", "thanked")
_SAYING = ("said", "thought", "knew", "believed", "claimed")
_CONJUNCTIONS = (("both", "and"), ("either", "or"), ("neither", "nor"))
_DETERMINERS = (("this", "these"), ("every", "all"), ("one", "two"))

# Templates.  S: the noun phrase the verb or reflexive depends on; A: the one it trades places with; X: any noun phrase;
# Y: one of the number of S; V: what depends on S; R: an adverb; r: perhaps an adverb; P: preposition; T: past
# transitive verb; C: verb of saying; c, d: second halves of conjunctions.  Where A comes last before the verb of
# agreement, R keeps the two apart.
_AGREEMENT = (
    "S P A R V",
    "S P A P X r V",
    "S P X P A R V",
    "S that A T r V",
    "S that A P X T r V",
    "S that X P A T r V",
    "S that T A R V",
    "P A S R V",
    "P A S that X T r V",
    "A C that S P X r V",
    "A C that S that X T r V",
)
_REFLEXIVE = (
    "S that A T r V",
    "S that T A r V",
    "S P A r V",
    "S that A P X T r V",
    "P A S r V",
    "A C that S r V",
    "A C that S P X r V",
    "A C that S that X T r V",
)
_PLAIN_AGREEMENT = ("S r V", "S P Y r V", "S that T Y r V", "P Y S r V")
_PLAIN_REFLEXIVE = ("S r V",)
_CORRELATIVE = "S X c X T A X d X"
_SHARES = {
    "agreement": 0.3,
    "reflexive": 0.18,
    "correlative": 0.12,
    "agreement plain": 0.24,
    "reflexive plain": 0.16,
}
_ADJECTIVE_SHARE = 0.2
_ADVERB_SHARE = 0.5
_DETERMINER_SHARE = 0.5
_SKEW = 2.0

_T = TypeVar("_T")
_Piece = tuple[str, list[str]]
_Twins = tuple[list[_Piece], dict[str, list[str]]]


def _pick(forms: tuple[str, str], number: int) -> tuple[str, str]:
    """Return the form of that number, then the other form."""
    return forms[number], forms[1 - number]


def _draw(rng: random.Random, items: Sequence[_T]) -> _T:
    """Return an item, the earlier ones far more often than the later ones."""
    return items[int(len(items) * rng.random() ** _SKEW)]


def _noun(rng: random.Random) -> tuple[str, str]:
    """Return both forms of any noun."""
    return _draw(rng, rng.choice(_GENDERS))


def _phrase(rng: random.Random, noun: tuple[str, str], number: int) -> list[str]:
    """Return a noun phrase: a determiner that may show the number, perhaps an adjective, the noun."""
    determiner = _draw(rng, _DETERMINERS)[number] if rng.random() < _DETERMINER_SHARE else "the"
    adjective = [_draw(rng, _ADJECTIVES)] if rng.random() < _ADJECTIVE_SHARE else []
    return [determiner, *adjective, noun[number]]


def _expand(rng: random.Random, template: str, chosen: dict[str, list[str]]) -> list[_Piece]:
    """Give every symbol of a template its words; `chosen` has those of the symbols that depend on one another."""
    draw: dict[str, Callable[[], list[str]]] = {
        "X": lambda: _phrase(rng, _noun(rng), rng.randrange(2)),
        "R": lambda: [_draw(rng, _ADVERBS)],
        "r": lambda: [_draw(rng, _ADVERBS)] if rng.random() < _ADVERB_SHARE else [],
        "P": lambda: [_draw(rng, _PREPOSITIONS)],
        "T": lambda: [_draw(rng, _PAST)],
        "C": lambda: [_draw(rng, _SAYING)],
        "that": lambda: ["that"],
    }
    return [(symbol, chosen[symbol] if symbol in chosen else draw[symbol]()) for symbol in template.split()]


def _agreement(rng: random.Random, plain: bool) -> _Twins:
    """Return a sentence whose verb agrees with S in number; A has the other number, Y the same."""
    number = rng.randrange(2)
    subject = other = _noun(rng)
    while other == subject:
        other = _noun(rng)
    if rng.random() < 0.5:
        right, wrong = [[form] for form in _pick(_draw(rng, _AGREEING), number)]
    else:
        adjective = _draw(rng, _ADJECTIVES)
        right, wrong = [[form, adjective] for form in _pick(_draw(rng, _LINKING), number)]
    chosen = {"S": _phrase(rng, subject, number), "V": right}
    if plain:
        chosen["Y"] = _phrase(rng, other, number)
        return _expand(rng, rng.choice(_PLAIN_AGREEMENT), chosen), {"V": wrong}
    chosen["A"] = _phrase(rng, other, 1 - number)
    return _expand(rng, rng.choice(_AGREEMENT), chosen), {"S": chosen["A"], "A": chosen["S"]}


def _reflexive(rng: random.Random, plain: bool) -> _Twins:
    """Return a sentence whose reflexive matches S in number and gender; A does not match it."""
    antecedents = {
        "himself": (_draw(rng, _GENDERED["himself"]), 0),
        "herself": (_draw(rng, _GENDERED["herself"]), 0),
        "themselves": (_draw(rng, rng.choice(list(_GENDERED.values()))), 1),
    }
    right, wrong = rng.sample(sorted(antecedents), 2)
    verb = _draw(rng, _PAST)
    chosen = {"S": _phrase(rng, *antecedents[right]), "V": [verb, right]}
    if plain:
        return _expand(rng, rng.choice(_PLAIN_REFLEXIVE), chosen), {"V": [verb, wrong]}
    chosen["A"] = _phrase(rng, *antecedents[wrong])
    return _expand(rng, rng.choice(_REFLEXIVE), chosen), {"S": chosen["A"], "A": chosen["S"]}


def _correlative(rng: random.Random) -> _Twins:
    """Return a sentence with two different paired conjunctions; S and A are their first halves."""
    first, second = rng.sample(_CONJUNCTIONS, 2)
    chosen = {"S": [first[0]], "A": [second[0]], "c": [first[1]], "d": [second[1]]}
    return _expand(rng, _CORRELATIVE, chosen), {"S": chosen["A"], "A": chosen["S"]}


def _twins(rng: random.Random) -> tuple[str, str]:
    """Return an acceptable sentence and its unacceptable twin."""
    (kind,) = rng.choices(list(_SHARES), list(_SHARES.values()))
    family, _, plain = kind.partition(" ")
    if family == "correlative":
        pieces, changed = _correlative(rng)
    elif family == "agreement":
        pieces, changed = _agreement(rng, bool(plain))
    else:
        pieces, changed = _reflexive(rng, bool(plain))
    good = [word for _, part in pieces for word in part]
    bad = [word for symbol, part in pieces for word in changed.get(symbol, part)]
    return " ".join(good), " ".join(bad)


def _split(size: int, seen: set[str], rng: random.Random) -> list[tuple[str, int]]:
    """Return `size` sentences, none of them in `seen`, twins side by side; adds them to `seen`."""
    rows: list[tuple[str, int]] = []
    while len(rows) < size:
        good, bad = _twins(rng)
        if good in seen or bad in seen or len(good.split()) > MAX_WORDS:
            continue
        seen.update((good, bad))
        pair = [(good, 1), (bad, 0)]
        rng.shuffle(pair)
        rows += pair
    return rows


def generate_corpus(train_size: int, dev_size: int, seed: int) -> dict[str, list[tuple[str, int]]]:
    """Generate a balanced acceptability corpus.

    Args:
        train_size: Sentences in "train"; even, because sentences come in twins.
        dev_size: Sentences in "validation"; even as well.
        seed: The same seed and sizes give the same corpus.  "validation" does not depend on `train_size`.

    Returns:
        "train" and "validation", each a list of (sentence, label), label 1 for acceptable and 0 for not.  Rows 2k and
        2k + 1 are twins, in random order.  No sentence occurs twice, within a split or across them, and half of each
        split is acceptable.

    Raises:
        TrituneError: A size is negative or odd.

    Example:
        >>> corpus = generate_corpus(train_size=6, dev_size=4, seed=0)
        >>> [len(rows) for rows in corpus.values()], sum(label for _, label in corpus["train"])
        ([6, 4], 3)
        >>> for sentence, label in corpus["validation"]:
        ...     print(label, sentence)
        0 the uncle hurt themselves
        1 the uncle hurt himself
        0 both the fathers or every judge blamed either all queens and two children
        1 either the fathers or every judge blamed both all queens and two children
    """
    for name, size in (("train_size", train_size), ("dev_size", dev_size)):
        if size < 0 or size % 2:
            raise TrituneError(f"{name} is {size}: sentences come in pairs, give an even number that is not negative")
    rng = random.Random(seed)
    seen: set[str] = set()
    validation = _split(dev_size, seen, rng)
    return {"train": _split(train_size, seen, rng), "validation": validation}


def vocabulary() -> list[str]:
    """Return every word a sentence can contain, sorted.

    Example:
        >>> words = vocabulary()
        >>> len(words), words[0], "themselves" in words
        (128, 'actor', True)
    """
    pairs = (*_GENDERS, _AGREEING, _LINKING, _CONJUNCTIONS, _DETERMINERS)
    words = {word for group in pairs for pair in group for word in pair}
    for group in (_ADJECTIVES, _ADVERBS, _PREPOSITIONS, _PAST, _SAYING, ("himself", "herself", "themselves")):
        words.update(group)
    return sorted(words | {"the", "that"})
