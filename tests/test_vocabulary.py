"""A model with a smaller vocabulary reads a text that needs no other token as before, to the bit."""

import json
import random
from collections import Counter
from dataclasses import replace
from functools import cache
from itertools import pairwise

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast, RobertaConfig, RobertaForMaskedLM

import bounds
import tritune
from combinations import crossed
from families import FAMILIES
from small_tokenizers import KINDS, TEXTS, WORDS
from tritune import TrituneError, UnsupportedModelError
from tritune.checkpoints.merges import Merges
from tritune.checkpoints.tokenizer_json import kept_tokens, tokens_of, unknown_id, with_tokens
from tritune.checkpoints.vocabulary import compare_vocabularies, shrink_vocabulary
from tritune.modeling.token_rows import keep_token_rows, needed_rows
from zoo import SERVED

TEXT_FAMILIES = {name: row for name, row in SERVED.items() if not row.image}


@cache
def tokenizer_of(kind):
    return KINDS[kind]()


def model_of(family, tokenizer, index=0):
    """A tiny model for a tokenizer; six rows of its embedding have no token."""
    ids = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.cls_token_id}
    ids["eos_token_id"] = tokenizer.sep_token_id
    values = family.values | {"vocab_size": len(tokenizer) + 6, "max_position_embeddings": 64} | ids
    if "cls_token_id" in values:
        values |= {"cls_token_id": tokenizer.cls_token_id, "sep_token_id": tokenizer.sep_token_id}
    return replace(family, values=values).build(index=index)


@cache
def shrunk(kind, min_count=1):
    tokenizer = tokenizer_of(kind)
    model = model_of(SERVED["BERT"], tokenizer)
    return model, *shrink_vocabulary(model, tokenizer, TEXTS, min_count)


def more_texts():
    """Words, beginnings and ends of words, and characters of no word, thrown together."""
    chance = random.Random(1)
    known = " ".join(TEXTS).split()
    pieces = [
        *WORDS,
        *(word[:3] for word in known),
        *(word[-3:] for word in known),
        "Ω",
        "😀",
        "<entity>",
        "[SEP]",
        "  ",
    ]
    return [
        ("" if chance.random() < 0.3 else " ").join(chance.choices(chance.choice([known, pieces]), k=4))
        for _ in range(400)
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_texts_of_kept_tokens_are_cut_as_before(kind):
    tokenizer, (_, model, small) = tokenizer_of(kind), shrunk(kind)
    assert len(small) < len(tokenizer) and model.config.vocab_size == len(small)
    unknown = tokenizer.convert_ids_to_tokens(unknown_id(json.loads(tokenizer.backend_tokenizer.to_str())) or 0)
    checked = 0
    for text in [*TEXTS, *more_texts()]:
        before, after = tokenizer.tokenize(text), small.tokenize(text)
        # A word that is unknown as a whole may be known by a shorter match.
        if set(before) <= small.get_vocab().keys() and not (kind == "wordpiece" and unknown in before):
            checked += 1
            assert before == after, text
    assert checked > len(TEXTS) + 10
    for pair in (TEXTS[:2], TEXTS[2:4]):
        before, after = (each(*pair).input_ids for each in (tokenizer, small))
        assert tokenizer.convert_ids_to_tokens(before) == small.convert_ids_to_tokens(after)


@torch.no_grad()
@pytest.mark.parametrize(("kind", "family"), crossed({kind: kind for kind in KINDS}, TEXT_FAMILIES))
def test_hidden_states_are_bit_for_bit_the_same(kind, family, tmp_path):
    tokenizer = tokenizer_of(kind)
    model = model_of(family, tokenizer)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    small, fewer = shrink_vocabulary(model, tokenizer, TEXTS)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.config.vocab_size == len(tokenizer) + 6
    small.save_pretrained(tmp_path)
    fewer.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, attn_implementation="eager").eval()
    small.set_attn_implementation("eager")
    texts = TEXTS[:4]
    expected, *found = (
        each(**batch, output_hidden_states=True)
        for each, batch in (
            (model, _batch(tokenizer, texts)),
            (small, _batch(fewer, texts)),
            (loaded, _batch(AutoTokenizer.from_pretrained(tmp_path), texts)),
        )
    )
    for outputs in found:
        assert len(outputs.hidden_states) == len(expected.hidden_states)
        assert all(map(torch.equal, outputs.hidden_states, expected.hidden_states))


def _batch(tokenizer, texts):
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_tokenizer_cannot_do_without_is_kept(kind):
    """Whatever the minimum count is, all that is left is spelt."""
    tokenizer, (_, model, small) = tokenizer_of(kind), shrunk(kind, 10**6)
    kept = small.get_vocab().keys()
    added = {str(token) for token in tokenizer.added_tokens_decoder.values()}
    assert added <= kept and set(tokenizer.all_special_tokens) <= kept
    assert {small.get_added_vocab()[token] for token in added} == {small.get_vocab()[token] for token in added}
    order = [token for token, _ in sorted(small.get_vocab().items(), key=lambda item: item[1])]
    assert order == sorted(order, key=tokenizer.get_vocab().get), "the order stays"
    assert model.config.pad_token_id == small.pad_token_id == small.convert_tokens_to_ids(tokenizer.pad_token)
    if kind == "byte_level":
        assert set(pre_tokenizers.ByteLevel.alphabet()) <= kept
    if kind == "byte_fallback":
        assert {f"<0x{value:02X}>" for value in range(256)} <= kept
    if kind not in ("whole_words", "byte_fallback"):
        assert small.unk_token not in small.tokenize("the river")
    assert len(small) < len(shrunk(kind)[2])


def test_single_characters():
    """Of the texts and of Latin-1, also inside words; all where nothing stands for those that are unknown."""
    before, after = tokenizer_of("wordpiece").get_vocab(), shrunk("wordpiece")[2].get_vocab()
    assert {"東", "##東", "##t", "w", "##w"} & before.keys() <= after.keys()
    assert "阪" in before and "阪" not in after
    assert "阪" in tokenizer_of("word_insides").get_vocab() and "阪" in shrunk("word_insides")[2].get_vocab()


def merged_by_hand(word, merges):
    """The states of a word while BPE merges it, by the plainest loop: all pairs, all ranks, one merge at a time."""
    symbols = list(word)
    states = [list(symbols)]
    while pairs := [
        (merges.index([left, right]), at)
        for at, (left, right) in enumerate(pairwise(symbols))
        if [left, right] in merges
    ]:
        at = min(pairs)[1]
        symbols[at : at + 2] = ["".join(symbols[at : at + 2])]
        states.append(list(symbols))
    return states


def test_what_a_token_is_merged_from():
    merges = [["b", "c"], ["a", "b"], ["a", "bc"], ["ab", "c"], ["abc", "abc"], ["c", "c"], ["ab", "cc"]]
    bpe = Merges({"merges": merges})
    for token in ("a", "bc", "ab", "abc", "abcabc"):
        states = merged_by_hand(token, merges)
        assert states[-1] == [token] and bpe.parts(token) == {piece for state in states for piece in state}
    assert bpe.parts("abcc") == bpe.parts("") == set(), "b and c go together first, so nothing becomes abcc"
    assert bpe.parts("abc") == {"a", "b", "c", "bc", "abc"}, "not ab, though a merge makes abc of it"
    assert bpe.among({"a", "b", "c", "bc", "abc"}) == [["b", "c"], ["a", "bc"]]
    inside = Merges({"merges": ["##b ##c", "a ##b", "a ##bc"], "continuing_subword_prefix": "##"})
    assert inside.parts("abc") == {"a", "##b", "##c", "##bc", "abc"}
    assert inside.parts("##bc") == {"##b", "##c", "##bc"} and inside.parts("ab") == {"a", "##b", "ab"}
    ends = Merges({"merges": [["b", "c</w>"], ["a", "b"], ["a", "bc</w>"]], "end_of_word_suffix": "</w>"})
    assert ends.parts("abc</w>") == {"a", "b", "c</w>", "bc</w>", "abc</w>"} and ends.parts("abc") == set()


def test_the_score_of_unknown_characters_stays():
    """It lies 10 below the lowest score: without the token `rare`, the unknown x after `ab` would become cheaper."""
    vocabulary = [("<unk>", 0.0), ("ab", -1.0), ("a", -15.0), ("bx", -15.0), ("rare", -25.0)]
    content = json.loads(Tokenizer(models.Unigram(vocabulary, unk_id=0)).to_str())
    counts = Counter(Tokenizer.from_str(json.dumps(content)).encode("abx").ids)
    rows = kept_tokens(content, counts)
    assert [vocabulary[row][0] for row in rows] == ["<unk>", "a", "bx", "rare"]
    # All of it, what is kept, and a mutant that leaves `rare` out.
    for kept, tokens in (([0, 1, 2, 3, 4], ["a", "bx"]), (rows, ["a", "bx"]), ([0, 1, 2, 3], ["ab", "x"])):
        assert Tokenizer.from_str(json.dumps(with_tokens(content, kept))).encode("abx").tokens == tokens


def test_every_number_in_the_file_is_a_new_one():
    """Post-processors of every form, padding, and an unknown token whose id moves."""
    tokens = ["[PAD]", "x", "y", "z", "[UNK]", "[CLS]", "[SEP]", "w"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    for processor in (
        processors.BertProcessing(("[SEP]", 6), ("[CLS]", 5)),
        processors.RobertaProcessing(("[SEP]", 6), ("[CLS]", 5), add_prefix_space=False),
        processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 5), ("[SEP]", 6)]),
    ):
        for post_processor in (processor, processors.Sequence([processors.ByteLevel(), processor])):
            tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
            tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
            tokenizer.post_processor = post_processor
            tokenizer.enable_padding(pad_id=0, pad_token="[PAD]", length=5)
            content = json.loads(tokenizer.to_str())
            kept = [index for index in kept_tokens(content, {7: 3}) if tokens[index] not in "xy"]
            assert [tokens[index] for index in kept] == ["[PAD]", "z", "[UNK]", "[CLS]", "[SEP]", "w"]
            after = Tokenizer.from_str(json.dumps(with_tokens(content, kept))).encode("w v")
            assert after.tokens == ["[CLS]", "w", "[UNK]", "[SEP]", "[PAD]"] and after.ids == [3, 5, 2, 4, 0]
            assert tokens_of(content) == dict(enumerate(tokens)), "the file that was given stays"


@torch.no_grad()
def test_rows_of_output_layers(tmp_path):
    """Tied and untied ones, their bias, one that has a column a token, and what a generation is told."""
    rows = [0, 1, 2, 3, 7, 8, 30, 39]
    place = torch.tensor(rows)
    for name, masked in (
        ("BERT", "BertForMaskedLM"),
        ("MobileBERT", "MobileBertForMaskedLM"),
        ("Llama", "LlamaForCausalLM"),
    ):
        family = replace(SERVED[name], classes=(masked,))
        for tie in (True, False):
            config = getattr(transformers, family.config)(**family.values | {"tie_word_embeddings": tie})
            model = getattr(transformers, masked)(config).eval()
            small = keep_token_rows(model, rows)
            ids = torch.tensor([[0, 4, 6, 2]])
            expected, found = model(place[ids]).logits[..., place], small(ids).logits
            torch.testing.assert_close(
                found, expected, rtol=0, atol=bounds.rounding(torch.float32, 100, expected.abs().max())
            )
            assert found.shape[-1] == len(rows)
            tied = small.get_output_embeddings().weight is small.get_input_embeddings().weight
            assert tied == (model.get_output_embeddings().weight is model.get_input_embeddings().weight)
    model.config.eos_token_id = [2, 30]
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = [2, 30], 39
    small = keep_token_rows(model, rows)
    assert small.config.eos_token_id == [2, 6] == small.generation_config.eos_token_id
    assert small.generation_config.pad_token_id == 7 and model.generation_config.pad_token_id == 39
    small.save_pretrained(tmp_path)
    assert torch.equal(type(model).from_pretrained(tmp_path)(ids).logits, small(ids).logits)


def test_positions_that_count_from_the_padding_id():
    """In RoBERTa the padding id may not move, so what stands before it stays."""
    config = RobertaConfig(**SERVED["RoBERTa"].values | {"pad_token_id": 5, "bos_token_id": 9, "eos_token_id": 2})
    model = RobertaForMaskedLM(config).eval()
    assert needed_rows(model) == {0, 1, 2, 3, 4, 5, 9}
    with pytest.raises(TrituneError, match=r"rows: \[0, 1, 3, 4, 5\] must be kept"):
        keep_token_rows(model, [2, 9, 12])
    rows = [0, 1, 2, 3, 4, 5, 9, 12, 31]
    small = keep_token_rows(model, rows)
    embedding = small.roberta.embeddings.word_embeddings
    assert (small.config.pad_token_id, embedding.padding_idx, small.config.bos_token_id) == (5, 5, 6)
    ids = torch.tensor([[6, 8, 7, 2], [6, 2, 5, 5]])
    found, expected = small.roberta(ids), model.roberta(torch.tensor(rows)[ids])
    assert torch.equal(found.last_hidden_state, expected.last_hidden_state)
    bert = keep_token_rows(SERVED["BERT"].build(), [0, 8])
    assert bert.bert.embeddings.word_embeddings.padding_idx == 0


def test_a_family_of_any_name_and_dtype():
    zorp = FAMILIES["zorp"]
    model = zorp.build().to(torch.bfloat16)
    torch.manual_seed(5)
    small = keep_token_rows(model, [0, 3, 20])
    assert torch.rand(1) == torch.rand(1, generator=torch.Generator().manual_seed(5)), "no number was drawn"
    assert small.config.words == 3 and small.dtype is torch.bfloat16 and not small.training
    assert torch.equal(small(input_ids=torch.tensor([[2, 1]])).logits, model(input_ids=torch.tensor([[20, 3]])).logits)


def test_shares_that_are_counted_by_hand():
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "play", "##ing", "##s", "red", "##d", "r", "##e", "α", "##β", "β"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]")
    model = model_of(SERVED["BERT"], tokenizer_of("wordpiece"))
    _, small = shrink_vocabulary(model, tokenizer, ["plays play"])
    assert set(small.get_vocab()) == {"[PAD]", "[UNK]", "play", "##s", "##d", "r", "##e", "[CLS]", "[SEP]"}
    coverage = compare_vocabularies(tokenizer, small, ["plays red ζ", "playing αβ", ""])
    # "red" is cut in three; "playing" and "αβ" have unknown parts, two tokens each; ζ was unknown before.
    counted = {"texts": 3, "tokens": 8, "unknown_before": 1, "unknown": 4, "split": 1, "tokens_after": 8}
    assert vars(coverage) == counted
    assert vars(compare_vocabularies(tokenizer, tokenizer, [])) == dict.fromkeys(counted, 0)


def test_a_tokenizer_without_more_to_leave_out():
    tokenizer = tokenizer_of("whole_words")
    model = model_of(SERVED["DistilBERT"], tokenizer)
    small, same = shrink_vocabulary(model, tokenizer, [" ".join(tokenizer.get_vocab())])
    assert same.get_vocab() == tokenizer.get_vocab() and small.config.vocab_size == len(tokenizer)
    again, _ = shrink_vocabulary(small, same, [" ".join(tokenizer.get_vocab())])
    assert all(map(torch.equal, again.state_dict().values(), small.state_dict().values()))


def test_what_is_refused():
    tokenizer = tokenizer_of("wordpiece")
    model = model_of(SERVED["BERT"], tokenizer)
    with pytest.raises(TrituneError, match="is quantized; shrink the float model, then train"):
        shrink_vocabulary(tritune.prepare(SERVED["BERT"].build()), tokenizer, TEXTS)
    with pytest.raises(UnsupportedModelError, match="it has no table of token embeddings"):
        shrink_vocabulary(SERVED["ViT"].build(), tokenizer, TEXTS)
    with pytest.raises(TrituneError, match="the texts have no tokens"):
        shrink_vocabulary(model, tokenizer, ["", "  "])
    with pytest.raises(TrituneError, match="min_count must be at least 1, got 0"):
        shrink_vocabulary(model, tokenizer, TEXTS, 0)
    with pytest.raises(TrituneError, match="the model's embedding only 40 rows; they do not belong together"):
        shrink_vocabulary(SERVED["BERT"].build(), tokenizer, TEXTS)
    with pytest.raises(TrituneError, match="CanineTokenizer is a slow tokenizer"):
        shrink_vocabulary(model, transformers.CanineTokenizer(), TEXTS)
    with pytest.raises(TrituneError, match="the tokenizer cannot read a text"):
        shrink_vocabulary(model, tokenizer, [None])
    for rows, message in (([], "ascending order"), ([0, 2, 1], "ascending order"), ([0, 10**6], "token ids are 0 to")):
        with pytest.raises(TrituneError, match=message):
            keep_token_rows(model, rows)
    silent = FAMILIES["zorp"].build()
    del silent.config.words
    with pytest.raises(UnsupportedModelError, match="no key of its config sets the number of its tokens"):
        keep_token_rows(silent, [0, 1])
