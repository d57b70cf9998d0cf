"""Tokenizers of every kind over a corpus of a hundred lines, with more tokens than a few texts use."""

import json
import random
from collections.abc import Callable

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

WORDS = [
    *("the", "a", "old", "older", "small", "smaller", "smallest", "near", "over", "under", "quiet", "quietly"),
    *("river", "rivers", "run", "runs", "running", "runner", "bridge", "bridges", "town", "towns", "sea", "seas"),
    *("café", "naïve", "Straße", "µm", "½", "①", "ﬁnal", "señor", "smörgås", "Ärger", "don't", "well-known"),
    *("東京", "大阪", "京都", "123", "4567"),
]
TEXTS = [
    "the old town near the sea",
    "a small river runs under bridges",
    "café ½ 東京 naïve don't",
    "ﬁnal Straße 123",
    "",
]


def corpus() -> list[str]:
    """The lines that the tokenizers are trained on; TEXTS are of the same words."""
    chance = random.Random(0)
    return [" ".join(chance.choices(WORDS, k=8)) for _ in range(150)] + TEXTS


def _finished(
    tokenizer: Tokenizer, trainer: trainers.Trainer, names: dict[str, str], **more
) -> PreTrainedTokenizerFast:
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_tokens([AddedToken("<entity>", normalized=False), "东方"])
    ends = [(names[name], tokenizer.token_to_id(names[name])) for name in ("cls_token", "sep_token")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{ends[0][0]} $A {ends[1][0]}",
        pair=f"{ends[0][0]} $A {ends[1][0]} $B:1 {ends[1][0]}:1",
        special_tokens=ends,
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names, **more)


_SQUARE = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
# The order of RoBERTa and XLM-R, whose positions count from the padding id.
_ANGLES = {"cls_token": "<s>", "pad_token": "<pad>", "sep_token": "</s>", "unk_token": "<unk>", "mask_token": "<mask>"}


def wordpiece() -> PreTrainedTokenizerFast:
    """As BERT's: lower case, no accents."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=list(_SQUARE.values()), show_progress=False)
    return _finished(tokenizer, trainer, _SQUARE)


def byte_level() -> PreTrainedTokenizerFast:
    """As RoBERTa's: BPE of bytes, without an unknown token of its own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=list(_ANGLES.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    return _finished(tokenizer, trainer, _ANGLES)


def byte_fallback() -> PreTrainedTokenizerFast:
    """As Llama's: BPE of characters, and of bytes where a character has no token."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = [*_ANGLES.values(), *(f"<0x{value:02X}>" for value in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=special, limit_alphabet=40, max_token_length=12, show_progress=False
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    # Trained as special tokens, the bytes would be cut out of texts.
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = [added for added in content["added_tokens"] if not added["content"].startswith("<0x")]
    rebuilt = Tokenizer.from_str(json.dumps(content))
    rebuilt.add_tokens(["<entity>"])
    return PreTrainedTokenizerFast(tokenizer_object=rebuilt, **_ANGLES)


def word_ends() -> PreTrainedTokenizerFast:
    """As CLIP's: the last token of a word is marked."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=list(_ANGLES.values()), end_of_word_suffix="</w>", show_progress=False
    )
    return _finished(tokenizer, trainer, _ANGLES)


def word_insides() -> PreTrainedTokenizerFast:
    """BPE that marks all tokens of a word but the first, without an unknown token."""
    tokenizer = Tokenizer(models.BPE(continuing_subword_prefix="##"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=list(_SQUARE.values()), continuing_subword_prefix="##", show_progress=False
    )
    return _finished(tokenizer, trainer, _SQUARE)


def unigram() -> PreTrainedTokenizerFast:
    """As XLM-R's."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=160, special_tokens=list(_ANGLES.values()), unk_token="<unk>", show_progress=False
    )
    return _finished(tokenizer, trainer, _ANGLES)


def whole_words() -> PreTrainedTokenizerFast:
    """A word a token."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordLevelTrainer(special_tokens=list(_SQUARE.values()), show_progress=False)
    return _finished(tokenizer, trainer, _SQUARE)


KINDS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    make.__name__: make
    for make in (wordpiece, unigram, byte_level, byte_fallback, word_ends, word_insides, whole_words)
}
