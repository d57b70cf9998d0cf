"""`tritune export`: a model for other runtimes."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ..errors import TrituneError
from ..tasks.names import is_task_file
from . import options

Format = Literal["onnx", "dense"]


def export(
    model: Annotated[str, typer.Argument(help="A run, a teacher or any fine-tuned model.", metavar="MODEL")],
    output: Annotated[Path, typer.Option(help="Folder to write, new or empty; or a new .onnx file.", metavar="PATH")],
    format: Annotated[
        Format, typer.Option(help="onnx: 2-bit weights, integer products. dense: float weights.")
    ] = "onnx",
    opset: Annotated[int, typer.Option(help="ONNX opset, 18 to 25; below 25, 2-bit codes are stored as bytes.")] = 25,
    verify: Annotated[
        Path | None, typer.Option(help="Folder of a task's files: compare both models on its dev set.", metavar="DIR")
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="The task of --verify; or a task file, without --verify.", metavar="NAME")
    ] = None,
    overrides: options.Overrides = None,
    json: options.Json = False,
) -> None:
    """Write MODEL as ONNX, or as a float checkpoint that transformers loads without tritune.

    An ONNX folder holds `model.onnx`, `config.json` and the tokenizer or image processor. The graph quantizes
    activations as the model does and multiplies integers. A dense checkpoint stores the ternary weights as floats; its
    activations are float.
    `--verify` reports on how many dev rows both models agree; `--set` then takes what `tritune evaluate` takes.

    Example: `tritune export run/ --output onnx/ --verify glue/SST-2 --task sst2`
    """
    from ..deploy.export.opsets import check_opset
    from ..recipes import check_evaluation_keys

    check_opset(opset)
    if verify is not None and task is None:
        raise TrituneError("--verify needs --task")
    if task is None and overrides:
        raise TrituneError("--set changes how --verify reads its data; without --verify it has no effect")
    check_evaluation_keys(overrides or [])
    if task is not None:
        options.check_task(task)
        if verify is None and not is_task_file(task):
            raise TrituneError(f"--task {task}: --verify must name the folder of its files")
    _check_output(output, model, format)
    options.begin(model)
    from ..checkpoints.load import load_config, load_pretrained
    from ..deploy.export.write import write_export
    from ..inference.evaluate import recipe_in_force
    from ..tasks.data import load_task_data
    from ..tasks.heads import IMAGE_CLASSIFICATION, TEXT_CLASSIFICATION, head_of
    from ..tasks.models import load_model
    from ..tasks.registry import get_task
    from .show import show_export, show_result

    known = get_task(task) if task else None
    if known and not known.head.has_logits:
        raise TrituneError(f"--task {task}: only models that output logits can be exported")
    head = head_of(load_config(model))
    if head not in (TEXT_CLASSIFICATION, IMAGE_CLASSIFICATION):
        raise TrituneError(f"{model}: for {head.name}, which is not exported yet; `tritune convert` packs it")
    loaded = load_model(model, known) if known else load_pretrained(head.auto_model, model)
    recipe = recipe_in_force(model, loaded, overrides or [], known)
    processor = head.load_processor(model, loaded, recipe.max_length)
    if known:
        # Before anything is written: a row may be one that cannot be used.
        splits = load_task_data(known, verify, known.dev_splits)
        data = head.encode(splits, known, processor, recipe.max_length, recipe.padding)
    written = write_export(loaded, processor, output, format, opset)
    report: dict[str, Any] = {"output": str(output), "format": format, "size_bytes": written.stat().st_size}
    if known:
        from ..deploy.export.runtime import OnnxClassifier
        from ..deploy.export.verify import compare_on_dev

        exported = OnnxClassifier(written) if format == "onnx" else load_model(output, known)
        batch_size = recipe.per_device_eval_batch_size or known.batch_size
        report["verify"] = compare_on_dev(loaded, exported, known, data, batch_size)
    show_result(report, show_export, as_json=json)


def _check_output(output: Path, model: str, format: Format) -> None:
    if output.suffix == ".onnx" and format == "onnx":
        if output.exists():
            raise TrituneError(f"{output}: exists already; remove it or choose another name")
        if not output.absolute().parent.is_dir():
            raise TrituneError(f"{output}: there is no folder {output.parent} to write to")
        return
    from ..training.run_folder import check_free

    check_free(output, overwrite=False, inputs=(model,))
