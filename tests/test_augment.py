"""Data augmentation: a slow loop as oracle, the laws of the draw, the file byte for byte, and bad input."""

import json
import os
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForMaskedLM, BertConfig, BertForMaskedLM, BertTokenizerFast

from tritune import TrituneError
from tritune.checkpoints.load import load_masked_lm
from tritune.cli import main
from tritune.recipes import FinetuneRecipe, Recipe, load_recipe
from tritune.tasks.data import augmented_file, load_glue_folder, load_task_data
from tritune.tasks.data.augment import (
    STOP_WORDS,
    Augmenter,
    MaskedWords,
    _logits_at,
    like,
    replaceable_words,
    whole_words,
)
from tritune.tasks.data.neighbours import Neighbours, embedding_neighbours, glove_neighbours, read_glove
from tritune.tasks.registry import get_task
from tritune.training.job import fit
from workspace import make_workspace

_WORDS = "cat dog mouse house garden tree river sleeps runs sees eats old small green quick the a of in and not"
WORDS = _WORDS.split()
PIECES = ["##s", "##ing", "##ly", "walk", "slow", "tree", ",", ".", "'", "-", "2", "s", "t"]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys([*WORDS, *PIECES])]
SENTENCES = [
    "The old cat sees a small mouse, and the dog sleeps.",
    "Trees walking slowly in the garden: not 2 dogs - a DOG's house.",
    "the of and",
    "",
    "Zebra  cat zebra\xa0mouse",
]


def make_masked_lm(folder, **config):
    """A tiny masked language model of random weights, with a tokenizer of few words and a few pieces."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    tokenizer = BertTokenizerFast(vocab=str(folder / "vocab.txt"), do_lower_case=True)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    sizes |= {"vocab_size": len(tokenizer), "max_position_embeddings": 32, "initializer_range": 1.0}
    torch.manual_seed(7)
    BertForMaskedLM(BertConfig(**sizes | config)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def mlm(tmp_path_factory):
    return make_masked_lm(tmp_path_factory.mktemp("mlm") / "model")


@pytest.fixture(scope="module")
def glove(tmp_path_factory):
    path = tmp_path_factory.mktemp("glove") / "vectors.txt"
    generator = np.random.default_rng(0)
    words = [*WORDS, "trees", "walking", "slowly", "dogs", "...", "two words", "Trees", "zero"]
    rows = [[word, *(f"{value:.4f}" for value in generator.normal(size=4))] for word in words]
    rows[-1][1:] = ["0.0"] * 4
    path.write_text("\n".join(" ".join(row) for row in rows) + "\n", encoding="utf-8")
    return path


def augmenter_of(mlm, glove=None, count=5, probability=0.4, batch_size=64):
    model = load_masked_lm(mlm)
    tokenizer = transformers.AutoTokenizer.from_pretrained(mlm)
    words = whole_words(tokenizer)
    near = glove_neighbours(glove, count) if glove else embedding_neighbours(model, tokenizer, words, count)
    return Augmenter(MaskedWords(model, tokenizer, words, count, batch_size), near, probability)


def slow_candidates(mlm, glove, text, count):
    """Algorithm 1 word by word: one forward pass each, all logits, float64 cosines."""
    model = BertForMaskedLM.from_pretrained(mlm).eval()
    tokenizer = BertTokenizerFast.from_pretrained(mlm)
    vectors = {}
    for line in glove.read_text().splitlines():
        fields = line.split(" ")
        vectors.setdefault(" ".join(fields[:-4]), np.array([float(x) for x in fields[-4:]], np.float64))
    found = {}
    # Accents apart, BERT's words are runs of letters and digits, and single other characters.
    matches = list(re.finditer(r"[^\W_]+|[^\w\s]", text))
    pieces = [tokenizer.tokenize(match[0]) for match in matches]
    for place, match in enumerate(matches):
        word = match[0]
        if re.search("[^a-z]", word.lower()) or word.lower() in STOP_WORDS:
            continue
        if len(pieces[place]) == 1:
            shown = [piece for own in [*pieces[:place], ["[MASK]"], *pieces[place + 1 :]] for piece in own]
            ids = tokenizer.convert_tokens_to_ids(["[CLS]", *shown, "[SEP]"])
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0, ids.index(tokenizer.mask_token_id)]
            order = [VOCABULARY[index] for index in logits.argsort(descending=True).tolist()]
            answer = sorted([token for token in order if re.fullmatch("[a-z]+", token)][:count])
        else:
            own = vectors.get(word, vectors.get(word.lower()))
            scores = {}
            for other, vector in vectors.items():
                if own is None or other.lower() == word.lower() or not other.isalpha() or not vector.any():
                    continue
                scores[other] = vector @ own / np.linalg.norm(vector) / np.linalg.norm(own)
            answer = sorted(scores, key=scores.get, reverse=True)[:count]
        if answer:
            found[match.span()] = tuple(answer)
    return found


@pytest.mark.parametrize("text", SENTENCES)
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_candidates_are_those_of_a_slow_loop(mlm, glove, text, batch_size):
    found = augmenter_of(mlm, glove, batch_size=batch_size).candidates(text)
    assert found == slow_candidates(mlm, glove, text, 5)


def test_the_sentences_try_both_kinds_of_words(mlm, glove):
    found = augmenter_of(mlm, glove).candidates(SENTENCES[1])
    words = [SENTENCES[1][start:end] for start, end in found]
    assert words == ["Trees", "walking", "slowly", "garden", "dogs", "DOG", "house"]


def test_candidates_without_glove_are_near_in_the_embedding(mlm):
    table = BertForMaskedLM.from_pretrained(mlm).get_input_embeddings().weight.detach().double().numpy()
    tokenizer = BertTokenizerFast.from_pretrained(mlm)
    own = table[tokenizer.convert_tokens_to_ids(["walk", "##ing"])].mean(axis=0)
    whole = [token for token in VOCABULARY if re.fullmatch("[a-z]+", token)]
    scores = {
        token: (vector := table[VOCABULARY.index(token)]) @ own / np.linalg.norm(vector) / np.linalg.norm(own)
        for token in whole
    }
    near = augmenter_of(mlm).candidates("walking")[0, 7]
    assert near == tuple(sorted(scores, key=scores.get, reverse=True)[:5])


def test_a_word_beyond_the_models_length_stays(mlm, glove):
    text = " ".join(["cat"] * 40)
    found = augmenter_of(mlm, glove).candidates(text)
    assert len(found) == 30  # 32 positions less [CLS] and [SEP]


@pytest.mark.parametrize("text", SENTENCES)
def test_nothing_changes_with_probability_0(mlm, glove, text):
    assert augmenter_of(mlm, glove, probability=0.0).variants(text, 20, np.random.default_rng(0)) == []


def test_every_word_is_a_candidate_with_probability_1(mlm, glove):
    augmenter, text = augmenter_of(mlm, glove, probability=1.0), SENTENCES[1]
    candidates = augmenter.candidates(text)
    pattern, done = "", 0
    for (start, end), words in candidates.items():
        choices = "|".join(like(text[start:end], word) for word in words)
        pattern += re.escape(text[done:start]) + f"({choices})"
        done = end
    variants = augmenter.variants(text, 50, np.random.default_rng(0))
    assert len(variants) > 40 and len(set(variants)) == len(variants)
    matches = [re.fullmatch(pattern + re.escape(text[done:]), variant) for variant in variants]
    assert all(matches)
    for group, ((start, end), words) in enumerate(candidates.items(), 1):
        assert {match[group] for match in matches} == {like(text[start:end], word) for word in words}


def test_share_of_replaced_words(mlm, glove):
    """By 2000 draws of 3 words each the share is p (1 - 1/K) where the word itself is among its candidates."""
    augmenter, text = augmenter_of(mlm, glove, probability=0.4), "walking slowly, trees"
    generator, words = np.random.default_rng(1), text.replace(",", "").split()
    changed = draws = 0
    for _ in range(2000):
        (*_, variant) = [text, *augmenter.variants(text, 1, generator)]
        changed += sum(a != b for a, b in zip(words, variant.replace(",", "").split(), strict=True))
        draws += len(words)
    assert abs(changed / draws - 0.4) < 4 * (0.4 * 0.6 / draws) ** 0.5


def test_stop_words_numbers_and_mixed_words_stay():
    text = "The 2nd man_made DON'T-care café naïve X1 of"
    assert [text[slice(*span)] for span in replaceable_words(text)] == ["care", "café", "naïve"]


def test_whole_words_leave_out_pieces_and_special_tokens(mlm):
    tokenizer = BertTokenizerFast.from_pretrained(mlm)
    assert list(whole_words(tokenizer).values()) == [word for word in VOCABULARY if re.fullmatch("[a-z]+", word)]


def byte_level():
    """As RoBERTa's: a word after a space is another token than one without."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<unk>", "<mask>", "<pad>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(["the cat sees the house and the cat sleeps in the green house"] * 20, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0), add_prefix_space=False)
    return tokenizer


def sentence_piece():
    """As XLM-R's."""
    pieces = ["<s>", "</s>", "<unk>", "<mask>", "<pad>", "▁cat", "▁green", "▁house", "cat", "s", "▁", ",", "▁the"]
    tokenizer = Tokenizer(models.Unigram([(piece, -1.0 - len(piece) / 9) for piece in pieces], unk_id=2))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    return tokenizer


@pytest.mark.parametrize("kind", [byte_level, sentence_piece])
def test_tokenizers_whose_tokens_hold_the_space(kind):
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=kind(), mask_token="<mask>", pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    words = whole_words(tokenizer)
    assert {"cat", "house"} <= set(words.values()) and len(set(words.values())) == len(words)
    assert all(tokenizer.convert_ids_to_tokens(index)[0] in "\u0120\u2581" for index in words)
    config = BertConfig(**TINY | {"vocab_size": len(tokenizer), "initializer_range": 1.0})
    masked = MaskedWords(BertForMaskedLM(config).eval(), tokenizer, words, 3, 64)
    encoded, offsets = masked.encode("green cat, house")
    ids = encoded["input_ids"][0].tolist()
    spans = {span: tokenizer.convert_ids_to_tokens(ids[place]) for place, span in enumerate(offsets)}
    assert spans[6, 9][1:] == "cat" and spans[11, 16][1:] == "house"
    found = Augmenter(masked, lambda word: (), 0.4).candidates("green cat, house")
    assert {(6, 9), (11, 16)} <= found.keys() and all(set(own) <= set(words.values()) for own in found.values())


TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 50}
FAMILIES = {
    "Bert": TINY,
    "Roberta": TINY,
    "Albert": TINY | {"embedding_size": 8},
    "Electra": TINY | {"embedding_size": 8},
    "DistilBert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "vocab_size": 50},
    "DebertaV2": TINY,
    "MobileBert": TINY | {"embedding_size": 8, "intra_bottleneck_size": 16, "num_feedforward_networks": 1},
    "ModernBert": TINY
    | {"pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_head_at_one_place_gives_the_logits_of_that_place(family):
    model = AutoModelForMaskedLM.from_config(getattr(transformers, f"{family}Config")(**FAMILIES[family])).eval()
    ids, places = torch.randint(5, 50, (3, 9)), torch.tensor([1, 8, 4])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        whole = model(**batch).logits
        torch.testing.assert_close(_logits_at(model, batch, places), whole[torch.arange(3), places])
        assert model(**batch).logits.shape == whole.shape


def test_neighbours_of_ties_zeros_and_capitals():
    words = ["one", "two", "three", "One", "zero", "..."]
    vectors = np.array([[1, 0], [0, 1], [0, 1], [1, 0], [0, 0], [1, 0]], np.float32)
    near = Neighbours(words, vectors, dict(zip(words, vectors, strict=True)).get, 3)
    assert near("one") == ("two", "three")
    assert near("zero") == near("absent") == ()
    assert near("...") == ("one", "One", "two")


@pytest.mark.parametrize(
    "text, message",
    [
        ("cat 1 2 3\ndog 1 2\n", r"line 2: 2 numbers, the rows before have 3"),
        ("cat 1 2 3\n\ndog 1 2 3 4\n", r"line 3: 4 numbers, the rows before have 3"),
        ("cat 1 2 3\ndog 1 nan 2\n", r"line 2: the vector of 'dog' holds NaN"),
        ("cat 1 2 3\ndog 1 1e99 2\n", r"line 2: the vector of 'dog' holds NaN or infinite"),
        ("cat 1 2 3\ndog 1 x 2\n", r"line 2: could not convert .* repair or drop"),
        ("400000 3\ncat 1 2 3\n", r"line 1: 1 numbers, a word and its vector"),
        ("\n\n", "holds no word vectors"),
        ("", "holds no word vectors"),
    ],
)
def test_bad_glove_files(tmp_path, text, message):
    path = tmp_path / "vectors.txt"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(TrituneError, match=message) as raised:
        read_glove(path)
    assert str(path) in str(raised.value)


def test_glove_files_that_are_none(tmp_path):
    (tmp_path / "vectors.txt").write_bytes(b"cat 1 2\n\xff\xfe 1 2\n")
    with pytest.raises(TrituneError, match="line 2: not UTF-8"):
        read_glove(tmp_path / "vectors.txt")
    for path in (tmp_path, tmp_path / "none.txt"):
        with pytest.raises(TrituneError, match="cannot be read"):
            read_glove(path)


def test_glove_words_with_spaces_and_limit(tmp_path):
    path = tmp_path / "vectors.txt"
    path.write_text("cat 1 2 3\n. . . 4 5 6\ndog 7 8 9\r\nlate broken row\n", encoding="utf-8")
    words, vectors = read_glove(path, limit=3)
    assert words == ["cat", ". . .", "dog"]
    np.testing.assert_array_equal(vectors, np.arange(1.0, 10).reshape(3, 3))


# The file.

MRPC = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
PAIRS = [("the cat sleeps", "a dog runs in the garden"), ("old mouse", "old mouse"), ('"quoted', "trees walking")]


@pytest.fixture
def mrpc(tmp_path):
    folder = tmp_path / "MRPC"
    folder.mkdir()
    rows = [f"{n % 2}\t{n}\t{n}\t{a}\t{b} {n}" for n, (a, b) in enumerate(PAIRS * 4)]
    (folder / "train.tsv").write_text(MRPC + "\n".join(rows) + "\n", encoding="utf-8")
    (folder / "dev.tsv").write_text(MRPC + rows[0] + "\n", encoding="utf-8")
    return folder


def augment(cli, folder, mlm, *more, task="mrpc"):
    return cli("augment", "--task", task, "--data", folder, "--mlm", mlm, "--n", 3, *more)


def test_file_against_a_loop(cli, mrpc, mlm, glove):
    before = {path.name: path.read_bytes() for path in mrpc.iterdir()}
    code, out, _ = augment(cli, mrpc, mlm, "--glove", glove, "--seed", 5, "--candidates", 5, "--json")
    assert code == 0
    augmenter = augmenter_of(mlm, glove)
    lines = (mrpc / "train.tsv").read_text(encoding="utf-8").split("\n")
    wanted = [lines[0]]
    for row, line in enumerate(lines[1:-1]):
        fields = line.split("\t")
        first = augmenter.variants(fields[3], 3, np.random.default_rng((5, row, 0)))
        second = augmenter.variants(fields[4], 3, np.random.default_rng((5, row, 1)))
        texts = [(fields[3], fields[4]), *((v, fields[4]) for v in first), *((fields[3], v) for v in second)]
        wanted += ["\t".join([*fields[:3], *pair]) for pair in texts]
    assert (mrpc / "train_aug.tsv").read_text(encoding="utf-8") == "\n".join(wanted) + "\n"
    record = json.loads(out)
    assert record["rows"] == 12 and record["variants"] == len(wanted) - 13 > 20
    assert {name: (mrpc / name).read_bytes() for name in before} == before
    assert {path.name for path in mrpc.iterdir()} == {*before, "train_aug.tsv", "train_aug.tsv.json"}
    data = load_task_data(get_task("mrpc"), mrpc, augmented=True)
    assert len(data["train"]) == len(wanted) - 1 and len(data["validation"]) == 1
    assert data["train"]["label"] == [int(line[0]) for line in wanted[1:]]


def test_probability_0_copies_the_file(cli, mrpc, mlm):
    assert augment(cli, mrpc, mlm, "--probability", 0)[0] == 0
    assert (mrpc / "train_aug.tsv").read_bytes() == (mrpc / "train.tsv").read_bytes()


def test_seed_and_batch_size(cli, mrpc, mlm, tmp_path):
    outputs = [tmp_path / f"{number}.tsv" for number in range(3)]
    for output, more in zip(outputs, [(), ("--batch-size", 1), ("--seed", 43)], strict=True):
        assert augment(cli, mrpc, mlm, "--output", output, *more)[0] == 0
    first, batched, seeded = (output.read_bytes() for output in outputs)
    assert first == batched != seeded


@pytest.mark.parametrize("stop, between", [(0, 50), (1, 1), (5, 2), (11, 4)])
def test_a_resumed_file_is_that_of_a_run_never_stopped(cli, mrpc, mlm, tmp_path, monkeypatch, stop, between):
    assert augment(cli, mrpc, mlm, "--output", tmp_path / "whole.tsv")[0] == 0
    monkeypatch.setattr(augmented_file, "_ROWS_BETWEEN_RECORDS", between)
    calls, variants = [], Augmenter.variants

    def stopping(self, *arguments):
        calls.append(1)
        if len(calls) == 2 * stop + 1:
            raise KeyboardInterrupt
        return variants(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Augmenter, "variants", stopping)
        code, _, error = augment(cli, mrpc, mlm)
    assert code == 130 and "--resume" in error
    assert not (mrpc / "train_aug.tsv").exists()
    partial = mrpc / ".train_aug.tsv.partial"
    with partial.open("ab") as file:  # a kill may come in the middle of a row
        file.write(b"1\t7\t7\tthe c")
    code, _, error = augment(cli, mrpc, mlm)
    assert code == 2 and "--resume" in error
    code, _, error = augment(cli, mrpc, mlm, "--resume", "--seed", 1, "--probability", 0.5)
    assert code == 2 and "a different seed, probability" in error
    calls.clear()
    monkeypatch.setattr(Augmenter, "variants", lambda self, *a: calls.append(1) or variants(self, *a))
    assert augment(cli, mrpc, mlm, "--resume")[0] == 0
    assert len(calls) == 2 * (12 - stop // between * between)
    assert (mrpc / "train_aug.tsv").read_bytes() == (tmp_path / "whole.tsv").read_bytes()
    assert not partial.exists()
    calls.clear()
    assert augment(cli, mrpc, mlm, "--resume")[0] == 0 and not calls


def test_a_partial_file_that_lost_bytes_is_begun_anew(cli, mrpc, mlm):
    assert augment(cli, mrpc, mlm)[0] == 0
    path = mrpc / "train_aug.tsv"
    whole = path.read_bytes()
    (mrpc / ".train_aug.tsv.partial").write_bytes(whole[:40])
    path.unlink()
    assert augment(cli, mrpc, mlm, "--resume")[0] == 0
    assert path.read_bytes() == whole


def test_overwrite(cli, mrpc, mlm):
    assert augment(cli, mrpc, mlm)[0] == 0
    first = (mrpc / "train_aug.tsv").read_bytes()
    assert augment(cli, mrpc, mlm, "--seed", 1)[0] == 2
    assert augment(cli, mrpc, mlm, "--seed", 1, "--overwrite", "--resume")[0] == 2
    assert (mrpc / "train_aug.tsv").read_bytes() == first
    assert augment(cli, mrpc, mlm, "--seed", 1, "--overwrite")[0] == 0
    assert (mrpc / "train_aug.tsv").read_bytes() != first


ROWS = {
    "cola": ("", "gj04\t1\t\tthe cat sleeps"),
    "sst2": ("sentence\tlabel", "the old cat \t1"),
    "stsb": (
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
        "0\tmain\tMSRvid\t2012\t1\tnone\tnone\tA dog runs.\tThe old dog runs.\t5.000",
    ),
    "qnli": ("index\tquestion\tsentence\tlabel", "0\tWhat is green?\tThe green house.\tnot_entailment"),
    "qqp": ("id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", "0\t1\t2\tthe cat?\told cat?\t0\ncut\trow"),
}


@pytest.mark.parametrize("name", ROWS)
def test_every_layout_keeps_header_and_labels(cli, tmp_path, mlm, name):
    header, row = ROWS[name]
    (tmp_path / "train.tsv").write_text("\n".join(filter(None, [header, row])) + "\n", encoding="utf-8")
    assert augment(cli, tmp_path, mlm, "--probability", 1, task=name)[0] == 0
    lines = (tmp_path / "train_aug.tsv").read_text(encoding="utf-8").split("\n")
    row = row.split("\n")[0]
    assert lines[: 1 + bool(header)] == [*filter(None, [header]), row] and len(lines) > 3
    data = load_glue_folder(get_task(name), tmp_path, ["train"], augmented=True)["train"]
    assert len(set(data["label"])) == 1 and len(data) == len(lines) - 1 - bool(header)


# Bad input.


def test_bad_options(cli, mrpc, mlm, glove):
    for more, message in [
        (("--n", 0), "--n must be at least 1; got 0"),
        (("--candidates", 0), "--candidates must be at least 1"),
        (("--batch-size", -1), "--batch-size must be at least 1"),
        (("--probability", 1.5), "--probability must be from 0 to 1"),
        (("--probability", "nan"), "--probability must be from 0 to 1"),
        (("--seed", -1), "--seed must be a whole number"),
        (("--glove", mrpc / "none.txt"), "none.txt: cannot be read"),
        (("--output", mrpc / "dev.tsv"), "a name of its own"),
        (("--output", mrpc / "dev_matched.tsv"), "a name of its own"),
        (("--output", mrpc / "train.tsv"), "a name of its own"),
        (("--output", mrpc / "train.csv"), "a name of its own"),
        (("--output", mrpc / "none" / "a.tsv"), "there is no folder"),
        (("--data", mrpc / "dev.tsv"), "never a dev file"),
        (("--task", "squad"), "only GLUE tasks"),
        (("--task", "cifar10"), "only GLUE tasks"),
        (("--data", mrpc / "none"), "train.tsv is missing"),
        (("--mlm", mrpc), "not a model"),
    ]:
        code, _, error = augment(cli, mrpc, mlm, *more)
        assert code == 2 and message in error and error.count("\n") == 1, (more, error)
    assert {path.name for path in mrpc.iterdir()} == {"train.tsv", "dev.tsv"}


def test_files_of_others_are_left_alone(cli, mrpc, mlm):
    path = mrpc / "train_aug.tsv"
    path.write_text("mine")
    for more in ((), ("--overwrite",), ("--resume",)):
        code, _, error = augment(cli, mrpc, mlm, *more)
        assert code == 2 and "left alone" in error
    path.unlink()
    (mrpc / "train_aug.tsv.json").write_text('{"settings": 1}')
    code, _, error = augment(cli, mrpc, mlm, "--overwrite")
    assert code == 2 and "not the record" in error


def test_a_folder_that_may_not_be_written(cli, mrpc, mlm, monkeypatch):
    monkeypatch.setattr(augmented_file.os, "access", lambda path, mode: mode != os.W_OK)
    code, _, error = augment(cli, mrpc, mlm)
    assert code == 2 and "is not writable" in error


def test_a_full_disk_is_one_line(cli, mrpc, mlm, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(augmented_file.os, "fsync", full)
    code, _, error = augment(cli, mrpc, mlm)
    assert code == 2 and "No space left on device" in error
    assert not (mrpc / "train_aug.tsv").exists()


def test_two_at_once_are_refused(cli, mrpc, mlm):
    with augmented_file.FileLock(mrpc / ".train_aug.tsv.lock"):
        code, _, error = augment(cli, mrpc, mlm)
    assert code == 2 and "another process" in error


def test_bad_rows_are_named(cli, mrpc, mlm):
    with (mrpc / "train.tsv").open("a") as file:
        file.write("1\t2\t3\tonly one text\n")
    code, _, error = augment(cli, mrpc, mlm)
    assert code == 2 and "train.tsv, line 14: 4 columns" in error


def test_models_that_are_no_masked_lm(cli, mrpc, mlm, tmp_path):
    classifier = transformers.BertForSequenceClassification(BertConfig.from_pretrained(mlm))
    shutil.copytree(mlm, tmp_path / "classifier")
    classifier.save_pretrained(tmp_path / "classifier")
    shutil.copytree(mlm, tmp_path / "gpt")
    config = transformers.GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt")
    shutil.copytree(mlm, tmp_path / "nan")
    model = BertForMaskedLM.from_pretrained(mlm)
    model.cls.predictions.bias.data[3] = float("nan")
    model.save_pretrained(tmp_path / "nan")
    for name, message in {
        "classifier": "not a masked language model: cls.predictions",
        "gpt": "models of type gpt2 have no masked language modeling head",
        "nan": "NaN or infinite",
    }.items():
        code, _, error = augment(cli, mrpc, tmp_path / name)
        assert code == 2 and message in error and name in error, error


def test_a_tokenizer_without_a_mask(mlm):
    tokenizer = BertTokenizerFast.from_pretrained(mlm)
    tokenizer.mask_token = None
    with pytest.raises(TrituneError, match="no mask token"):
        MaskedWords(load_masked_lm(mlm), tokenizer, {5: "cat"}, 5, 8)


# Training on it.


def test_recipe_key():
    assert load_recipe("finetune", ["augmented=true"], FinetuneRecipe).augmented
    assert not load_recipe("ti-g").augmented and load_recipe("ti-g", ["augmented=true"]).augmented
    with pytest.raises(TrituneError, match="cache_teacher and augmented exclude each other"):
        Recipe(augmented=True, cache_teacher=True)


def test_training_reads_it_and_says_what_is_missing(cli, mlm, tmp_path):
    make_workspace(tmp_path)
    given = ("--task", "demo", "--data", tmp_path / "data", "--set", "augmented=true", "--json")
    epoch = ("--set", "num_train_epochs=1", "--set", "eval_steps=100")
    arguments = ("finetune", tmp_path / "base", *given, *epoch, "--output", tmp_path / "again")
    code, _, error = cli(*arguments)
    assert code == 2 and "train_aug.tsv is missing" in error and "tritune augment --task demo" in error
    train = tmp_path / "data" / "train.tsv"
    train.write_text("".join(train.read_text().splitlines(keepends=True)[:33]))
    assert augment(cli, tmp_path / "data", mlm, "--probability", 1, task="demo")[0] == 0
    rows = len((tmp_path / "data" / "train_aug.tsv").read_text().splitlines()) - 1
    train.unlink()
    code, out, error = cli(*arguments)
    assert code == 0, error
    assert json.loads(out)["steps"] == {"fine-tuning": -(-rows // 32)} and rows > 64
    arguments = ("train", tmp_path / "teacher", *given, "--set", "max_steps=4", "--output", tmp_path / "student")
    assert cli(*arguments)[0] == 0
    assert "augmented: true" in (tmp_path / "student" / "recipe.yaml").read_text()


def test_runs_of_a_sweep_read_the_same_rows():
    job = SimpleNamespace(recipe=Recipe(max_steps=8))
    with pytest.raises(TrituneError, match="augmented: all runs of a sweep read the same"):
        fit(job, Recipe(max_steps=8, augmented=True))


def test_the_hub_has_none():
    with pytest.raises(TrituneError, match="needs a folder"):
        load_task_data(get_task("mrpc"), augmented=True)


def test_real_rows_with_real_vectors(cli, data_folder, mlm, tmp_path):
    source = data_folder / "glue" / "CoLA" / "train.tsv"
    vectors = data_folder / "glove" / "glove.subset.50d.txt"
    if not (source.is_file() and vectors.is_file()):
        pytest.skip(f"no CoLA or no GloVe subset in {data_folder}")
    lines = source.read_bytes().split(b"\n")[:40]
    (tmp_path / "train.tsv").write_bytes(b"\n".join(lines) + b"\n")
    assert augment(cli, tmp_path, mlm, "--glove", vectors, task="cola")[0] == 0
    data = load_glue_folder(get_task("cola"), tmp_path, ["train"], augmented=True)["train"]
    assert data["sentence"][0] == lines[0].split(b"\t")[3].decode() and len(data) > 80


def test_main_names_the_command():
    assert "augment" in [command.name or command.callback.__name__ for command in main.app.registered_commands]
