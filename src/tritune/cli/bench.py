"""`tritune bench`: size, memory and speed against other runtimes."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import TrituneError
from . import options


def bench(
    model: Annotated[str, typer.Argument(help="A run that `tritune train` wrote.", metavar="MODEL")],
    against: Annotated[
        str, typer.Option(help="Runtimes, separated by commas: onnxruntime, openvino, torch.")
    ] = "onnxruntime",
    batches: Annotated[str, typer.Option(help="Batch sizes, separated by commas.")] = "1,8",
    lengths: Annotated[str, typer.Option(help="Sequence lengths in tokens, separated by commas.")] = "32,128",
    repeats: Annotated[int, typer.Option(help="Timed runs per contender and shape.")] = 15,
    threads: Annotated[int, typer.Option(help="Threads per contender.")] = 1,
    output: Annotated[
        Path | None,
        typer.Option(help="Output folder for bench.csv, .png and .svg; new or empty.", metavar="FOLDER"),
    ] = None,
    json: options.Json = False,
) -> None:
    """Compare MODEL, exported to ONNX, with the same model in other runtimes.

    All contenders take turns in this process with the same number of threads; latencies are medians, and ratios are
    relative to ONNX Runtime float32 in the same run. 8-bit peers are quantized by the runtimes' own one-line calls.
    Peak memory is measured in a separate process per contender.

    Example: `tritune bench run/ --against onnxruntime,openvino,torch --output bench/`
    """
    from ..deploy.bench.contenders import check_peers

    peers = [peer for peer in options.comma_separated(against) if peer]
    shapes = {"batches": _numbers("batches", batches), "lengths": _numbers("lengths", lengths)}
    check_peers(peers)
    options.begin(model)
    from ..checkpoints.load import load_config, load_pretrained, positions
    from ..deploy.bench.measure import bench as measure
    from ..tasks.heads import TEXT_CLASSIFICATION, head_of
    from .show import show_bench, show_result

    if output is not None:
        from ..training.run_folder import check_free

        check_free(output, overwrite=False, inputs=(model,))
    if (head := head_of(load_config(model))) is not TEXT_CLASSIFICATION:
        raise TrituneError(f"{model}: for {head.name}; bench measures models for {TEXT_CLASSIFICATION.name}")
    loaded = load_pretrained(head.auto_model, model)
    if (room := positions(loaded)) is not None and max(shapes["lengths"]) > room:
        raise TrituneError(f"--lengths: {max(shapes['lengths'])} is more than the {room} positions of {model}")
    results = {"model": model, **measure(loaded, peers, **shapes, repeats=repeats, threads=threads)}
    if output is not None:
        _write(results, output)
    show_result(results, show_bench, as_json=json)


def _numbers(name: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise TrituneError(f"--{name}: must be whole numbers separated by commas, got {text!r}") from None


def _write(results: dict, output: Path) -> None:
    from ..analysis.plots import runtime_bars, save
    from ..checkpoints.files import replace_folder
    from ..deploy.bench.measure import table_rows
    from ..tasks.table import write_table

    figure = runtime_bars(results["timings"])
    with replace_folder(output) as partial:
        write_table(partial / "bench.csv", table_rows(results))
        for ending in ("png", "svg"):
            save(figure, partial / f"bench.{ending}")
