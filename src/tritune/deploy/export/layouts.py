"""Where the programs that run exported models look for their files; can be checked without importing torch."""

from dataclasses import dataclass

from ...errors import TrituneError
from .opsets import DEFAULT_OPSET

# Read by every ONNX Runtime since 1.14. That of transformers.js 4.3.2 in browsers has no kernel for opset 25's INT2.
_OLD_OPSET = 18
_ENCODERS = "feature-extraction"


@dataclass(frozen=True)
class Layout:
    """What a program expects of a folder.

    Attributes:
        name: of the layout.
        file: the ONNX file of a quantized model, from the folder on.
        float_file: that of a float one.
        opset: where the user names none.
        kinds: the kinds of tasks that the program runs, see `tasks.names`; empty for all.
        library: of the model card; empty for a layout that has none, and no files for certain programs.
    """

    name: str
    file: str = "model.onnx"
    float_file: str = "model.onnx"
    opset: int = _OLD_OPSET
    kinds: tuple[str, ...] = ()
    library: str = ""

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
        Layout("plain", opset=DEFAULT_OPSET),
        # The suffix of the dtype `q8`, which browsers take by default.
        Layout("transformers.js", "onnx/model_quantized.onnx", "onnx/model.onnx", library="transformers.js"),
        Layout(
            "sentence-transformers",
            "onnx/model.onnx",
            "onnx/model.onnx",
            kinds=(_ENCODERS, "text-classification"),
            library="sentence-transformers",
        ),
        Layout("fastembed", kinds=(_ENCODERS,), library="fastembed"),
    )
}
