"""The data of the convergence benchmark: training files without the rows on which students are compared to teachers."""

import json
import random
from pathlib import Path

from cells import file_lines, write_lines, write_whole
from scipy.stats import rankdata

UNSEEN_ROWS = 2000
SST2_ROWS = 20_000
SPLIT_SEED = 42
SCORES = 5.0  # of STS-B, from 0


def prepare_data(source: Path, target: Path, unseen_rows: int = UNSEEN_ROWS) -> None:
    """Write a folder per task and one, `… unseen`, of the rows taken out of its training file; none is made twice.

    SST-2's training file is cut to `SST2_ROWS` rows besides. MRPC's is too small to spare that many: its unseen rows
    are pairs of STS-B's training file, and mean nothing as MRPC.

    Args:
        source: the folder of the original GLUE folders. One that is not there is left out, and MRPC without STS-B.
        target: where the folders are written.
        unseen_rows: how many rows are taken out.
    """
    for name, header_lines in (("CoLA", 0), ("MRPC", 1), ("SST-2", 1), ("STS-B", 1)):
        folder, others = source / name, source / ("STS-B" if name == "MRPC" else name)
        if not (folder.is_dir() and others.is_dir()) or all((target / n).is_dir() for n in (name, _unseen(name))):
            continue
        lines = file_lines(folder / "train.tsv")
        header, rows = lines[:header_lines], lines[header_lines:]
        taken, kept = _split(rows, 0 if name == "MRPC" else unseen_rows)
        if name == "SST-2":
            kept = kept[:SST2_ROWS]
        dev = (folder / "dev.tsv").read_bytes()
        _write(target / name, train=[*header, *(rows[i] for i in sorted(kept))], dev=dev)
        if name == "MRPC":
            unseen = _as_mrpc(file_lines(others / "train.tsv")[1:], unseen_rows)
        else:
            unseen = [rows[i] for i in sorted(taken)]
        _write(target / _unseen(name), dev=("\n".join([*header, *unseen]) + "\n").encode())


def _unseen(name: str) -> str:
    return f"{name} unseen"


def _split(rows: list[str], count: int) -> tuple[list[int], list[int]]:
    """The places of `count` random rows, and those of the others; both in random order."""
    places = list(range(len(rows)))
    random.Random(SPLIT_SEED).shuffle(places)
    return places[:count], places[count:]


def _as_mrpc(rows: list[str], count: int) -> list[str]:
    """Random pairs of STS-B as rows of MRPC, without a label that means something."""
    pairs = [rows[i].split("\t")[7:9] for i in sorted(_split(rows, count)[0])]
    return ["\t".join(("0", str(number), str(number), *pair)) for number, pair in enumerate(pairs)]


def _write(folder: Path, dev: bytes, train: list[str] | None = None) -> None:
    """A folder that is there whole or not at all."""
    if folder.is_dir():
        return
    partial = folder.with_name(f"{folder.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    if train is not None:
        write_lines(partial / "train.tsv", train)
    (partial / "dev.tsv").write_bytes(dev)
    partial.rename(folder)


def label_by_predictions(predictions: Path, dev: Path) -> None:
    """Write a teacher's predictions for pairs of STS-B as their scores, so that `evaluate` correlates with them.

    STS-B's scores end at 5 and a model's predictions do not; ranks have the same Spearman correlation.

    Args:
        predictions: what `tritune predict --output FILE.jsonl` wrote.
        dev: the tsv file to write.
    """
    rows = [json.loads(line) for line in file_lines(predictions)]
    ranks = rankdata([row["prediction"] for row in rows]) / len(rows) * SCORES
    lines = [f"{row['sentence1']}\t{row['sentence2']}\t{rank}" for row, rank in zip(rows, ranks, strict=True)]
    dev.parent.mkdir(parents=True, exist_ok=True)
    write_whole(dev, "\n".join(["sentence1\tsentence2\tscore", *lines]) + "\n")
