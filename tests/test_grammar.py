"""The generated corpus: balance, no leakage, labels an independent checker agrees with, no shortcut for counters."""

from collections import Counter

import numpy as np
import pytest
from scipy.sparse import csr_matrix, hstack
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import MaxAbsScaler

from tritune.errors import TrituneError
from tritune.tasks.data import grammar

TRAIN, DEV = 8000, 1000
CHANCE = 0.55
BIGRAMS = 0.7

PREPOSITIONS = {"near", "behind", "beside", "with", "opposite"}
ARTICLES = {"the", "this", "these", "every", "all", "one", "two"}
QUALITIES = {"old", "young", "tall", "tired", "happy", "quiet", "proud", "clever"}
SAYING = {"said", "thought", "knew", "believed", "claimed"}
SINGULAR_VERBS = {"sleeps", "runs", "sings", "waits", "laughs", "swims", "dances", "travels", "is", "was", "seems"}
PLURAL_VERBS = {"sleep", "run", "sing", "wait", "laugh", "swim", "dance", "travel", "are", "were", "seem"}
MEN = {"boy", "man", "king", "father", "uncle", "prince", "actor", "monk"}
WOMEN = {"girl", "woman", "queen", "mother", "aunt", "princess", "actress", "nun"}
SECOND_HALF = {"both": "and", "either": "or", "neither": "nor"}


def plural(noun):
    """Judge by the ending: "kings", "princesses", "men", "children"; not "princess"."""
    return noun.endswith(("men", "children")) if noun.endswith("n") else noun.endswith("s") and not noun.endswith("ss")


def head_nouns(words):
    """Split a clause into (how the phrase is introduced, its noun, where the phrase ends)."""
    for start, word in enumerate(words):
        if word in ARTICLES:
            end = start + 1
            while words[end] in QUALITIES:
                end += 1
            yield words[start - 1] if start else "", words[end], end + 1


def subject(words):
    """Find the noun the last verb belongs to: the first phrase of its clause that no preposition introduces."""
    for k, word in enumerate(words):
        if word in SAYING:
            return subject(words[k + 2 :])
    return next(noun for before, noun, _ in head_nouns(words) if before not in PREPOSITIONS)


def oracle(sentence):
    """Say whether the sentence is acceptable, from word lists and endings of this file alone."""
    words = sentence.split()
    if words[0] in SECOND_HALF:
        firsts = [word for word in words if word in SECOND_HALF]
        seconds = [word for word in words if word in SECOND_HALF.values()]
        return [SECOND_HALF[word] for word in firsts] == seconds
    if "and" in words:
        cut = words.index("and")
        return oracle(" ".join(words[:cut])) and oracle(" ".join(words[cut + 1 :]))
    noun, last = subject(words), words[-1]
    if last == "themselves":
        return plural(noun)
    if last in {"himself", "herself"}:
        return noun in (MEN if last == "himself" else WOMEN)
    (verb,) = [word for word in words if word in SINGULAR_VERBS | PLURAL_VERBS]
    return (verb in PLURAL_VERBS) == plural(noun)


@pytest.fixture(scope="module", params=[0, 1])
def corpus(request):
    return grammar.generate_corpus(TRAIN, DEV, request.param)


def test_sizes_and_balance(corpus):
    assert {name: len(rows) for name, rows in corpus.items()} == {"train": TRAIN, "validation": DEV}
    for rows in corpus.values():
        assert Counter(label for _, label in rows) == {0: len(rows) // 2, 1: len(rows) // 2}


def test_no_sentence_twice(corpus):
    sentences = [sentence for rows in corpus.values() for sentence, _ in rows]
    assert len(set(sentences)) == len(sentences)


def test_labels_agree_with_an_independent_checker(corpus):
    wrong = [row for rows in corpus.values() for row in rows if oracle(row[0]) != bool(row[1])]
    assert not wrong, wrong[:5]


def test_checker_on_hand_made_sentences():
    assert oracle("the dog near the cats often sleeps") and not oracle("the dog near the cats often sleep")
    assert oracle("the kings that the girl saw praised themselves")
    assert not oracle("the kings that the girl saw praised himself")
    assert oracle("the king said that the queen praised herself")
    assert not oracle("the king said that the queen praised himself")
    assert oracle("the dog sleeps and the cats run") and not oracle("the cats sleeps and the dog run")
    assert not oracle("both the dog or the cat saw either the man and the girl")


def test_twins_stand_side_by_side(corpus):
    for rows in corpus.values():
        for (one, label), (two, other) in zip(rows[::2], rows[1::2], strict=True):
            assert label != other
            assert Counter(one.split()) == Counter(two.split())


def test_order_within_twins_tells_nothing(corpus):
    first = [label for _, label in corpus["train"][::2]]
    assert 0.47 <= sum(first) / len(first) <= 0.53


def test_words_come_from_the_vocabulary_and_fit(corpus):
    words = grammar.vocabulary()
    used = {word for rows in corpus.values() for sentence, _ in rows for word in sentence.split()}
    assert used == set(words)
    assert words == sorted(set(words))
    assert max(len(sentence.split()) for rows in corpus.values() for sentence, _ in rows) <= grammar.MAX_WORDS


def dev_accuracy(corpus, make, model=None):
    """Fit a classifier on features `make` gives for both splits; return accuracy on validation."""
    (train, y), (dev, z) = (zip(*corpus[name], strict=True) for name in ("train", "validation"))
    scaler = MaxAbsScaler()
    x_train, x_dev = make(train, dev)
    model = (LogisticRegression(max_iter=2000) if model is None else model).fit(scaler.fit_transform(x_train), y)
    return model.score(scaler.transform(x_dev), z)


def grams(largest):
    def make(train, dev):
        counter = CountVectorizer(ngram_range=(1, largest), token_pattern=r"\S+", lowercase=False)
        return counter.fit_transform(train), counter.transform(dev)

    return make


def lengths(train, dev):
    return tuple(csr_matrix(np.array([[len(s.split()), len(s)] for s in rows], dtype=float)) for rows in (train, dev))


def both(train, dev):
    return tuple(hstack(parts) for parts in zip(grams(1)(train, dev), lengths(train, dev), strict=True))


@pytest.mark.parametrize("make", [grams(1), lengths, both], ids=["words", "length", "words and length"])
def test_counts_and_length_predict_nothing(corpus, make):
    assert dev_accuracy(corpus, make) <= CHANCE


def test_no_other_classifier_of_counts_does_better(corpus):
    forest = RandomForestClassifier(50, max_depth=12, random_state=0, n_jobs=1)
    # Twins have equal counts, so they get equal answers, and one of the two is wrong.
    assert dev_accuracy(corpus, both, forest) == 0.5


def test_neighbouring_words_do_not_suffice(corpus):
    assert dev_accuracy(corpus, grams(2)) <= BIGRAMS


def test_same_seed_same_corpus():
    assert grammar.generate_corpus(200, 100, 3) == grammar.generate_corpus(200, 100, 3)
    assert grammar.generate_corpus(200, 100, 3) != grammar.generate_corpus(200, 100, 4)
    small, large = (grammar.generate_corpus(size, 100, 3) for size in (0, 200))
    assert small["train"] == [] and small["validation"] == large["validation"]


@pytest.mark.parametrize(("sizes", "name"), [((3, 2), "train_size"), ((2, -2), "dev_size")])
def test_sizes_that_cannot_be_balanced(sizes, name):
    with pytest.raises(TrituneError, match=name):
        grammar.generate_corpus(*sizes, seed=0)
