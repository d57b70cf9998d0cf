"""`tritune demo`: the main workflow on synthetic data, offline, in a few minutes."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import Interrupted
from . import options

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from ..recipes import FinetuneRecipe
    from ..training.job import Job

TRAIN_ROWS, DEV_ROWS = 16000, 1000
# The corpus comes in twins, row by row; learnt from scratch, both must be in one batch.
TEACHER = ("max_steps=2200", "learning_rate=5e-4", "eval_steps=550", "train_sampling_strategy=sequential")
STUDENT = ("max_steps=120", "learning_rate=2e-4", "eval_steps=15", "logging_steps=5")
# In float32: what the demo shows is not to depend on the machine.
ARMS = {"ternarybert-block": STUDENT, "ti-g": STUDENT, "tritune": ("reconstruct_steps=150", "bf16=false")}


def demo(
    output: Annotated[Path, typer.Option(help="Output folder.", metavar="FOLDER")] = Path("demo"),
    seed: Annotated[int, typer.Option(help="Random seed of the corpus, the teacher and the students.")] = 42,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Generate a corpus, train a teacher, and distil it in three ways; works offline.

    They are QAT without and with Teacher Intervention, and block by block. The sentences come from a small grammar, and
    the task is whether they are acceptable. Agreement across attractors, reflexives and paired conjunctions decide it,
    so attention matters. The other commands accept every folder written.
    """
    from ..training.run_folder import DEMO, HISTORY, check_free, write_json

    check_free(output, overwrite)
    options.begin()
    from ..analysis.plots import read_history, save, training_curves
    from ..training.finetune import finetune
    from .show import show_demo, show_result

    recipes = _recipes(seed)
    base = _write_inputs(output, seed)
    try:
        teacher = finetune(_job(base, output, recipes["finetune"], output / "teacher"))
        runs = {recipe: _student(recipes[recipe], output) for recipe in ARMS}
    except Interrupted:
        raise Interrupted("the demo was interrupted; start it again with --overwrite") from None
    files = {recipe: output / recipe / HISTORY for recipe in ARMS}
    histories = {recipe: read_history(file) for recipe, file in files.items() if file.is_file()}
    references = {
        "teacher": teacher["best"]["accuracy"],
        "quantized, untrained": runs["ti-g"]["untrained"]["accuracy"],
        "tritune, block by block": runs["tritune"]["last"]["accuracy"],
    }
    save(training_curves(histories, "accuracy", references), output / "curves.png")
    results = {
        "seed": seed,
        "dev_rows": DEV_ROWS,
        "teacher": teacher,
        "students": runs,
        "curves": str(output / "curves.png"),
    }
    write_json(output / DEMO, results)
    show_result(results, show_demo, as_json=json)


def _write_inputs(output: Path, seed: int) -> Path:
    """The corpus as tsv files and an untrained model with its tokenizer; returns the model's folder."""
    from transformers import set_seed

    from ..checkpoints.files import usual_modes
    from ..tasks.data.grammar import generate_corpus
    from ..training.run_folder import DEMO, write_json

    corpus = generate_corpus(TRAIN_ROWS, DEV_ROWS, seed)
    data = output / "data"
    data.mkdir(parents=True, exist_ok=True)
    for split, file in (("train", "train.tsv"), ("validation", "dev.tsv")):
        lines = ["sentence\tlabel", *(f"{sentence}\t{label}" for sentence, label in corpus[split])]
        (data / file).write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_json(output / DEMO, {"seed": seed})  # what --overwrite knows a demo by
    set_seed(seed)
    tokenizer = _tokenizer()
    tokenizer.save_pretrained(output / "base")
    with usual_modes(output / "base"):
        _model(len(tokenizer)).save_pretrained(output / "base")
    return output / "base"


def _tokenizer() -> "PreTrainedTokenizerFast":
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    from ..tasks.data.grammar import vocabulary

    words = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *vocabulary()])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", words["[CLS]"]), ("[SEP]", words["[SEP]"])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=32,
    )


def _model(vocabulary_size: int) -> "PreTrainedModel":
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=vocabulary_size,
        hidden_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=192,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        max_position_embeddings=32,
        initializer_range=0.12,
    )
    return BertForSequenceClassification(config)


def _recipes(seed: int) -> "dict[str, FinetuneRecipe]":
    from ..recipes import FinetuneRecipe, load_recipe

    teacher = load_recipe("finetune", (*TEACHER, "bf16=false", f"seed={seed}"), FinetuneRecipe)
    return {"finetune": teacher, **{name: load_recipe(name, (*keys, f"seed={seed}")) for name, keys in ARMS.items()}}


def _student(recipe: "FinetuneRecipe", output: Path) -> dict[str, Any]:
    from ..training.run import plan, run
    from .show import show_plan

    job = _job(output / "teacher", output, recipe, output / recipe.name)
    phases = plan(job)
    show_plan(job.recipe, phases)
    return run(job, phases)


def _job(source: Path, output: Path, recipe: "FinetuneRecipe", target: Path) -> "Job":
    from ..tasks.registry import get_task
    from ..training.job import open_job

    return open_job(source, get_task("demo"), output / "data", recipe, target, overwrite=True)
