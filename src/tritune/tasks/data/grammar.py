"""A generated acceptability corpus: English-like sentences, half of them ungrammatical, that no word count can judge.

Labelled sentences in the manner of CoLA, made without any download, for the demo and for tests: a tiny Transformer
learns them from scratch in a minute and loses them again when its weights are crudely quantized. Three dependencies:

* subject-verb agreement: "the dog near the cats often sleeps" / "the cats near the dog often sleeps";
* reflexive agreement in number and gender: "the king that the girls saw praised himself" / "the girls that the king
  saw praised himself";
* paired conjunctions: "both the king and the nurse saw either the dog or the cat" / "either the king and the nurse saw
  both the dog or the cat".

Every sentence has a twin of the other label in which exactly two phrases have traded places. Twins are the same bag of
words and in the same split, so any classifier of word counts or of length, linear or not, is right exactly half of the
time. An adverb between the intruding noun and the verb, further nouns of random number, and templates in which the
first noun is not the subject keep neighbouring words from giving most labels away: attention counts. Easy twins of two
short clauses ("the dog sleeps and the cats run" / "the cats sleeps and the dog run") are among them, and common words
are far more common than rare ones, as in real text, so a model learns the rule there first and improves gradually.

Twins are neighbours (rows 2k and 2k + 1), and a teacher trained from scratch should see both in one batch. What the
words contribute regardless of order then cancels, and the rule is found within a few hundred steps; with rows shuffled
one by one a small model can stay at chance for thousands. A model that starts from a teacher needs no such care.

Rejected: changing the form of a verb or reflexive to make the twin, because a nonlinear classifier of word counts then
solves it; no easy twins at all, because a tiny model then stays at chance for minutes; negative polarity ("no dog ...
ever"), because its twin has the word pair "that no", which no acceptable sentence has; sentences of CoLA itself,
because they cannot be shipped and a tiny model cannot learn them from scratch.
"""

import random
from collections.abc import Callable, Sequence
from typing import TypeVar

from ...errors import TrituneError

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
    """Pairs of "singular plural, singular plural"."""
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
# V: what depends on S; W: what depends on A; R: an adverb; r: perhaps an adverb; P: preposition; T: past
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
_TWO_CLAUSES = "S V and A W"
_CORRELATIVE = "S X c X T A X d X"
_ADJECTIVE_SHARE = 0.1
_ADVERB_SHARE = 0.5
_DETERMINER_SHARE = 0.5
_SKEW = 3.0

_T = TypeVar("_T")
_Piece = tuple[str, list[str]]


def _draw(rng: random.Random, items: Sequence[_T]) -> _T:
    """An item, the earlier ones far more often than the later ones."""
    return items[int(len(items) * rng.random() ** _SKEW)]


def _noun(rng: random.Random) -> tuple[str, str]:
    """Both forms of any noun."""
    return _draw(rng, rng.choice(_GENDERS))


def _phrase(rng: random.Random, noun: tuple[str, str], number: int) -> list[str]:
    """A noun phrase: a determiner that may show the number, perhaps an adjective, the noun."""
    determiner = _draw(rng, _DETERMINERS)[number] if rng.random() < _DETERMINER_SHARE else "the"
    adjective = [_draw(rng, _ADJECTIVES)] if rng.random() < _ADJECTIVE_SHARE else []
    return [determiner, *adjective, noun[number]]


def _expand(rng: random.Random, template: str, chosen: dict[str, list[str]]) -> list[_Piece]:
    """The words of every symbol of a template; `chosen` has those of the symbols that depend on one another."""
    draw: dict[str, Callable[[], list[str]]] = {
        "X": lambda: _phrase(rng, _noun(rng), rng.randrange(2)),
        "R": lambda: [_draw(rng, _ADVERBS)],
        "r": lambda: [_draw(rng, _ADVERBS)] if rng.random() < _ADVERB_SHARE else [],
        "P": lambda: [_draw(rng, _PREPOSITIONS)],
        "T": lambda: [_draw(rng, _PAST)],
        "C": lambda: [_draw(rng, _SAYING)],
    }
    words = {"that": ["that"], "and": ["and"], **chosen}
    return [(symbol, words[symbol] if symbol in words else draw[symbol]()) for symbol in template.split()]


def _predicate(rng: random.Random, number: int) -> list[str]:
    """A verb of that number, or a copula of that number and an adjective."""
    if rng.random() < 0.5:
        return [_draw(rng, _AGREEING)[number]]
    return [_draw(rng, _LINKING)[number], _draw(rng, _ADJECTIVES)]


def _agreement(rng: random.Random, template: str) -> list[_Piece]:
    """A sentence whose V agrees with S in number, and its W (if any) with A; A has the other number."""
    number = rng.randrange(2)
    subject = other = _noun(rng)
    while other == subject:
        other = _noun(rng)
    chosen = {
        "S": _phrase(rng, subject, number),
        "V": _predicate(rng, number),
        "A": _phrase(rng, other, 1 - number),
        "W": _predicate(rng, 1 - number),
    }
    return _expand(rng, template, chosen)


def _reflexive(rng: random.Random, template: str) -> list[_Piece]:
    """A sentence whose V is reflexive to S in number and gender, and its W (if any) to A; A does not match S."""
    antecedents = {
        "himself": (_draw(rng, _GENDERED["himself"]), 0),
        "herself": (_draw(rng, _GENDERED["herself"]), 0),
        "themselves": (_draw(rng, rng.choice(list(_GENDERED.values()))), 1),
    }
    right, other = rng.sample(sorted(antecedents), 2)
    chosen = {
        "S": _phrase(rng, *antecedents[right]),
        "V": [_draw(rng, _PAST), right],
        "A": _phrase(rng, *antecedents[other]),
        "W": [_draw(rng, _PAST), other],
    }
    return _expand(rng, template, chosen)


def _correlative(rng: random.Random, template: str) -> list[_Piece]:
    """A sentence with two different paired conjunctions; S and A are their first halves."""
    first, second = rng.sample(_CONJUNCTIONS, 2)
    chosen = {"S": [first[0]], "A": [second[0]], "c": [first[1]], "d": [second[1]]}
    return _expand(rng, template, chosen)


# What makes a sentence, of which templates, and its share.
_KINDS: tuple[tuple[Callable[[random.Random, str], list[_Piece]], Sequence[str], float], ...] = (
    (_agreement, _AGREEMENT, 0.22),
    (_reflexive, _REFLEXIVE, 0.13),
    (_correlative, (_CORRELATIVE,), 0.09),
    (_agreement, (_TWO_CLAUSES,), 0.34),
    (_reflexive, (_TWO_CLAUSES,), 0.22),
)


def _twins(rng: random.Random) -> tuple[str, str]:
    """An acceptable sentence and its unacceptable twin, in which S and A have traded places."""
    ((make, templates, _),) = rng.choices(_KINDS, [share for *_, share in _KINDS])
    pieces = make(rng, rng.choice(templates))
    words = dict(pieces)
    traded = {"S": words["A"], "A": words["S"]}
    good = [word for _, part in pieces for word in part]
    bad = [word for symbol, part in pieces for word in traded.get(symbol, part)]
    return " ".join(good), " ".join(bad)


def _split(size: int, seen: set[str], rng: random.Random) -> list[tuple[str, int]]:
    """`size` sentences, none of them in `seen`, twins side by side; adds them to `seen`."""
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
    """A balanced acceptability corpus.

    Args:
        train_size, dev_size: sentences in "train" and "validation"; even, because sentences come in twins.
        seed: of all draws; "validation" does not depend on `train_size`.

    Returns:
        "train" and "validation", each a list of (sentence, label), label 1 for acceptable and 0 for not.  Rows 2k and
        2k + 1 are twins, in random order.  No sentence occurs twice, within a split or across them, and half of each
        split is acceptable.

    Raises:
        TrituneError: a size is negative or odd.

    Example:
        >>> corpus = generate_corpus(train_size=6, dev_size=4, seed=0)
        >>> [len(rows) for rows in corpus.values()], sum(label for _, label in corpus["train"])
        ([6, 4], 3)
        >>> for sentence, label in corpus["validation"]:
        ...     print(label, sentence)
        0 these girls saw himself and one boy thanked themselves
        1 one boy saw himself and these girls thanked themselves
        0 these proud women that saw this prince admired himself
        1 this prince that saw these proud women admired himself
    """
    for name, size in (("train_size", train_size), ("dev_size", dev_size)):
        if size < 0 or size % 2:
            raise TrituneError(f"{name} is {size}: sentences come in pairs, give an even number that is not negative")
    rng = random.Random(seed)
    seen: set[str] = set()
    validation = _split(dev_size, seen, rng)
    return {"train": _split(train_size, seen, rng), "validation": validation}


def vocabulary() -> list[str]:
    """Every word that a sentence can contain, sorted.

    >>> words = vocabulary()
    >>> len(words), words[0], "themselves" in words
    (128, 'actor', True)
    """
    pairs = (*_GENDERS, _AGREEING, _LINKING, _CONJUNCTIONS, _DETERMINERS)
    words = {word for group in pairs for pair in group for word in pair}
    for group in (_ADJECTIVES, _ADVERBS, _PREPOSITIONS, _PAST, _SAYING, ("himself", "herself", "themselves")):
        words.update(group)
    return sorted(words | {"the", "that"})
