"""Where the programs that run exported models look for their files; can be checked without importing torch."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from ...errors import TrituneError
from .opsets import DEFAULT_OPSETS, OPSETS, Target, check_opset

# Read by every ONNX Runtime since 1.14, whichever is installed beside the program.
_OLD_OPSET = 18
_ENCODERS = "feature-extraction"


@dataclass(frozen=True)
class Layout:
    """What a program expects of a folder.

    Attributes:
        name: of the layout.
        file: the ONNX file of a quantized model, from the folder on.
        float_file: that of a float one.
        target: of the graph.
        opset: of a graph with that target; None for the usual one of a target.
        newest_opset: that the program's own runtime reads, whatever the target.
        kinds: the kinds of tasks that the program runs, see `tasks.names`; empty for all.
        program: its name in the model card; empty for a layout that has none, and no files for certain programs.
    """

    name: str
    file: str = "model.onnx"
    float_file: str = "model.onnx"
    target: Target = "native"
    opset: int | None = None
    newest_opset: int = OPSETS[-1]
    kinds: tuple[str, ...] = ()
    program: str = ""

    def settled(self, target: Target | None = None, opset: int | None = None) -> Self:
        """The layout with another target or opset, and no opset left open.

        Raises:
            TrituneError: the opset is not supported.
        """
        check_opset(opset)
        target = target or self.target
        own = self.opset if target == self.target else None
        return replace(self, target=target, opset=opset or own or min(DEFAULT_OPSETS[target], self.newest_opset))

    def check(self, kind: str) -> None:
        """Raise TrituneError if the program does not run models of this kind of task."""
        if self.kinds and kind not in self.kinds:
            raise TrituneError(
                f"--layout {self.name}: for {' and '.join(self.kinds)}; export a model for {kind} with --layout plain "
                "or transformers.js"
            )


LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout("plain"),
        # The suffix of the dtype `q8`, which browsers take by default. Its own runtime has no kernel for INT2 there.
        Layout(
            "transformers.js",
            "onnx/model_quantized.onnx",
            "onnx/model.onnx",
            target="web",
            newest_opset=21,
            program="transformers.js",
        ),
        Layout(
            "sentence-transformers",
            "onnx/model.onnx",
            "onnx/model.onnx",
            opset=_OLD_OPSET,
            kinds=(_ENCODERS, "text-classification"),
            program="sentence-transformers",
        ),
        Layout("fastembed", opset=_OLD_OPSET, kinds=(_ENCODERS,), program="fastembed"),
    )
}


def is_file(output: Path, format: str) -> bool:
    """Whether an export in that format is one file and no folder."""
    return output.suffix == ".onnx" and format == "onnx"
