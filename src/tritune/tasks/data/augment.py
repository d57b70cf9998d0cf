"""Variants of a sentence by replacing words: the data augmentation of TinyBERT.

Source: Jiao et al., "TinyBERT: Distilling BERT for Natural Language Understanding", Findings of EMNLP 2020, Algorithm
1. A word that is one piece to a masked language model is masked, and the model's K most likely words are its
candidates; a word of several pieces has its K nearest neighbours for candidates. Every word is then replaced with
probability p by one of its candidates, all of them being equally likely, and that N times.

Where the paper leaves it open: words are runs of letters, and those of the closed classes (articles, pronouns,
auxiliary verbs, ...) stay as they are, since replacing them mostly breaks the sentence. Candidates are whole words and
take the capitals of the word they replace. Everything between the words stays as it is written. The published scripts
show the model the unmasked sentence beside the masked one; here it sees the masked one alone, as in the paper.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import ModelOutput

from ...checkpoints.load import positions
from ...errors import TrituneError
from .neighbours import Neighbours

Span = tuple[int, int]

# The threshold of the paper (section 4.2).
PROBABILITY = 0.4

# N: 20 in the paper for every task, by task in the scripts its authors published (data_augmentation.py in TinyBERT/ of
# github.com/huawei-noah/Pretrained-Language-Model). Tasks that are not here take the paper's.
VARIANTS = {"cola": 30, "mnli": 10, "mrpc": 30, "sst2": 20, "stsb": 30, "qqp": 10, "qnli": 20, "rte": 30}
PAPER_VARIANTS = 20

_WORD = re.compile(r"\w+")
# English words of the closed classes, and the halves that an apostrophe leaves of a contraction.
_CLOSED_CLASSES = """
    a an the this that these those each every either neither both all any some no none few more most other another such
    i me my mine myself we us our ours ourselves you your yours yourself yourselves he him his himself she her hers
    herself it its itself they them their theirs themselves one who whom whose which what
    am is are was were be been being have has had having do does did doing done can could may might must shall should
    will would ought cannot
    and or but nor if because as until while though although unless since whether than so
    of at by for with about against between into through during before after above below to from up down in out on off
    over under upon within without toward towards among
    not only own same too very again further then once here there when where why how just now also ever never
    s t d m ll re ve don doesn didn isn aren wasn weren hasn haven hadn won wouldn couldn shouldn mustn needn shan ain
"""
STOP_WORDS = frozenset(_CLOSED_CLASSES.split())


def replaceable_words(text: str) -> list[Span]:
    """Start and end of every word of a text that may be replaced: letters alone, and not a stop word.

    >>> text = "The cat's 2nd mat, isn't it?"
    >>> [text[start:end] for start, end in replaceable_words(text)]
    ['cat', 'mat']
    """
    words = (match for match in _WORD.finditer(text) if match[0].isalpha())
    return [match.span() for match in words if match[0].lower() not in STOP_WORDS]


def whole_words(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Token id to word, for every token that is a whole word of letters: what a word may be replaced by."""
    special = set(tokenizer.all_special_ids)
    texts = {}
    for token, index in sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1]):
        text = tokenizer.convert_tokens_to_string([token]).strip()
        if index not in special and text.isalpha():
            texts[index] = text
    if not texts:
        return {}
    # Pieces from within words are text too; but written out as a word it is another token that they become.
    encoded = tokenizer([f" {text}" for text in texts.values()], add_special_tokens=False)["input_ids"]
    return {index: text for (index, text), ids in zip(texts.items(), encoded, strict=True) if ids == [index]}


class MaskedWords:
    """What a masked language model would put in the place of single tokens.

    Args:
        model: with a masked-LM head; it is set to evaluation mode.
        tokenizer: its own; it must be a fast one, which knows where in the text a token stands.
        words: the tokens that may be answered, see `whole_words`.
        count: words per answer.
        batch_size: masked copies of a text per forward pass. Every text has batches of its own, so its answers do not
            depend on the texts before it.

    Raises:
        TrituneError: the tokenizer is not a fast one or has no mask token, or there is nothing to answer.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        words: dict[int, str],
        count: int,
        batch_size: int,
    ):
        if not tokenizer.is_fast:
            raise TrituneError(f"{type(tokenizer).__name__}: has no character offsets; use a fast tokenizer")
        if tokenizer.mask_token_id is None:
            raise TrituneError("the tokenizer has no mask token, so its model is not a masked language model")
        if not words:
            raise TrituneError("the tokenizer has no tokens that are whole words, which words could be replaced with")
        self.model, self.tokenizer, self.batch_size = model.eval(), tokenizer, batch_size
        self._ids, self._texts = torch.tensor(list(words), device=model.device), list(words.values())
        self._count, self._room = min(count, len(words)), positions(model)

    def encode(self, text: str) -> tuple[dict[str, torch.Tensor], list[Span]]:
        """The token ids and the like of a text, (1, length), cut where the model ends, and where each token stands."""
        cut = {} if self._room is None else {"truncation": True, "max_length": self._room}
        encoded = self.tokenizer(text, return_offsets_mapping=True, return_tensors="pt", **cut)
        offsets = encoded.pop("offset_mapping")[0].tolist()
        return dict(encoded), [_without_space(text, *offset) for offset in offsets]

    @torch.inference_mode()
    def answers(self, encoded: dict[str, torch.Tensor], places: Sequence[int]) -> list[tuple[str, ...]]:
        """For each of the places, that one alone being masked, the `count` most likely words, in alphabetical order.

        Their order does not matter to a draw in which all are equal, and likelihoods may be equal up to rounding.
        """
        answers = []
        for start in range(0, len(places), self.batch_size):
            masked = torch.tensor(places[start : start + self.batch_size], device=self.model.device)
            rows = torch.arange(len(masked), device=self.model.device)
            batch = {name: values.to(self.model.device).repeat(len(masked), 1) for name, values in encoded.items()}
            batch["input_ids"][rows, masked] = self.tokenizer.mask_token_id
            best = _logits_at(self.model, batch, masked)[:, self._ids].topk(self._count).indices.tolist()
            answers += [tuple(sorted({self._texts[index] for index in row})) for row in best]
        return answers


def _without_space(text: str, start: int, end: int) -> Span:
    """A token's place without the space in front that some tokenizers count in."""
    while start < end and text[start].isspace():
        start += 1
    return start, end


def _logits_at(model: PreTrainedModel, batch: dict[str, torch.Tensor], places: torch.Tensor) -> torch.Tensor:
    """The head's logits at one place per row, (batch, vocabulary).

    The head, which is the larger part of the work for short texts, sees these places alone.
    """

    def pick(module: nn.Module, inputs: tuple, output: ModelOutput) -> ModelOutput:
        """The encoder's output at these places, (batch, 1, hidden)."""
        rows = torch.arange(len(places), device=places.device)
        output["last_hidden_state"] = output["last_hidden_state"][rows, places][:, None]
        return output

    handle = model.base_model.register_forward_hook(pick)
    try:
        logits = model(**batch, return_dict=True).logits
    finally:
        handle.remove()
    return logits[:, 0].float()


@dataclass(frozen=True)
class Augmenter:
    """Makes variants of texts.

    `masked` gives the candidates for words of one piece, `neighbours` those for words of several pieces; every word is
    replaced with `probability`.
    """

    masked: MaskedWords
    neighbours: Neighbours
    probability: float = PROBABILITY

    def candidates(self, text: str) -> dict[Span, tuple[str, ...]]:
        """The candidates of every word of a text that has any, by the word's start and end.

        Words beyond the length that the model reads have none.
        """
        spans = replaceable_words(text)
        if not spans:
            return {}
        encoded, offsets = self.masked.encode(text)
        found: dict[Span, tuple[str, ...]] = dict.fromkeys(spans, ())
        single = {}
        for span in spans:
            pieces = [place for place, (start, end) in enumerate(offsets) if start < span[1] and end > span[0]]
            if [offsets[place] for place in pieces] == [span]:
                single[span] = pieces[0]
            elif pieces:
                found[span] = self.neighbours(text[slice(*span)])
        found |= zip(single, self.masked.answers(encoded, list(single.values())), strict=True)
        return {span: words for span, words in found.items() if words}

    def variants(self, text: str, count: int, generator: np.random.Generator) -> list[str]:
        """The distinct texts, other than `text`, that `count` draws give: at most `count` of them.

        With the published scripts a draw that gives a known text is not repeated, so a short text has fewer variants.
        """
        candidates = self.candidates(text)
        counts = [len(words) for words in candidates.values()]
        found: dict[str, None] = {}
        for _ in range(count if candidates else 0):
            replaced = generator.random(len(counts)) < self.probability
            picks = generator.integers(counts)
            found[_replace(text, candidates, replaced, picks)] = None
        found.pop(text, None)
        return list(found)


def _replace(text: str, candidates: dict[Span, tuple[str, ...]], replaced: np.ndarray, picks: np.ndarray) -> str:
    parts, done = [], 0
    for (start, end), words, wanted, pick in zip(candidates, candidates.values(), replaced, picks, strict=True):
        parts += [text[done:start], like(text[start:end], words[pick]) if wanted else text[start:end]]
        done = end
    return "".join([*parts, text[done:]])


def like(word: str, candidate: str) -> str:
    """The candidate with the capitals of the word whose place it takes.

    >>> like("Paris", "london"), like("NATO", "peace"), like("cat", "Paris")
    ('London', 'PEACE', 'Paris')
    """
    if word.isupper() and len(word) > 1:
        return candidate.upper()
    return candidate[:1].upper() + candidate[1:] if word[:1].isupper() else candidate
