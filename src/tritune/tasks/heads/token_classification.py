"""A tag for every word: names of persons and places (CoNLL-2003), parts of speech."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from transformers import (
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorForTokenClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ...checkpoints.hub import located
from ...distil.losses import IGNORED
from ...engine.answers import first_tokens as first_tokens_of
from ...engine.answers import tags_of
from ...errors import TrituneError
from ..span_metrics import (
    OUTSIDE,
    accuracy_ratio,
    entity_f1,
    entity_ratios,
    iob2,
    names_entities,
    tag_accuracy,
    tag_counts,
)
from ..table import placed
from .answering import Answering, Predictable
from .classifier import Classifier
from .head import EncodedData, Measure, Task
from .labels import are_ids_of
from .tag_files import FEATURES, is_table, labels_of, read_tagged
from .text import check_room, collator, token_by_token, tokenized

_KNOWN_COLUMNS = ("tokens", "words", "text", "sentence")


@dataclass(frozen=True)
class _Tags:
    """Scores the tags of the words of one dev split.

    `first_tokens` holds, for every sentence, each word's first token; -1 for a word that the model never saw.
    """

    first_tokens: Sequence[Sequence[int]]
    gold: Sequence[Sequence[str]]
    labels: tuple[str, ...]
    measure: Callable[..., dict[str, float]]

    def __call__(self, logits: np.ndarray) -> dict[str, float]:
        """Metrics of logits, (sentences, tokens, labels)."""
        return self.measure(self.tags(logits), self.gold)

    def tags(self, logits: np.ndarray) -> list[list[str]]:
        """The tags of every word."""
        return tags_of(logits, self.first_tokens, self.labels)


class TokenClassification(Classifier):
    """A class for every word, from `AutoModelForTokenClassification`; a word's first token carries it.

    Words beyond the maximal length are never seen and so count as tagged `O`.
    """

    name = "token-classification"
    auto_model = AutoModelForTokenClassification
    keeps_answers = False
    unit = "words"
    asked = ("tokens",)

    def load_processor(
        self, source: str | Path, model: PreTrainedModel, max_length: int | None
    ) -> PreTrainedTokenizerBase:
        """The tokenizer, which must be a fast one.

        A byte-level one (RoBERTa's) writes the space before a word into its tokens, so it must be told to.
        """
        tokenizer = token_by_token(super().load_processor(source, model, max_length), source)
        if '"add_prefix_space":false' not in tokenizer.backend_tokenizer.to_str():
            return tokenizer
        options = {"trust_remote_code": False, "add_prefix_space": True}
        return token_by_token(AutoTokenizer.from_pretrained(located(source), **options), source)

    def folder_files(self, task: Task, folder: Path) -> dict[str, Path]:
        """`train.txt` and `dev.txt`, or CoNLL's own name of it, `valid.txt`."""
        dev = folder / "dev.txt"
        return {"train": folder / "train.txt", "validation": dev if dev.is_file() else folder / "valid.txt"}

    def describe(
        self,
        files: Mapping[str, Path],
        columns: Sequence[str] | None,
        label_column: str | None,
        labels: Sequence[str] | None = None,
    ) -> dict[str, Any]:
        """The tags that a model knows, else those of the training file, or of the dev file alone; CoNLL's lengths."""
        if columns is not None and len(columns) != 1:
            raise TrituneError(f"{self.name}: one column holds the words, got {', '.join(columns)}")
        words, tags = (columns or ("tokens",))[0], label_column or "tags"
        # A dev file alone may come from a task file whose training file has columns.
        is_named = (words, tags) != ("tokens", "tags")
        if is_named and "train" in files and not any(is_table(file) for file in files.values()):
            raise TrituneError(
                f"{self.name}: lines of word and tag have no columns to name; .jsonl, .json and .parquet do"
            )
        source = files.get("train") or files["validation"]
        sentences = read_tagged(source, (words, tags))
        by_id = are_ids_of({tag for row in sentences["tags"] for tag in row}, labels or ()) and bool(labels)
        labels = tuple(labels or labels_of(sentences, source))
        own = {"text_columns": (words,), "label_column": tags, "labels": labels, "by_id": by_id}
        return CONLL | own | ({} if names_entities(labels) else {"measure": tag_accuracy, "metric": "accuracy"})

    def read_files(self, task: Task, splits: Sequence[str]) -> DatasetDict:
        """Words and tags of every sentence, see `tag_files.read_tagged`."""
        columns = (*task.text_columns, task.label_column)
        return DatasetDict({split: read_tagged(task.file(split), columns, task.labels, task.by_id) for split in splits})

    def kinship(self, rows: Dataset, task: Task) -> tuple[list[tuple[str, ...]], list[str | float]]:
        """The words of a sentence; sentences have no class."""
        return [(" ".join(words),) for words in rows["tokens"]], [""] * len(rows)

    def from_hub(self, rows: Dataset, task: Task, source: str) -> Dataset:
        """The hub keeps the tags as numbers."""
        names = getattr(getattr(rows.features.get("ner_tags"), "feature", None), "names", None)
        if "tokens" not in rows.column_names or names is None or not set(names) <= set(task.labels or ()):
            raise TrituneError(f"{source} gives {task.title} as {dict(rows.features)}, expected tokens and ner_tags")
        tags = [iob2([names[tag] for tag in row]) for row in rows["ner_tags"]]
        return Dataset.from_dict({"tokens": list(rows["tokens"]), "tags": tags}, features=FEATURES)

    def encode(
        self, splits: DatasetDict, task: Task, processor: PreTrainedTokenizerBase, max_length: int | None, padding: str
    ) -> EncodedData:
        """Token ids of every sentence with `labels`, one a token, `IGNORED` where no word begins."""
        encoded, measures, labels = DatasetDict(), {}, task.labels or ()
        for split, rows in splits.items():
            encoded[split], first_tokens = _encode(rows, processor, max_length, task.title, labels)
            if split in task.scored_splits:
                measures[split] = _Tags(first_tokens, rows["tags"], labels, task.measure)
        padded = vars(collator(processor, padding, max_length))
        collate = DataCollatorForTokenClassification(**padded, label_pad_token_id=IGNORED)
        return EncodedData(encoded, collate, measures, task.dev_splits[0])

    def closeness(self, student: np.ndarray, teacher: np.ndarray, task: Task, data: EncodedData) -> dict[str, float]:
        """As of classes, of logits (sentences, tokens, labels): agreement and KL are means over the words."""
        student, teacher = (self.without_padding(read, data.dev) for read in (student, teacher))
        return super().closeness(student, teacher, task, data)

    def scored(
        self, read: np.ndarray, teacher: np.ndarray, task: Task, data: EncodedData
    ) -> tuple[np.ndarray, np.ndarray, Measure]:
        """The counts of every sentence, see `span_metrics.tag_counts`, which hold the references as well."""
        measure = data.measures[data.select]
        assert isinstance(measure, _Tags)  # `encode` put it there
        ratios = entity_ratios if task.measure is entity_f1 else accuracy_ratio
        counts = tag_counts(measure.tags(read), measure.gold)
        return counts, np.zeros(len(counts)), lambda some, _: ratios(some)

    def without_padding(self, read: np.ndarray, rows: Dataset) -> np.ndarray:
        """The logits of the words, (words, labels), of those of all tokens, (sentences, tokens, labels)."""
        words = np.zeros(read.shape[:2], bool)
        for row, ids in enumerate(rows["labels"]):
            words[row, : len(ids)] = np.asarray(ids) != IGNORED
        return read[words]

    def inputs(self, rows: Sequence[dict[str, Any]], columns: Sequence[str] | None, name: str) -> list[list[str]]:
        """The words of every row, of one column: a list of them, or a text that is split at spaces."""
        column = next((known for known in columns or _KNOWN_COLUMNS if known in rows[0]), None)
        if column is None or (columns is not None and len(columns) != 1):
            raise TrituneError(f"{name}: say with --text-columns which one of {', '.join(rows[0])} holds the words")
        sentences = []
        for where, row in placed(rows, name):
            words = row.get(column)
            words = words.split() if isinstance(words, str) else words
            if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
                raise TrituneError(f"{where}: {column!r} must hold words; fill it in or drop the row")
            sentences.append(words)
        return sentences

    def predictable(self, inputs: list[list[str]], answering: Answering, name: str) -> Predictable:
        """Adds `tags`, a list with a tag a word."""
        rows = Dataset.from_dict({"tokens": inputs})
        encoded, first_tokens = _encode(rows, answering.processor, answering.max_length, name)
        labels = self.known(answering.model.config)["labels"]

        def answers(logits: np.ndarray) -> list[dict[str, Any]]:
            """One list of tags a row."""
            return [{"tags": tags} for tags in tags_of(logits, first_tokens, labels)]

        return Predictable(encoded, answering.collate(), ("tags",), answers)


def _encode(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int | None, title: str, labels: Sequence[str] = ()
) -> tuple[Dataset, list[list[int]]]:
    """Token ids of every sentence, with `labels` where names are given; and every word's first token, or -1."""
    check_room(tokenizer, 1, max_length)
    ids = {label: index for index, label in enumerate(labels)}

    def tokenize(batch: dict[str, list], numbers: list[int]) -> dict[str, list]:
        """Columns of words to columns of token ids."""
        encoded = tokenizer(batch["tokens"], is_split_into_words=True, truncation=True, max_length=max_length)
        columns = dict(encoded) | {"first_tokens": [], **({"labels": []} if labels else {})}
        for row, words in enumerate(batch["tokens"]):
            of_token = encoded.word_ids(row)
            places = first_tokens_of(of_token, len(words))
            columns["first_tokens"].append(places)
            if labels:
                tags = [IGNORED] * len(of_token)
                for place, tag in zip(places, batch["tags"][row], strict=True):
                    if place >= 0:
                        tags[place] = ids[tag]
                columns["labels"].append(tags)
        return columns

    encoded = tokenized(rows, tokenize, rows.column_names, title)
    return encoded.remove_columns("first_tokens"), list(encoded["first_tokens"])


TOKEN_CLASSIFICATION = TokenClassification()

CONLL: dict[str, Any] = {
    "text_columns": ("tokens",),
    "label_column": "tags",
    "labels": (OUTSIDE, *(f"{prefix}-{kind}" for kind in ("PER", "ORG", "LOC", "MISC") for prefix in "BI")),
    "metric": "entity_f1",
    "measure": entity_f1,
    "max_length": 128,
    "batch_size": 32,
    "eval_steps": 200,
}
"""The fields of a `registry.Task` for CoNLL-2003, tags in the order of the hub's data set."""
