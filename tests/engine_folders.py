"""Tiny packed models with the tokenizers of their families, and texts whose answers no rounding tie decides."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from transformers import (
    AutoTokenizer,
    BertTokenizer,
    CamembertTokenizer,
    DistilBertTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    XLMRobertaTokenizer,
)

import tritune
from engine_models import DEPLOY
from engine_models import FAMILIES as ALL
from small_answers import LETTERS, NAMES, PLACES, WORDS, roberta_tokenizer
from tritune.quant import Uniform

FAMILIES = {name: row for name, row in ALL.items() if not row.image}
HEADS = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "Model")
# Of a code: nearer to a rounding tie than this, a value may get another code than torch gives it. Sums in float32 and
# the engine's exponential are off by some 1e-6 of the largest of 127 codes.
NEAR = 2e-4
# The largest difference of logits of the tiny models, of magnitude 3, where no value is near a tie: 17 quantized
# products, float32 between them.
BOUND = 1e-5


def _pieces(*special: str) -> dict[str, int]:
    tokens = [*special, *WORDS, *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    return {token: index for index, token in enumerate(dict.fromkeys(tokens))}


def _unigrams(*special: str) -> list[tuple[str, float]]:
    tokens = [*special, "▁", *(f"▁{word}" for word in WORDS), *LETTERS]
    return [(token, -float(index) / 10) for index, token in enumerate(dict.fromkeys(tokens))]


def tokenizer_of(family: str) -> PreTrainedTokenizerBase:
    """The tokenizer class of a family with some words and all letters."""
    if family == "RoBERTa":
        return roberta_tokenizer()
    if family in ("XLM-R", "CamemBERT"):
        kind = XLMRobertaTokenizer if family == "XLM-R" else CamembertTokenizer
        return kind(vocab=_unigrams("<s>", "<pad>", "</s>", "<unk>", "<mask>"))
    kind = DistilBertTokenizer if family == "DistilBERT" else BertTokenizer
    return kind(vocab=_pieces("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"))


def save_reader(
    family: str, head: str, folder: Path, quantization: tritune.Quantization = DEPLOY, **config: Any
) -> Path:
    """A packed model with a head of `HEADS` and a tokenizer in a folder, with values of its config changed."""
    tokenizer = tokenizer_of(family)
    row = FAMILIES[family]
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": 72, "pad_token_id": tokenizer.pad_token_id}
    model = replace(row, values=row.values | sizes | config).build(index=HEADS.index(head))
    tritune.convert(tritune.prepare(model, quantization).eval()).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def sentences(count: int, seed: int = 0, most: int = 6) -> list[str]:
    """Texts of one to `most` words, some of which are in pieces."""
    chance = random.Random(seed)
    words = [*WORDS, *NAMES, *PLACES, "Lima", "x", "?"]
    return [" ".join(chance.choices(words, k=chance.randint(1, most))) for _ in range(count)]


@contextmanager
def ties_noted() -> Iterator[list[bool]]:
    """Within, a list grows by whether some value was near a tie, for everything that is quantized."""
    encode, near = Uniform._encode, []

    def watched(quantizer: Uniform, values: torch.Tensor):
        encoded = encode(quantizer, values)
        places = (values * encoded[1]).clamp(-quantizer.largest_code, quantizer.largest_code)
        near.append(bool(((places - places.floor() - 0.5).abs() < NEAR).any()))
        return encoded

    with mock.patch.object(Uniform, "_encode", watched):
        yield near


class Reference:
    """The packed model of a folder in torch, one text at a time, without padding."""

    def __init__(self, folder: Path):
        self.model: PreTrainedModel = tritune.load(folder, engine="reference").eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    @torch.no_grad()
    def run(self, *texts: Any, max_length: int = 64, **options: Any) -> tuple[torch.Tensor, bool]:
        """What the head, or else the encoder, gives for one text or pair; and whether no value was near a tie."""
        inputs = self.tokenizer(*texts, truncation=True, max_length=max_length, return_tensors="pt", **options)
        with ties_noted() as near:
            output = self.model(**inputs)
        assert near
        if "start_logits" in output:
            return torch.stack([output["start_logits"][0], output["end_logits"][0]], -1), not any(near)
        return (output["logits"] if "logits" in output else output["last_hidden_state"])[0], not any(near)

    def clear(self, texts: list[Any], least: int = 4, **options: Any) -> list[Any]:
        """Those of some texts or pairs of which no value is near a tie; there are at least so many."""
        found = [each for each in texts if self.run(*(each if isinstance(each, tuple) else (each,)), **options)[1]]
        assert len(found) >= least
        return found
