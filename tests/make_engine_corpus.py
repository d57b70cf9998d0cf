"""Write the fuzzer's corpus, tests/native/corpus: tiny models of every family, head and kind of code.

Run it when the format changes: python tests/make_engine_corpus.py
"""

import tempfile
from pathlib import Path

from engine_models import CORPUS, DEPLOY, PER_TOKEN, TERNARY, as_one_file, save_packed
from tritune import Quantization

SMALL = {"vocab_size": 12, "max_position_embeddings": 14}
BERT = SMALL | {"num_hidden_layers": 1, "hidden_size": 10, "intermediate_size": 9}
MODELS = {
    "bert_sequences": ("BERT", 0, DEPLOY, BERT),
    "bert_none": ("BERT", 3, TERNARY, BERT | {"hidden_act": "relu"}),
    "roberta_tokens": ("RoBERTa", 1, DEPLOY, SMALL | {"num_hidden_layers": 1}),
    "xlm_roberta_spans": ("XLM-R", 2, TERNARY, SMALL | {"num_hidden_layers": 1, "hidden_act": "gelu_new"}),
    "camembert_sequences": ("CamemBERT", 0, DEPLOY, SMALL | {"num_hidden_layers": 1}),
    "distilbert_sequences": ("DistilBERT", 0, DEPLOY, SMALL | {"n_layers": 2}),
    "distilbert_none": ("DistilBERT", 3, Quantization(**PER_TOKEN, weight_quantizer="seq"), SMALL | {"n_layers": 1}),
    "electra_sequences": ("ELECTRA", 0, DEPLOY, SMALL | {"num_hidden_layers": 1}),
    "electra_tokens": ("ELECTRA", 1, TERNARY, SMALL | {"num_hidden_layers": 1, "hidden_act": "tanh"}),
    "electra_wide": ("ELECTRA", 0, DEPLOY, SMALL | {"num_hidden_layers": 1, "embedding_size": 70}),
    "vit_sequences": ("ViT", 0, DEPLOY, {"num_hidden_layers": 1}),
    "vit_none": ("ViT", 1, DEPLOY, {"num_hidden_layers": 1, "image_size": 12, "patch_size": 5, "num_channels": 1}),
    "1_bit": ("BERT", 0, Quantization(**PER_TOKEN, weight_bits=1, embedding_bits=2), BERT),
    "3_bits": ("BERT", 0, Quantization(**PER_TOKEN, weight_bits=3, embedding_bits=4), BERT),
    "4_bits": ("BERT", 0, Quantization(**PER_TOKEN, weight_bits=4, activation_clip=None), BERT),
    "8_bits": ("BERT", 0, Quantization(**PER_TOKEN, weight_bits=8, activation_bits=4, pooler=False), BERT),
}


def main() -> None:
    """Other files there stay: they are what a fuzzer has found."""
    CORPUS.mkdir(exist_ok=True)
    for name, (family, head, quantization, config) in MODELS.items():
        with tempfile.TemporaryDirectory() as folder:
            packed = save_packed(family, head, quantization, Path(folder) / "packed", **config)
            (CORPUS / name).write_bytes(as_one_file(packed))


if __name__ == "__main__":
    main()
