#include "families.h"

namespace tritune {
namespace {

// BERT and those that were made from it name everything alike.
constexpr Family bert_like(const char* model_type, const char* class_stem, const char* prefix) {
  return {
      .model_type = model_type,
      .class_stem = class_stem,
      .prefix = prefix,
      .keys = {"hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act",
               "layer_norm_eps", nullptr},
      .takes_images = false,
      .has_types = true,
      .positions_follow_padding = false,
      .layer = "encoder.layer.",
      .query = "attention.self.query",
      .key = "attention.self.key",
      .value = "attention.self.value",
      .projection = "attention.output.dense",
      .attention_norm = "attention.output.LayerNorm",
      .ffn_in = "intermediate.dense",
      .ffn_out = "output.dense",
      .output_norm = "output.LayerNorm",
      .embedding_projection = nullptr,
      .pooler = "pooler.dense",
      .sequence_head = {"bert.pooler.dense", Activation::tanh, "classifier"},
  };
}

constexpr Family roberta_like(const char* model_type, const char* class_stem) {
  Family family = bert_like(model_type, class_stem, "roberta.");
  family.positions_follow_padding = true;
  family.sequence_head = {"classifier.dense", Activation::tanh, "classifier.out_proj"};
  return family;
}

constexpr Family electra() {
  Family family = bert_like("electra", "Electra", "electra.");
  family.keys.embedding = "embedding_size";
  family.embedding_projection = "embeddings_project";
  family.pooler = nullptr;
  family.sequence_head = {"classifier.dense", Activation::gelu, "classifier.out_proj"};
  return family;
}

constexpr Family distilbert() {
  return {
      .model_type = "distilbert",
      .class_stem = "DistilBert",
      .prefix = "distilbert.",
      .keys = {"dim", "n_layers", "n_heads", "hidden_dim", "activation", nullptr, nullptr},
      .takes_images = false,
      .has_types = false,
      .positions_follow_padding = false,
      .layer = "transformer.layer.",
      .query = "attention.q_lin",
      .key = "attention.k_lin",
      .value = "attention.v_lin",
      .projection = "attention.out_lin",
      .attention_norm = "sa_layer_norm",
      .ffn_in = "ffn.lin1",
      .ffn_out = "ffn.lin2",
      .output_norm = "output_layer_norm",
      .embedding_projection = nullptr,
      .pooler = nullptr,
      .sequence_head = {"pre_classifier", Activation::relu, "classifier"},
  };
}

constexpr Family vit() {
  return {
      .model_type = "vit",
      .class_stem = "ViT",
      .prefix = "vit.",
      .keys = {"hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act",
               "layer_norm_eps", nullptr},
      .takes_images = true,
      .has_types = false,
      .positions_follow_padding = false,
      .layer = "encoder.layer.",
      .query = "attention.attention.query",
      .key = "attention.attention.key",
      .value = "attention.attention.value",
      .projection = "attention.output.dense",
      .attention_norm = "layernorm_before",
      .ffn_in = "intermediate.dense",
      .ffn_out = "output.dense",
      .output_norm = "layernorm_after",
      .embedding_projection = nullptr,
      .pooler = "pooler.dense",
      .sequence_head = {nullptr, Activation::none, "classifier"},
  };
}

constexpr Family kFamilies[] = {
    bert_like("bert", "Bert", "bert."),
    roberta_like("roberta", "Roberta"),
    roberta_like("xlm-roberta", "XLMRoberta"),
    roberta_like("camembert", "Camembert"),
    distilbert(),
    electra(),
    vit(),
};

}  // namespace

const Family* family_of(std::string_view model_type) {
  for (const Family& family : kFamilies) {
    if (model_type == family.model_type) return &family;
  }
  return nullptr;
}

}  // namespace tritune
