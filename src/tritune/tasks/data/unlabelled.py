"""Training rows without labels, for distillation: the teacher's outputs are all that is learned from."""

from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel

from ...errors import TrituneError
from ..heads import FEATURE_EXTRACTION, IMAGE_CLASSIFICATION
from ..heads.answering import Answering
from ..heads.head import Task
from ..heads.images import unlabelled
from ..table import columns_of, read_table


def read_unlabelled(
    path: Path, task: Task, model: PreTrainedModel, processor: Any, max_length: int | None, padding: str
) -> tuple[Dataset, Dataset]:
    """The rows of a file as they were read, and as the model takes them; labels are not looked at.

    Args:
        path: a table, or a text per line; for images a folder or a parquet file.
        task: whose text columns are read where the file has them, else the usual ones.
        model: the teacher.
        processor: its tokenizer or image processor.
        max_length, padding: of the recipe.

    Raises:
        TrituneError: the file or a row of it cannot be used.
    """
    if task.head.name == FEATURE_EXTRACTION.name:
        raise TrituneError(
            f"--unlabelled {path}: {task.title} has no labels to do without; give the file as --train-file"
        )
    answering = Answering(model, processor, max_length, padding, task.long_texts)
    if task.head is IMAGE_CLASSIFICATION:
        images, _ = unlabelled(path)
        return images, task.head.predictable(images, answering, str(path)).examples
    rows = read_table(path)
    present = columns_of(rows)
    columns = task.text_columns if set(task.text_columns) <= set(present) else None
    examples = task.head.predictable(task.head.inputs(rows, columns, str(path)), answering, str(path)).examples
    wanted = [name for name in examples.column_names if name in processor.model_input_names]
    texts = {column: [str(row.get(column, "")) for row in rows] for column in present}
    return Dataset.from_dict(texts), examples.select_columns(wanted)
