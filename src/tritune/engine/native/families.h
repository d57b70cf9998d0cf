// What tells the served families apart: the keys of their configs, the names of their tensors, and a few facts.

#pragma once

#include <string_view>

#include "model.h"

namespace tritune {

// The dense layer before a classifier of sequences, and the classifier.
struct SequenceHead {
  const char* dense;            // null for none
  Activation activation;
  const char* classifier;
};

// Names of tensors lack ".weight" and ".bias"; those of a layer follow its number, those of the encoder its prefix.
struct Family {
  const char* model_type;
  const char* class_stem;       // "Bert" of BertForSequenceClassification
  const char* prefix;           // of the encoder's tensors, but where the encoder is all there is

  struct {
    const char *hidden, *layers, *heads, *intermediate, *activation;
    const char* epsilon;        // null: 1e-12
    const char* embedding;      // the width of the embeddings; null: as `hidden`
  } keys;
  bool takes_images;            // and normalizes before attention and feed-forward network, not after them
  bool has_types;
  bool positions_follow_padding;  // they begin at pad_token_id + 1, not at 0

  const char* layer;
  const char *query, *key, *value, *projection, *attention_norm, *ffn_in, *ffn_out, *output_norm;
  const char* embedding_projection;  // where the embeddings are narrower; null for none
  const char* pooler;           // of the encoder alone, followed by tanh; null for none
  SequenceHead sequence_head;
};

// Null where the engine runs no model of this type.
const Family* family_of(std::string_view model_type);

}  // namespace tritune
