"""`python in_python.py CLIENT ASKED MODELS`: the answers of sentence-transformers or fastembed as JSON.

Runs in the environment of requirements.txt, which is not tritune's: there, transformers is older.
"""

import json
import sys
from pathlib import Path


def sentence_transformers(asked: dict, models: Path) -> dict:
    import torch
    from sentence_transformers import CrossEncoder, SentenceTransformer

    encoder = SentenceTransformer(str(models / "sentences"), backend="onnx")
    scorer = CrossEncoder(str(models / "pairs"), backend="onnx")
    scores = scorer.predict([tuple(pair) for pair in asked["pairs"]], activation_fn=torch.nn.Identity())
    return {"embeddings": encoder.encode(asked["texts"]).tolist(), "pairs": [[float(score)] for score in scores]}


def fastembed(asked: dict, models: Path) -> dict:
    from fastembed import TextEmbedding
    from fastembed.common.model_description import ModelSource, PoolingType

    TextEmbedding.add_custom_model(
        model="tritune/sentences",
        pooling=PoolingType.DISABLED,
        normalization=False,
        output_name="sentence_embedding",
        sources=ModelSource(hf="tritune/sentences"),
        dim=16,
        model_file="model.onnx",
    )
    model = TextEmbedding("tritune/sentences", specific_model_path=str(models / "sentences"))
    return {"embeddings": [row.tolist() for row in model.embed(asked["texts"])]}


if __name__ == "__main__":
    client, file, models = sys.argv[1:]
    asked = json.loads(Path(file).read_text(encoding="utf-8"))
    print(
        json.dumps(
            {"sentence-transformers": sentence_transformers, "fastembed": fastembed}[client](asked, Path(models))
        )
    )
