"""Rows of similar length share a batch, and the answers come in the order of the rows."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset

import tritune
from families import FAMILIES, LABELS, VOCABULARY
from test_invariance import DEPLOY
from test_trainer import arguments
from tritune import Quantization
from tritune.inference.evaluate import longest_first, predict, shares_scales
from tritune.recipes.recipe import SAMPLING_STRATEGIES
from tritune.tasks.heads import TEXT_CLASSIFICATION
from tritune.training.arguments import data_arguments
from tritune.training.head_trainer import HeadTrainer

BERT = FAMILIES["bert"]
MODELS = {
    "float": lambda: BERT.build().eval(),
    "a scale per token": lambda: tritune.prepare(BERT.build(), DEPLOY).eval(),
    "float activations": lambda: tritune.prepare(BERT.build(), Quantization(activation_bits=None)).eval(),
}


def rows_of(lengths) -> Dataset:
    generator = torch.Generator().manual_seed(1)
    ids = [torch.randint(1, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]
    return Dataset.from_dict({"input_ids": ids, "row": range(len(ids))})


class Collate:
    """Pads to the longest row of a batch, and remembers the rows of all batches."""

    def __init__(self):
        self.batches, self.tokens = [], 0

    def __call__(self, rows):
        self.batches.append([row["row"] for row in rows])
        width = max(len(row["input_ids"]) for row in rows)
        self.tokens += width * len(rows)
        padded = [row["input_ids"] + [0] * (width - len(row["input_ids"])) for row in rows]
        mask = [[1] * len(row["input_ids"]) + [0] * (width - len(row["input_ids"])) for row in rows]
        return {"input_ids": torch.tensor(padded), "attention_mask": torch.tensor(mask)}


def read_tokens(output, batch):
    return output.logits[:, None] + torch.zeros(1, batch["input_ids"].shape[1], 1)


LENGTHS = [3, 9, 1, 9, 2, 14, 1, 5, 5, 8, 2]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("lengths", [LENGTHS, [4], [2, 2, 2], [1, 2, 3, 4]], ids=["mixed", "one", "equal", "rising"])
def test_answers_are_those_of_every_row_on_its_own(name, lengths):
    model, rows, collate = MODELS[name](), rows_of(lengths), Collate()
    found = predict(model, rows, collate, batch_size=3)
    with torch.no_grad():
        alone = [model(**Collate()([row])).logits[0].numpy() for row in rows]
    np.testing.assert_allclose(found, alone, atol=1e-5)
    # No other way to make batches of three pads less.
    widest = sorted(lengths, reverse=True)
    assert collate.tokens == sum(widest[start] * len(widest[start : start + 3]) for start in range(0, len(widest), 3))


@pytest.mark.parametrize("order", SAMPLING_STRATEGIES)
@pytest.mark.parametrize("name", [*MODELS, "a scale per tensor"])
def test_evaluations_inside_a_training_batch_as_predict_does(name, order, tmp_path):
    build = MODELS.get(name, lambda: tritune.prepare(BERT.build(), Quantization()).eval())
    model, rows, collate, read = build(), rows_of(LENGTHS), Collate(), []
    labelled = rows.add_column("labels", [row % LABELS for row in range(len(rows))])

    def with_labels(batch):
        return collate(batch) | {"labels": torch.tensor([row["labels"] for row in batch])}

    def measure(logits):
        read.append(logits)
        return {"score": 1.0}

    data = SimpleNamespace(splits={"dev": labelled}, selection="dev", measures={"dev": measure}, collate=with_labels)
    job = SimpleNamespace(data=data, task=SimpleNamespace(head=TEXT_CLASSIFICATION))
    options = {"per_device_eval_batch_size": 4, "remove_unused_columns": False, "train_sampling_strategy": order}
    options = arguments(tmp_path, **options)
    assert HeadTrainer(model, options, **data_arguments(job, model)).evaluate()["eval_score"] == 1.0
    batches, inside = collate.batches, read[0]
    collate.batches = []
    np.testing.assert_array_equal(inside, predict(model, labelled, with_labels, batch_size=4))
    assert batches == collate.batches and (batches[0] == [0, 1, 2, 3]) is (name == "a scale per tensor")


def test_answers_token_by_token_keep_their_rows():
    model, rows = MODELS["float"](), rows_of(LENGTHS)
    found = predict(model, rows, Collate(), 3, read_tokens)
    expected = predict(model, rows, Collate(), 1)
    assert found.shape[:2] == (len(LENGTHS), max(LENGTHS))
    for row, length in enumerate(LENGTHS):
        np.testing.assert_allclose(found[row, :length], np.tile(expected[row], (length, 1)), atol=1e-5)


def test_a_scale_per_tensor_keeps_the_batches_as_they_are():
    model, collate = tritune.prepare(BERT.build(), Quantization()).eval(), Collate()
    predict(model, rows_of(LENGTHS), collate, batch_size=4)
    assert collate.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]


def test_rows_of_one_length_and_rows_without_tokens_stay_in_order():
    assert longest_first(rows_of([2, 3, 2, 3])) == [1, 3, 0, 2]
    assert list(longest_first(Dataset.from_dict({"pixel_values": [[0.0], [1.0]]}))) == [0, 1]


@pytest.mark.parametrize("modules", [{"*.query": {"activation_granularity": "tensor"}}, None])
def test_one_layer_with_a_scale_per_tensor_is_enough_to_keep_the_order(modules):
    quantization = Quantization(activation_granularity="token", modules=modules)
    assert shares_scales(tritune.prepare(BERT.build(), quantization).eval()) == (modules is not None)
