"""A tiny untrained QAT model of every kind of task that is exported, with files to verify it on."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
)

import sentence_encoder
import small_answers
import tritune
from tritune import Quantization
from tritune.tasks.registry import get_task

# What clients batch in their own ways is compared: no answer may depend on its batch mates.
PER_TOKEN = Quantization(activation_granularity="token", weight_granularity="row", activation_clip=None)
LENGTH = 48


@dataclass(frozen=True)
class Exportable:
    """One kind of model.

    Attributes:
        kind: the class of transformers.
        task: of the table; None for a task file, which `files` then writes.
        files: writes what `--verify` reads into a folder.
        head: further values of the config.
    """

    kind: type
    task: str | None
    files: Callable[[Path], Any]
    head: dict[str, Any]

    def write_model(self, folder: Path, quantized: bool = True) -> Path:
        """The model, untrained with large weights so that its answers differ, and its tokenizer."""
        torch.manual_seed(0)
        if self.kind is BertModel:
            sentence_encoder.make_encoder(folder)
            model = BertModel.from_pretrained(folder)
        else:
            tokenizer = small_answers.bert_tokenizer()
            tokenizer.model_max_length = 96
            tokenizer.save_pretrained(folder)
            sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
            config = {"vocab_size": len(tokenizer), "max_position_embeddings": 96, "initializer_range": 0.5}
            model = self.kind(BertConfig(**sizes, **config, pad_token_id=0, **self.head))
        if quantized:
            model = tritune.prepare(model, PER_TOKEN)
        model.save_pretrained(folder)
        return folder

    def verification(self, folder: Path) -> list[Any]:
        """The files in a new folder, and the options that compare two models on them."""
        folder.mkdir()
        self.files(folder)
        on = ["--task", folder / "task.yaml"] if self.task is None else ["--verify", folder, "--task", self.task]
        return [*on, "--set", f"max_length={LENGTH}", "--set", "padding=longest"]


def texts(count: int) -> list[str]:
    """Short texts, some with pieces of one letter and letters beyond ASCII."""
    words = [*small_answers.NAMES, *small_answers.PLACES, "lives", "in", "é", "works"]
    return [" ".join(words[(7 * row + 3 * place) % len(words)] for place in range(1 + row % 5)) for row in range(count)]


def _table(folder: Path, label: Callable[[int], Any], values: dict[str, Any]) -> None:
    rows = [{"text": text, "label": label(row)} for row, text in enumerate(texts(12))]
    (folder / "dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    task = {"kind": "text-classification", "dev_file": "dev.jsonl", "columns": ["text"], "label_column": "label"}
    (folder / "task.yaml").write_text(json.dumps(task | values), encoding="utf-8")


def _named(labels: tuple[str, ...], **more: Any) -> dict[str, Any]:
    ids = dict(enumerate(labels))
    return {"num_labels": len(labels), "id2label": ids, "label2id": {name: id for id, name in ids.items()}, **more}


_TAGS = get_task("conll2003").labels or ()
_THREE = ("bad", "fair", "good")

EXPORTABLE = {
    "sentences": Exportable(BertModel, "features", sentence_encoder.make_pairs, {}),
    "tags": Exportable(BertForTokenClassification, "conll2003", small_answers.write_tagged, _named(_TAGS)),
    "questions": Exportable(
        BertForQuestionAnswering,
        "squad_v2",
        lambda folder: small_answers.write_squad(folder, unanswerable=True),
        _named(("start", "end")),
    ),
    "classes": Exportable(
        BertForSequenceClassification,
        None,
        lambda folder: _table(folder, lambda row: _THREE[row % 3], {"labels": _THREE, "problem": "single_label"}),
        _named(_THREE),
    ),
    "many_labels": Exportable(
        BertForSequenceClassification,
        None,
        lambda folder: _table(folder, lambda row: _THREE[: row % 4], {"labels": _THREE, "problem": "multi_label"}),
        _named(_THREE, problem_type="multi_label_classification"),
    ),
    "pairs": Exportable(BertForSequenceClassification, "stsb", sentence_encoder.make_pairs, {"num_labels": 1}),
}


def tokenizer_of(folder: Path) -> Any:
    """The tokenizer of a model's folder."""
    return AutoTokenizer.from_pretrained(folder)
