"""What lies beside a sentence encoder, in a folder or on the hub: `engine.sentence_files` reads it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from transformers import PreTrainedTokenizerBase
from transformers.utils import cached_file

from ...checkpoints.hub import located
from ...engine.sentence_files import MODULES, read_settings
from ...errors import TrituneError, first_line
from .pooling import Pooling


@dataclass(frozen=True)
class SentenceFiles:
    """How a model folder makes embeddings of hidden states.

    Attributes:
        pooling: in force; the mean, as sentence-transformers takes it, where no file says anything.
        width: of the hidden states, as the files say; None if they do not.
        max_length: tokens that are read of a text; None if the files do not say.
        contents: path in the folder to the bytes of every file that sentence-transformers needs beside the model.
    """

    pooling: Pooling = field(default_factory=Pooling)
    width: int | None = None
    max_length: int | None = None
    contents: Mapping[str, bytes] = field(default_factory=dict)

    def write(self, folder: str | Path) -> None:
        """Put the files into a folder."""
        for name, content in self.contents.items():
            path = Path(folder) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


@dataclass(frozen=True)
class SentenceProcessor:
    """A tokenizer that is saved together with the files of a sentence encoder."""

    tokenizer: PreTrainedTokenizerBase
    files: SentenceFiles

    @property
    def model_input_names(self) -> list[str]:
        """The tokenizer's."""
        return self.tokenizer.model_input_names

    @property
    def padding_side(self) -> str:
        """The tokenizer's."""
        return self.tokenizer.padding_side

    def save_pretrained(self, folder: str | Path) -> None:
        """Write tokenizer and files."""
        self.tokenizer.save_pretrained(folder)
        self.files.write(folder)


def read_sentence_files(source: str | Path) -> SentenceFiles:
    """The files of a model in a folder or on the hub; the defaults where there are none.

    Raises TrituneError, naming file and key, if a file is broken or asks for something that is not supported.
    """
    source = located(source)
    settings = read_settings(source, lambda name: _content(source, name))
    pooling = Pooling(settings.modes, settings.normalize)
    return SentenceFiles(pooling, settings.width, settings.max_length, settings.contents)


def described(pooling: Pooling, width: int, max_length: int) -> SentenceFiles:
    """The files that describe a pooling of hidden states of this width to sentence-transformers."""
    names = ("Transformer", "Pooling", *(("Normalize",) if pooling.normalize else ()))
    paths = ["" if name == "Transformer" else f"{index}_{name}" for index, name in enumerate(names)]
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{name}"}
        for index, (name, path) in enumerate(zip(names, paths, strict=True))
    ]
    modes = pooling.modes[0] if len(pooling.modes) == 1 else list(pooling.modes)
    values = {
        MODULES: modules,
        "1_Pooling/config.json": {"word_embedding_dimension": width, "pooling_mode": modes},
        "sentence_bert_config.json": {"max_seq_length": max_length, "do_lower_case": False},
    }
    contents = {name: (json.dumps(value, indent=2) + "\n").encode() for name, value in values.items()}
    return SentenceFiles(pooling, width, max_length, contents)


def _content(source: str | Path, name: str) -> bytes | None:
    """The bytes of a file of a folder or a hub repository, None if it is not there."""
    try:
        if Path(source).is_dir():
            found = str(Path(source) / name)
        else:
            found = cached_file(source, name, _raise_exceptions_for_missing_entries=False) or ""
        return Path(found).read_bytes() if Path(found).is_file() else None
    except OSError as error:
        raise TrituneError(f"{source}: {name} cannot be read ({first_line(error)})") from None
