"""`tritune export`: a model for other runtimes."""

import shlex
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ..deploy.export.opsets import Target
from ..errors import TrituneError
from ..tasks.names import is_task_file
from . import options

Format = Literal["onnx", "dense"]
LayoutName = Literal["plain", "transformers.js", "sentence-transformers", "fastembed"]
_LONG_TEXTS = {
    "head-tail": "keeps both ends of them; a program that loads the export has to cut so, too",
    "window": "reads them in windows and averages the logits; a program that loads the export has to do so, too",
}


def export(
    model: Annotated[str, typer.Argument(help="A run, a teacher or any fine-tuned model.", metavar="MODEL")],
    output: Annotated[Path, typer.Option(help="Folder to write, new or empty; or a new .onnx file.", metavar="PATH")],
    format: Annotated[
        Format, typer.Option(help="onnx: 2-bit weights, integer products. dense: float weights.")
    ] = "onnx",
    layout: Annotated[
        LayoutName, typer.Option(help="The program that the ONNX folder is for: its file names, and a model card.")
    ] = "plain",
    target: Annotated[
        Target | None,
        typer.Option(
            help="web: a graph that is fast in a browser, only for ONNX Runtime. Default: native, or web for "
            "transformers.js.",
            show_default=False,
        ),
    ] = None,
    opset: Annotated[
        int | None,
        typer.Option(
            help="ONNX opset, 18 to 25; below 25, 2-bit codes are stored as bytes. Default: 25, or 21 for --target "
            "web, or 18 for sentence-transformers and fastembed.",
            show_default=False,
        ),
    ] = None,
    verify: Annotated[
        Path | None, typer.Option(help="Folder of a task's files: compare both models on its dev set.", metavar="DIR")
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="The task of --verify; or a task file, without --verify.", metavar="NAME")
    ] = None,
    labels: options.Labels = None,
    overrides: options.Overrides = None,
    json: options.Json = False,
) -> None:
    """Write MODEL as ONNX, or as a float checkpoint that transformers loads without tritune.

    An ONNX folder holds the graph, `config.json` and the tokenizer or image processor. The graph quantizes activations
    as the model does and multiplies integers; a sentence encoder's also pools. `--layout` places the files where a
    program looks for them. A dense checkpoint stores the ternary weights as floats; its activations are float.
    `--verify` compares the answers of both models on a dev set; `--set` then takes what `tritune evaluate` takes.

    Example: `tritune export run/ --output onnx/ --verify glue/SST-2 --task sst2`
    """
    from ..deploy.export.layouts import LAYOUTS
    from ..recipes import check_evaluation_keys

    chosen = LAYOUTS[layout].settled(target, opset)
    if target == "web" and format != "onnx":
        raise TrituneError("--target web is for --format onnx")
    if verify is not None and task is None:
        raise TrituneError("--verify needs --task")
    if task is None and labels:
        raise TrituneError("--labels names the labels of the task that --verify compares on; give --task")
    if task is None and overrides:
        raise TrituneError("--set changes how --verify reads its data; without --verify it has no effect")
    check_evaluation_keys(overrides or [])
    if task is not None:
        asked = options.Asked(task, labels)
        options.check_task(asked.task, asked.own, trains=False)
        if verify is None and not is_task_file(task):
            raise TrituneError(f"--task {task}: --verify must name the folder of its files")
    if chosen.program and (format != "onnx" or output.suffix == ".onnx"):
        raise TrituneError(
            f"--layout {layout}: is that of an ONNX folder; give --output a folder and no --format dense"
        )
    _check_output(output, model, format)
    options.begin(model)
    from ..deploy.export.write import write_export
    from ..inference.evaluate import recipe_in_force
    from ..tasks.registry import get_task
    from .show import show_export, show_notes, show_result

    known = None
    if task is not None:
        found = options.open_task(task, asked.own, trains=False) if labels else get_task(task)
        known = found.for_model(model)
    head = _head_of(model, known)
    chosen.check(head.name)
    loaded = _load(model, head, known)
    recipe = recipe_in_force(model, loaded, overrides or [], known)
    if recipe.long_texts != "truncate":
        show_notes([f"long texts: {model} {_LONG_TEXTS[recipe.long_texts]}"])
    processor = head.load_processor(model, loaded, recipe.max_length)
    compare = _comparison(loaded, known, verify, processor, recipe) if known else None
    report: dict[str, Any] = {"output": str(output), "format": format}
    with _in_place(output, format) as place:
        written = write_export(loaded, head, processor, place, format, chosen, recipe.max_length)
        report["size_bytes"] = written.stat().st_size
        if compare:
            report["verify"] = compare(written if format == "onnx" else place)
        if chosen.program:
            made = {"name": str(output), "source": model, "recipe": recipe.name, "file": written, "opset": chosen.opset}
            _add_card(place, loaded, head, chosen, **made, verified=report.get("verify"))
    show_result(report, show_export, as_json=json)


def _head_of(model: str, task: Any) -> Any:
    """The kind of task of a model in a folder or on the hub, which must be that of `task` where there is one."""
    from ..checkpoints.load import load_config
    from ..tasks.heads import head_of, head_of_class

    config = load_config(model)
    name = next(iter(config.architectures or ()), None)
    head = head_of(config) if name is None else head_of_class(name)
    if task and head and head.name != task.head.name:
        raise TrituneError(f"--task {task.name}: is {task.head.name}, and {model} is a model for {head.name}")
    if task:
        return task.head
    if head is None:
        raise TrituneError(
            f"{model}: {name} answers no kind of task that tritune knows; if it is a sentence encoder, verify it as "
            "one (--verify … --task features)"
        )
    return head.for_model(model)


def _load(source: str | Path, head: Any, task: Any) -> Any:
    from ..checkpoints.load import load_pretrained
    from ..tasks.models import load_model

    return load_model(source, task) if task else load_pretrained(head.auto_model, source)


def _comparison(
    model: Any, task: Any, data: Path | None, processor: Any, recipe: Any
) -> Callable[[Path], dict[str, Any]]:
    """Reads the dev set, of which a row may be unusable, and returns what compares a written model on it."""
    from ..deploy.export.runtime import OnnxModel
    from ..deploy.export.verify import compare_on_dev
    from ..tasks.data import load_task_data

    splits = load_task_data(task, data, task.dev_splits)
    task = replace(task, long_texts=recipe.long_texts)
    encoded = task.head.encode(splits, task, processor, recipe.max_length, recipe.padding)

    def compare(written: Path) -> dict[str, Any]:
        """Of an ONNX file, or the folder of a float checkpoint."""
        exported = OnnxModel(written, model.config) if written.is_file() else _load(written, task.head, task)
        batch_size = recipe.per_device_eval_batch_size or task.batch_size
        return compare_on_dev(model, exported, task, encoded, batch_size)

    return compare


def _check_output(output: Path, model: str, format: Format) -> None:
    from ..deploy.export.layouts import is_file

    if is_file(output, format):
        if output.exists():
            raise TrituneError(f"{output}: exists already; remove it or choose another name")
        if not output.absolute().parent.is_dir():
            raise TrituneError(f"{output}: there is no folder {output.parent} to write to")
        return
    from ..training.run_folder import check_free

    check_free(output, overwrite=False, inputs=(model,))


def _in_place(output: Path, format: Format) -> AbstractContextManager[Path]:
    """Where to write: a file replaces itself, a folder is replaced when all is there."""
    from ..checkpoints.files import replace_folder
    from ..deploy.export.layouts import is_file

    return nullcontext(output) if is_file(output, format) else replace_folder(output)


def _add_card(folder: Path, *what: Any, **values: Any) -> None:
    from ..deploy.export.card import CARD, export_card

    command = shlex.join(["tritune", *sys.argv[1:]])
    export_card(*what, command=command, **values).save(folder / CARD)
