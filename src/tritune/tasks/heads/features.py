"""One vector for a text: sentence encoders, distilled on lines without labels and scored on pairs of sentences.

Where there are no pairs, lines do: then the score is how close the student's vectors are to its teacher's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ModelOutput

from ...checkpoints.load import load_config
from ...errors import TrituneError
from ..metrics import Measure, spearman
from ..table import columns_of, listed, placed, read_table
from .answering import Answering, Predictable
from .head import Batch, EncodedData, Head, Task
from .labels import score
from .pooling import cosines
from .sentence_files import SentenceFiles, SentenceProcessor, read_sentence_files
from .text import check_room, collator, encode, text_columns, text_of

# The columns that are looked for where nobody names any.
_PAIRS = (("sentence1", "sentence2"), ("text", "text_pair"), ("text1", "text2"))
_SCORES = ("score", "label")
# Said of a training file that has to hold the dev rows as well.
_NO_PAIRS = "an encoder is scored on pairs of texts with a score, which are not in this file; give some with --dev-file"
# The output of an exported graph that holds what `read` reads.
EMBEDDING = "sentence_embedding"
# The metric of lines.
COSINE = "cosine_to_teacher"


@dataclass(frozen=True)
class FeatureExtraction(Head):
    """Sentence encoders, from `AutoModel` and the files that sentence-transformers keeps beside it.

    Attributes:
        files: of the model at hand, see `for_model`.
    """

    name = "feature-extraction"
    auto_model = AutoModel
    has_logits = False
    output_names = ("last_hidden_state", EMBEDDING)
    unit = "sentences"
    hub_library, pipeline_tag = "sentence-transformers", "sentence-similarity"

    files: SentenceFiles = field(default_factory=SentenceFiles)

    def for_model(self, source: str | Path) -> "FeatureExtraction":
        """The same kind with the pooling of the model at `source`, see `read_sentence_files`."""
        files = read_sentence_files(source)
        width = files.width or getattr(load_config(source), "hidden_size", None)
        return replace(self, files=replace(files, width=width))

    def options(self, task: Task) -> dict[str, Any]:
        """Nothing: there is no head to make."""
        return {}

    def check(self, config: PreTrainedConfig, task: Task, source: str | Path) -> None:
        """Raise TrituneError if the model's hidden states are not as wide as its pooling expects."""
        width = getattr(config, "hidden_size", None)
        if None not in (self.files.width, width) and self.files.width != width:
            raise TrituneError(
                f"{source}: the pooling expects embeddings of {self.files.width}, the model's are {width} wide"
            )

    def load_processor(self, source: str | Path, model: PreTrainedModel, max_length: int | None) -> SentenceProcessor:
        """The tokenizer, with the model's further files."""
        return SentenceProcessor(super().load_processor(source, model, max_length), self.files)

    def check_processors(self, student: SentenceProcessor, teacher: SentenceProcessor, source: str | Path) -> None:
        """Raise TrituneError if the student's tokenizer has other tokens."""
        super().check_processors(student.tokenizer, teacher.tokenizer, source)

    def encode(
        self, splits: DatasetDict, task: Task, processor: SentenceProcessor, max_length: int | None, padding: str
    ) -> EncodedData:
        """Token ids of every sentence, see `text.encode`.

        Every different sentence of "train" is a row. In dev splits each pair is two rows, one after the other, both
        with the pair's score as `labels`; of dev splits without scores every line is a row.
        """
        encoded, measures = DatasetDict(), {}
        for split, rows in splits.items():
            if split == "train":
                sentences = Dataset.from_dict({"sentence": _lines(rows)})
            elif "label" not in rows.column_names:
                sentences, measures[split] = rows, _unscored
            else:
                first, second = (rows[column] for column in task.text_columns)
                both = [text for pair in zip(first, second, strict=True) for text in pair]
                scores = np.asarray(rows["label"], np.float64)
                sentences = Dataset.from_dict({"sentence": both, "label": scores.repeat(2)})
                measures[split] = partial(_score, scores=scores, measure=task.measure)
            encoded[split] = encode(sentences, ["sentence"], processor.tokenizer, max_length, task.title)
        return EncodedData(encoded, collator(processor.tokenizer, padding, max_length), measures, task.dev_splits[0])

    def describe(
        self, files: Mapping[str, Path], columns: Sequence[str] | None, label_column: str | None
    ) -> dict[str, Any]:
        """The fields of a task whose "train" file holds texts and whose "validation" file pairs of them with scores.

        Args:
            files: "train" to any table (.txt is one text a line), "validation" to a .csv, .tsv or .jsonl table, or to
                one with a single column: texts without scores.
            columns: of the two texts of a pair; None looks for sentence1 and sentence2, text and text_pair, or text1
                and text2. Those of them that the train file has are read there; a single column is taken as it is.
            label_column: of the score; None looks for score, then label.

        Raises:
            TrituneError: the columns cannot be found.
        """
        alone, path = "validation" not in files, files.get("validation") or files.get("train")
        present = [] if path is None else columns_of(read_table(path))
        if not alone and len(present) == 1:
            fields = {"text_columns": tuple(present), "labels": None, "metric": COSINE, "measure": _mean_cosine}
            return fields | {"label_column": label_column or _SCORES[0]}
        texts = tuple(columns or _PAIRS[0])
        if len(texts) != 2:
            raise TrituneError(f"--text-columns: a pair needs two columns of text, got {listed(texts)}")
        if path is not None:
            known = [pair for pair in _PAIRS if set(pair) <= set(present)]
            if alone and not (columns or known):
                raise TrituneError(f"{path}: {_NO_PAIRS}")
            if columns is None and not known:
                raise TrituneError(f"{path}: say with --text-columns which two of {listed(present)} hold the texts")
            texts = text_columns(present, columns or known[0], str(path))
            wanted = _SCORES if label_column is None else (label_column,)
            label_column = next((column for column in wanted if column in present), None)
            if label_column is None and alone:
                raise TrituneError(f"{path}: {_NO_PAIRS}")
            if label_column is None:
                raise TrituneError(
                    f"{path}: no column {' or '.join(wanted)} with the score of a pair; there are {listed(present)}; "
                    "name it with --label-column"
                )
        return {
            "text_columns": texts,
            "labels": None,
            "metric": spearman.__name__,
            "measure": spearman,
            "label_column": label_column or _SCORES[0],
        }

    def read_files(self, task: Task, splits: Sequence[str]) -> DatasetDict:
        """The texts of "train", and pairs with their scores, or lines, of dev splits."""
        lines = task.metric == COSINE
        return DatasetDict({split: _read(task, task.file(split), split == "train" or lines) for split in splits})

    def read_undivided(self, task: Task) -> Dataset:
        """Pairs with their scores."""
        return _read(task, task.file("train"), False)

    def read(self, output: ModelOutput, batch: Batch) -> torch.Tensor:
        """The embeddings, (batch, width); an exported graph has made them itself."""
        if EMBEDDING in output:
            return output[EMBEDDING]
        return self.files.pooling(output["last_hidden_state"], batch.get("attention_mask"))

    def outputs(self, output: ModelOutput, batch: Batch) -> tuple[torch.Tensor, ...]:
        """The last hidden state, (batch, tokens, width), and the embeddings."""
        return output["last_hidden_state"], self.read(output, batch)

    def closeness(self, student: np.ndarray, teacher: np.ndarray, task: Task, data: EncodedData) -> dict[str, float]:
        """`cosine_to_teacher`: of a student's embeddings, (rows, width), to its teacher's, mean over the rows."""
        return {COSINE: float(cosines(student, teacher).mean())}

    def scored(
        self, read: np.ndarray, teacher: np.ndarray, task: Task, data: EncodedData
    ) -> tuple[np.ndarray, np.ndarray, Measure]:
        """The cosine of every pair and its score; of lines the cosine of every line to its teacher's vector."""
        if task.metric == COSINE:
            return cosines(read, teacher), np.ones(len(read)), task.measure
        return cosines(read[0::2], read[1::2]), np.asarray(data.dev["labels"], np.float64)[0::2], task.measure

    def inputs(self, rows: Sequence[dict[str, Any]], columns: Sequence[str] | None, name: str) -> list[str]:
        """The texts of one column."""
        (column, *more) = text_columns(columns_of(rows), columns, name)
        if more:
            raise TrituneError(f"{name}: a vector is one text's; name its column with --text-columns")
        return [text_of(row, column, where, may_be_empty=True) for where, row in placed(rows, name)]

    def predictable(self, inputs: list[str], answering: Answering, name: str) -> Predictable:
        """Adds `embedding`, a list of numbers."""
        check_room(answering.processor.tokenizer, 1, answering.max_length)
        rows = Dataset.from_dict({"sentence": inputs})
        encoded = encode(rows, ["sentence"], answering.processor.tokenizer, answering.max_length, name)
        collate = collator(answering.processor.tokenizer, answering.padding, answering.max_length)
        return Predictable(
            encoded, collate, ("embedding",), lambda read: [{"embedding": vector} for vector in read.tolist()]
        )

    def companions(self, folder: str | Path) -> Mapping[str, bytes]:
        """The files by which sentence-transformers knows how to make embeddings."""
        return read_sentence_files(folder).contents

    def usage(self, name: str) -> str:
        """Python code that loads a student."""
        return (
            "import tritune  # without it, loading fails\n"
            "from sentence_transformers import SentenceTransformer\n\n"
            f'model = SentenceTransformer("{name}")\n'
            'embeddings = model.encode(["A man is playing a flute.", "Someone makes music."])\n'
            "print(model.similarity(embeddings, embeddings))"
        )


def _score(predictions: np.ndarray, scores: np.ndarray, measure: Measure) -> dict[str, float]:
    """Metrics of embeddings, (2 * pairs, width), a pair in two rows: their cosine against the pair's score."""
    predictions = np.asarray(predictions)
    # A zero vector has no cosine and counts 0; one that is not finite must not hide behind it.
    if bad := int((~np.isfinite(predictions).all(-1)).sum()):
        raise TrituneError(f"{bad} of {len(predictions)} embeddings hold NaN or infinite values: there is no score")
    return measure(cosines(predictions[0::2], predictions[1::2]), scores)


def _unscored(predictions: np.ndarray) -> dict[str, float]:
    """Of lines one model alone has no score."""
    return {}


def _mean_cosine(cosines: np.ndarray, references: np.ndarray) -> dict[str, float]:
    """The mean of the cosines of some lines."""
    return {COSINE: float(np.mean(cosines))}


def _lines(rows: Dataset) -> list[str]:
    """Every different text of the rows, in order of appearance."""
    columns = [rows[name] for name in rows.column_names if name != "label"]
    return list(dict.fromkeys(text for row in zip(*columns, strict=True) for text in row))


def _read(task: Task, path: Path, are_lines: bool) -> Dataset:
    rows = read_table(path)
    present = columns_of(rows)
    if not are_lines:
        column, places = task.label_column, list(placed(rows, str(path)))
        columns: dict[str, list] = {
            name: [text_of(row, name, where) for where, row in places] for name in task.text_columns
        }
        columns["label"] = [score(row.get(column), where, column) for where, row in places]
        if len(rows) < 2:
            raise TrituneError(f"{path}: holds one pair only; a rank correlation needs at least two")
        return Dataset.from_dict(columns)
    names = [name for name in (*task.text_columns, "text", "text_pair") if name in present]
    names = list(dict.fromkeys(names)) or (present if len(present) == 1 else [])
    if not names:
        raise TrituneError(f"{path}: say with --text-columns which of {listed(present)} hold texts")
    texts = [text_of(row, name, where) for where, row in placed(rows, str(path)) for name in names if name in row]
    return Dataset.from_dict({"sentence": texts})


FEATURE_EXTRACTION = FeatureExtraction()
