"""A tiny model whose tokenizer cuts words into pieces, and tiny files of questions and of tagged sentences."""

import json
import random
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, RobertaTokenizer

PLACES = ["Arles", "Bergen", "Como", "Delft", "Essen", "Faro"]
NAMES = ["Ada", "Ben", "Cleo", "Dora", "Emil"]
WORDS = ["what", "is", "where", "lives", "in", "the", "who", "and", "works", "for", *NAMES[:3], *PLACES[:3]]
LETTERS = [chr(code) for code in range(33, 127)] + ["é", "ü"]


def bert_tokenizer() -> PreTrainedTokenizerFast:
    """WordPiece over some words and all letters: what is no word becomes a piece a letter."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS, *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep")}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def roberta_tokenizer(add_prefix_space: bool = False) -> RobertaTokenizer:
    """Byte-level BPE without merges: a piece a byte."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", *letters])}
    return RobertaTokenizer(vocab=vocabulary, merges=[], add_prefix_space=add_prefix_space)


def write_base(folder: Path, tokenizer=None) -> Path:
    """A base model without any head."""
    tokenizer = bert_tokenizer() if tokenizer is None else tokenizer
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=96,
        pad_token_id=tokenizer.pad_token_id,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_left_padding(folder: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    """The tokenizer as one that pads on the left."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"padding_side": "left"}))
    return folder


def squad(paragraphs: list[tuple[str, list[dict]]], version: str = "1.1") -> dict:
    """SQuAD's JSON of contexts with their questions."""
    inner = [{"context": context, "qas": asked} for context, asked in paragraphs]
    return {"version": version, "data": [{"title": "all", "paragraphs": inner}]}


def question(name: str, text: str, context: str, *answers: str, **more) -> dict:
    """A question whose answers stand where they first occur in the context."""
    found = [{"text": answer, "answer_start": context.index(answer)} for answer in answers]
    return {"id": name, "question": text, "answers": found, **more}


def write_squad(folder: Path, rows: int = 24, dev_rows: int = 9, unanswerable: bool = False) -> Path:
    """`train.json` and `dev.json`: who lives where, with contexts of one window and of several."""
    folder.mkdir(parents=True, exist_ok=True)
    chance = random.Random(0)
    for name, count in (("train", rows), ("dev", dev_rows)):
        paragraphs = []
        for number in range(count):
            pairs = [(chance.choice(NAMES), chance.choice(PLACES)) for _ in range(1 + 4 * (number % 3))]
            context = ", ".join(f"{person} lives in {place}" for person, place in pairs) + "."
            person, place = pairs[-1]
            asked = question(f"{name}-{number}", f"where lives {person}?", context, place, f"in {place}")
            if unanswerable and number % 4 == 3:
                asked = {"id": f"{name}-{number}", "question": "who works?", "answers": [], "is_impossible": True}
            paragraphs.append((context, [asked]))
        (folder / f"{name}.json").write_text(json.dumps(squad(paragraphs)), encoding="utf-8")
    return folder


def write_tagged(folder: Path, rows: int = 40, dev_rows: int = 12) -> Path:
    """`train.txt` and `dev.txt` in the four columns of CoNLL, names and places of one or two words."""
    folder.mkdir(parents=True, exist_ok=True)
    chance = random.Random(1)
    for name, count in (("train", rows), ("dev", dev_rows)):
        lines = ["-DOCSTART- -X- O O", ""]
        for _ in range(count):
            for person in range(chance.randint(1, 2)):
                lines += [f"{chance.choice(NAMES)} NNP I-NP {'B' if person else 'I'}-PER"]
            lines += ["works VB I-VP O"] if chance.random() < 0.5 else ["lives VB I-VP O", "in IN I-PP O"]
            lines += [f"{chance.choice(PLACES)} NNP I-NP I-LOC", ". . O O", ""]
        (folder / f"{name}.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder
