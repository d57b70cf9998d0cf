"""A tiny random sentence encoder with the files of sentence-transformers, and pairs to score it on."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

WORDS = [
    "a",
    "the",
    "man",
    "woman",
    "dog",
    "cat",
    "plays",
    "eats",
    "sees",
    "music",
    "food",
    "flute",
    "ball",
    "slowly",
    "today",
]
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
TYPES = {
    "Transformer": "sentence_transformers.models.Transformer",
    "Pooling": "sentence_transformers.models.Pooling",
    "Normalize": "sentence_transformers.models.Normalize",
    "Dense": "sentence_transformers.models.Dense",
}
MEAN = {"word_embedding_dimension": 16, "pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}


def modules(*names: str) -> list[dict]:
    """`modules.json` of these modules."""
    paths = ["" if name == "Transformer" else f"{index}_{name}" for index, name in enumerate(names)]
    return [
        {"idx": index, "name": str(index), "path": path, "type": TYPES[name]}
        for index, (name, path) in enumerate(zip(names, paths, strict=True))
    ]


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def make_encoder(folder: Path, pooling: dict | None = MEAN, normalize: bool = True) -> Path:
    """Two layers of width 16; without `pooling` a plain model."""
    torch.manual_seed(0)
    vocabulary = {word: index for index, word in enumerate((*SPECIAL, *WORDS))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=32, **names).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=128,
        initializer_range=0.5,
        pad_token_id=0,
    )
    BertModel(config).save_pretrained(folder)
    if pooling is not None:
        names = ("Transformer", "Pooling", *(("Normalize",) if normalize else ()))
        write_json(folder / "modules.json", modules(*names))
        write_json(folder / "1_Pooling" / "config.json", pooling)
        write_json(folder / "sentence_bert_config.json", {"max_seq_length": 32, "do_lower_case": False})
        write_json(folder / "config_sentence_transformers.json", {"__version__": {"sentence_transformers": "2.0.0"}})
    return folder


def sentences(count: int, seed: int = 0) -> list[str]:
    """Sentences of two to eight words."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 9, (count,), generator=generator).tolist()
    return [" ".join(WORDS[i] for i in torch.randint(len(WORDS), (length,), generator=generator)) for length in lengths]


def make_pairs(folder: Path, train: int = 24, dev: int = 8) -> Path:
    """A folder of STS-B's files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("train", train), ("dev", dev)):
        texts = sentences(2 * rows, seed=rows)
        lines = [f"{a}\t{b}\t{index % 6}.0" for index, (a, b) in enumerate(zip(texts[::2], texts[1::2], strict=True))]
        (folder / f"{name}.tsv").write_text("\n".join(["sentence1\tsentence2\tscore", *lines, ""]), encoding="utf-8")
    return folder
