"""Where 4-bit activations hurt: a finished W2A8 student of CoLA, the inputs of one part in 4 bits, not trained for it.

    python benchmarks/four_bits.py --teacher TEACHER --run RUN --texts DEV.tsv --output benchmarks/results/four_bits.csv

TEACHER, RUN and the rows that neither was trained on are those of `convergence.py --keep`. The distance is
KL(teacher || student), everything in float32.
"""

import argparse
import csv
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from arms import write_csv
from rich.progress import track
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import tritune
from tritune.distil.losses import kl_divergence
from tritune.modeling.quantization import Quantization
from tritune.recipes import load_recipe

KINDS = {
    "query_key_value": ("query", "key", "value"),
    "attention_products": ("attention.self",),
    "attention_projection": ("attention.output.dense",),
    "ffn_in": ("intermediate.dense",),
    "ffn_out": ("[0-9].output.dense",),
    "pooler": ("pooler.dense",),
}


def parts(layers: int) -> dict[str, Any]:
    """Name of a part to `modules`, which give its inputs 4 bits."""
    patterns = {"none": (), **{kind: [f"*.{end}" for end in ends] for kind, ends in KINDS.items()}}
    patterns |= {f"layer {layer + 1}": [f"*.layer.{layer}.*"] for layer in range(layers)}
    return {name: {one: {"activation_bits": 4} for one in found} or None for name, found in patterns.items()}


@torch.no_grad()
def logits(model: torch.nn.Module, batches: list[Mapping[str, torch.Tensor]]) -> torch.Tensor:
    """(texts, classes)."""
    return torch.cat([model(**batch).logits for batch in batches])


def main() -> None:
    """Print the table and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True, help="run folder of the student")
    parser.add_argument("--texts", type=Path, required=True, help="rows in CoLA's format")
    parser.add_argument("--output", type=Path, help="a CSV file")
    arguments = parser.parse_args()
    with arguments.texts.open(newline="", encoding="utf-8") as file:
        texts = [row[3] for row in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]
    tokenizer = AutoTokenizer.from_pretrained(arguments.teacher)
    batches = [
        tokenizer(texts[start : start + 50], padding=True, truncation=True, max_length=64, return_tensors="pt")
        for start in range(0, len(texts), 50)
    ]
    teacher = AutoModelForSequenceClassification.from_pretrained(arguments.teacher).eval()
    trained = tritune.load(arguments.run / "best").state_dict()
    recipe, expected = load_recipe(arguments.run / "recipe.yaml"), logits(teacher, batches)
    table = []
    for name, modules in track(parts(teacher.config.num_hidden_layers).items(), "parts"):
        student = AutoModelForSequenceClassification.from_pretrained(arguments.teacher)
        student = tritune.prepare(student, replace(recipe.section(Quantization), modules=modules)).eval()
        student.load_state_dict(trained)
        found = kl_divergence(logits(student, batches), expected).item()
        table.append({"inputs_in_4_bits": name, "rows": len(texts), "kl": f"{found:.4f}"})
    for row in table:
        print("  ".join(f"{value!s:<22}" for value in row.values()))
    if arguments.output:
        write_csv(arguments.output, table)


if __name__ == "__main__":
    main()
