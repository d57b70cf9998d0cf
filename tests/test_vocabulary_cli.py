"""`tritune shrink --vocabulary`: texts from files, a folder that loads, trains and packs, one line for bad input."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

import tritune
from sentence_encoder import make_encoder
from small_tokenizers import KINDS, TEXTS
from test_vocabulary import model_of
from tritune.engine import binding
from workspace import make_workspace, train_arguments
from zoo import SERVED


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    folder = make_workspace(tmp_path_factory.mktemp("workspace"))
    lines = (folder / "data" / "train.tsv").read_text().splitlines()
    (folder / "few.tsv").write_text("\n".join(lines[:12]) + "\n")
    return folder


def shrunk(cli, workspace, name, *arguments):
    code, out, err = cli("shrink", workspace / "teacher", "--output", workspace / name, "--json", *arguments)
    assert code == 0, err
    return workspace / name, json.loads(out)


def test_a_smaller_teacher_answers_as_before(workspace, cli):
    few, dev = workspace / "few.tsv", workspace / "data" / "dev.tsv"
    folder, made = shrunk(cli, workspace, "small", "--vocabulary", few, "--held-out", dev)
    texts = [line.split("\t")[0] for line in few.read_text().splitlines()[1:]]
    before, after = (AutoTokenizer.from_pretrained(path) for path in (workspace / "teacher", folder))
    found = made["vocabulary"]
    assert (found["tokens"], found["of"], found["texts"]) == (len(after), len(before), 11) and len(after) < len(before)
    assert set(after.get_vocab()) == {"[PAD]", "[UNK]", "[CLS]", "[SEP]", *" ".join(texts).split()}
    words = [word for line in dev.read_text().splitlines()[1:] for word in line.split("\t")[0].split()]
    unknown = sum(word not in after.get_vocab() for word in words)
    assert found["held_out"] == {
        "texts": len(dev.read_text().splitlines()) - 1,
        "tokens": len(words),
        "unknown_before": 0,
        "unknown": unknown,
        "split": 0,
        "tokens_after": len(words),
    }
    teacher, small = (
        AutoModelForSequenceClassification.from_pretrained(path) for path in (workspace / "teacher", folder)
    )
    with torch.no_grad():
        expected, logits = (
            model(**tokenizer(texts, padding=True, return_tensors="pt")).logits
            for model, tokenizer in ((teacher, before), (small, after))
        )
    assert torch.equal(expected, logits) and small.config.id2label == teacher.config.id2label
    assert json.loads((folder / "shrunk.json").read_text())["sha256"] == made["sha256"]
    assert not {"vocab.txt", "vocab.json", "merges.txt", "sentencepiece.bpe.model"} & {p.name for p in folder.iterdir()}
    code, out, _ = cli(
        "shrink", workspace / "teacher", "--vocabulary", few, "--held-out", dev, "--output", folder, "--overwrite"
    )
    assert (
        code == 0
        and f"{len(after)} of {len(before)} tokens: " in out
        and f"{unknown / len(words):.2%} became unknown" in out
    )


def test_with_layers(workspace, cli):
    folder, made = shrunk(cli, workspace, "both", "--vocabulary", workspace / "few.tsv", "--layers", "1")
    small, teacher = (load_file(path / "model.safetensors") for path in (folder, workspace / "teacher"))
    config = json.loads((folder / "config.json").read_text())
    assert made["layers"] == [1] == config["tritune_shrunk"]["layers"] and config["num_hidden_layers"] == 1
    name = next(name for name in small if name.endswith("word_embeddings.weight"))
    tokens = [
        json.loads((path / "tokenizer.json").read_text())["model"]["vocab"] for path in (folder, workspace / "teacher")
    ]
    assert all(torch.equal(small[name][row], teacher[name][tokens[1][token]]) for token, row in tokens[0].items())


def test_texts_of_every_file(workspace, cli, tmp_path):
    """Columns are looked up in each file; blank cells and lines are no texts."""
    (tmp_path / "a.csv").write_text("id,title,body\n1,the king,\n2,,the queen\n", encoding="utf-8")
    (tmp_path / "b.jsonl").write_text('{"body": "a dog", "n": 1}\n{"body": null}\n{"n": 2}\n')
    (tmp_path / "c.txt").write_text("the cats\tsleep\n\nold\n")
    options = ("--text-columns", "title, body,text,text_pair")
    files = [part for name in ("a.csv", "b.jsonl", "c.txt") for part in ("--vocabulary", tmp_path / name)]
    folder, made = shrunk(cli, workspace, "files", *files, *options)
    words = {"the", "king", "queen", "dog", "cats", "sleep", "old"}
    assert set(AutoTokenizer.from_pretrained(folder).get_vocab()) == {"[PAD]", "[UNK]", "[CLS]", "[SEP]", *words}
    assert made["vocabulary"]["texts"] == 6
    folder, made = shrunk(cli, workspace, "often", "--vocabulary", workspace / "few.tsv", "--min-count", "1000000")
    assert made["vocabulary"]["tokens"] == 4


def test_a_sentence_encoder_keeps_its_files(cli, tmp_path):
    encoder = make_encoder(tmp_path / "encoder")
    (tmp_path / "lines.txt").write_text("the man eats\na woman\n")
    code, _, err = cli("shrink", encoder, "--vocabulary", tmp_path / "lines.txt", "--output", tmp_path / "small")
    assert code == 0, err
    for name in ("modules.json", "1_Pooling/config.json", "sentence_bert_config.json"):
        assert (tmp_path / "small" / name).read_bytes() == (encoder / name).read_bytes()


@pytest.mark.parametrize("kind", ["wordpiece", "unigram", "byte_level"])
def test_files_of_a_folder_that_would_contradict_are_not_taken_along(cli, tmp_path, kind):
    """Lists of tokens beside the tokenizer.json are of the old vocabulary, and so are ids in old configs."""
    tokenizer = KINDS[kind]()
    model_of(SERVED["RoBERTa"], tokenizer).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    for name in ("vocab.txt", "vocab.json", "merges.txt", "sentencepiece.bpe.model", "added_tokens.json"):
        (tmp_path / "model" / name).write_text("{}")
    path = tmp_path / "model" / "tokenizer_config.json"
    added = {
        str(index): {"content": str(token), "special": token.special}
        for index, token in tokenizer.added_tokens_decoder.items()
    }
    path.write_text(json.dumps(json.loads(path.read_text()) | {"added_tokens_decoder": added}))
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    code, _, err = cli(
        "shrink", tmp_path / "model", "--vocabulary", tmp_path / "texts.txt", "--output", tmp_path / "small"
    )
    assert code == 0, err
    names = {"config.json", "model.safetensors", "shrunk.json", "tokenizer.json", "tokenizer_config.json"}
    assert {file.name for file in (tmp_path / "small").iterdir()} == names
    assert "added_tokens_decoder" not in (tmp_path / "small" / "tokenizer_config.json").read_text()
    small = AutoTokenizer.from_pretrained(tmp_path / "small")
    assert small("the <entity> sea").input_ids.count(small.convert_tokens_to_ids("<entity>")) == 1
    assert len(small) == AutoModel.from_pretrained(tmp_path / "small").config.vocab_size


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give --layers, --vocabulary, or both"),
        (("--layers", "0", "--held-out", "x.txt"), "--text-columns, --min-count and --held-out are about texts"),
        (("--vocabulary", "few.txt", "--min-count", "0"), "--min-count must be at least 1; got 0"),
        (("--vocabulary", "none.txt"), "none.txt: cannot be read (No such file or directory)"),
        (("--vocabulary", "empty.txt"), "empty.txt: holds no rows"),
        (("--vocabulary", "blank.txt"), "the texts have no tokens"),
        (("--vocabulary", "latin.txt"), "latin.txt, line 2: not UTF-8 text"),
        (("--vocabulary", "few.doc"), "few.doc: unknown kind of file"),
        (("--vocabulary", "few.csv"), "few.csv: say with --text-columns which of 'a', 'b' hold the text"),
        (("--vocabulary", "few.csv", "--text-columns", "c"), "few.csv: no column 'c'; there are 'a', 'b'"),
        (("--vocabulary", "few.jsonl"), "few.jsonl, row 2: 'text' must be text, found 3"),
        (("--vocabulary", "few.txt", "--held-out", "empty.txt"), "empty.txt: holds no rows"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input_is_one_line(workspace, cli, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").write_text("")
    Path("blank.txt").write_text("\n  \n\n")
    Path("latin.txt").write_bytes(b"the king\nna\xefve\n")
    Path("few.txt").write_text("the king\n")
    Path("few.doc").write_text("the king\n")
    Path("few.csv").write_text("a,b\nthe,king\n")
    Path("few.jsonl").write_text('{"text": "the"}\n{"text": 3}\n')
    code, out, err = cli("shrink", workspace / "teacher", "--output", tmp_path / "bad", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1) and message in err
    assert not (tmp_path / "bad").exists()


def test_teachers_without_a_vocabulary(workspace, cli, tmp_path):
    few = workspace / "few.tsv"
    SERVED["ViT"].build().save_pretrained(tmp_path / "vit")
    model = AutoModelForSequenceClassification.from_pretrained(workspace / "teacher")
    tritune.prepare(model).save_pretrained(tmp_path / "qat")
    for source, message in (
        ("vit", "takes no texts, so it has no vocabulary"),
        ("qat", "already quantized; give a float model"),
    ):
        code, _, err = cli("shrink", tmp_path / source, "--vocabulary", few, "--output", tmp_path / "bad")
        assert code == 2 and message in err and err.count("\n") == 1 and not (tmp_path / "bad").exists()
    own = shutil.copy(few, tmp_path / "vit")
    code, _, err = cli(
        "shrink", workspace / "teacher", "--vocabulary", own, "--output", tmp_path / "vit", "--overwrite"
    )
    assert code == 2 and "the output folder is also an input, or holds" in err


@pytest.mark.slow
def test_a_smaller_teacher_is_trained_and_packed(workspace, cli):
    """Teacher and student share the tokenizer; as the student of the large one it is refused."""
    folder, _ = shrunk(cli, workspace, "taught", "--vocabulary", workspace / "data" / "train.tsv", "--min-count", "40")
    settings = [
        part for key in ("max_steps=4", "eval_steps=2", "logging_steps=1", "save_steps=2") for part in ("--set", key)
    ]
    data = ("--task", "demo", "--data", workspace / "data")
    code, _, err = cli("train", folder, *data, "--recipe", "ti-g-deploy", "--output", workspace / "run", *settings)
    assert code == 0, err
    assert cli("convert", workspace / "run", "--output", workspace / "packed")[0] == 0
    assert cli("evaluate", workspace / "packed", *data)[0] == 0
    if binding.LIBRARY.exists():
        assert tritune.load(workspace / "packed").engine == "native"
    code, _, err = cli(*train_arguments(workspace, workspace / "other", "--student", folder, *settings))
    assert code == 2 and "the student's tokenizer has other tokens than the teacher's" in err
