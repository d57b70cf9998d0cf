"""Block-wise reconstruction of a sentence encoder: Spearman of its cosines on STS-B dev, before and after.

No label is read for training: the texts are the sentences of STS-B's training set. Weights have a scale per row,
activations one per token, and nothing is clipped.

    python benchmarks/reconstruct.py MODEL STS-B-FOLDER --steps 100 --seeds 0 1 2 --output results/reconstruct.csv
"""

import argparse
import csv
import time
from pathlib import Path

import torch
from arms import write_csv
from scipy.stats import spearmanr
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

import tritune
from tritune.modeling.instrument import instrument
from tritune.tasks.heads import FEATURE_EXTRACTION

QUANTIZATION = tritune.Quantization(
    weight_granularity="row", activation_granularity="token", weight_clip=None, activation_clip=None
)


def read(folder: Path, split: str) -> list[dict[str, str]]:
    """The rows of a GLUE file that have a score."""
    with (folder / f"{split}.tsv").open(encoding="utf-8") as file:
        return [row for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if row["score"]]


@torch.no_grad()
def embed(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sentences: list[str]) -> torch.Tensor:
    """Mean-pooled embeddings of length 1, (sentences, width)."""
    order = sorted(range(len(sentences)), key=lambda place: len(sentences[place]))
    embeddings = torch.empty(len(sentences), model.config.hidden_size)
    for start in range(0, len(order), 64):
        places = order[start : start + 64]
        batch = tokenizer([sentences[place] for place in places], padding=True, truncation=True, return_tensors="pt")
        mask = batch["attention_mask"][..., None].float()
        pooled = (model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)
        embeddings[places] = F.normalize(pooled, dim=-1)
    return embeddings


def main() -> None:
    """Print and write a row for the float model, the untrained student, and every seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a folder with a sentence encoder")
    parser.add_argument("data", type=Path, help="the folder of STS-B's train.tsv and dev.tsv")
    parser.add_argument("--steps", type=int, default=100, help="updates per block, of 32 texts")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--output", type=Path, help="CSV; rows are appended")
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    teacher = instrument(AutoModel.from_pretrained(options.model, dtype=torch.float32)).eval()
    dev = read(options.data, "dev")
    texts = [row[name] for row in read(options.data, "train") for name in ("sentence1", "sentence2")]
    sentences = [row[name] for name in ("sentence1", "sentence2") for row in dev]
    scores, expected = [float(row["score"]) for row in dev], embed(teacher, tokenizer, sentences)

    def row(arm: str, model: PreTrainedModel, seed: int | str = "", seconds: float = 0.0) -> None:
        """Measure a model."""
        found = embed(model.eval(), tokenizer, sentences)
        first, second = found.chunk(2)
        spearman = 100 * spearmanr((first * second).sum(-1), scores)[0]
        cosine = (found * expected).sum(-1).mean().item()
        line = {"arm": arm, "steps": options.steps if seconds else 0, "seed": seed}
        line |= {"spearman": round(spearman, 2), "cosine": round(cosine, 4), "seconds": round(seconds)}
        print(", ".join(f"{key} {value}" for key, value in line.items()), flush=True)
        if options.output:
            write_csv(options.output, [line], append=True)

    row("float", teacher)
    for seed in options.seeds:
        student = tritune.prepare(AutoModel.from_pretrained(options.model, dtype=torch.float32), QUANTIZATION)
        if seed == options.seeds[0]:
            row("untrained", student)
        began = time.perf_counter()
        tritune.reconstruct(
            student, teacher, texts, tokenizer, steps=options.steps, seed=seed, head=FEATURE_EXTRACTION, told=print
        )
        row("reconstructed", student, seed, time.perf_counter() - began)


if __name__ == "__main__":
    main()
