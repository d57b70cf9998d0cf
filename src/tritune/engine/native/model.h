// A packed model in memory: what the loader fills and the encoder runs.

#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "failure.h"
#include "kernels.h"

namespace tritune {

// Memory that is aligned for kernels and freed with its owner.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(size_t bytes);   // not initialized; throws std::bad_alloc
  uint8_t* bytes() const { return memory_.get(); }
  template <typename T>
  T* as() const { return reinterpret_cast<T*>(memory_.get()); }
  size_t size() const { return size_; }

 private:
  struct Free { void operator()(uint8_t* memory) const; };
  std::unique_ptr<uint8_t, Free> memory_;
  size_t size_ = 0;
};

// A weight that owns its panels, scales and bias.
struct OwnWeight {
  Weight view{};
  Buffer fields, scales, bias;
  bool is_there() const { return view.fields != nullptr; }
};

struct Norm {
  std::vector<float> weight, bias;
};

// A float matrix, (rows, columns), and perhaps a bias: embeddings and the classifier.
struct FloatMatrix {
  int64_t rows = 0, columns = 0;
  std::vector<float> values, bias;
  bool is_there() const { return rows > 0; }
};

// The packed word embeddings, read where the caller's bytes lie.
struct PackedTable {
  int64_t rows = 0, columns = 0;
  int32_t bits = 2, step = 1, first = -1;   // fields of 2, 4 or 8 bits
  const uint8_t* bytes = nullptr;           // (rows, row_bytes)
  int64_t row_bytes = 0;
  std::vector<float> scales;                // (rows) or (1)
};

enum class Activation { gelu, gelu_tanh, relu, tanh, none };

struct Layer {
  OwnWeight query_key_value;                // rows of Q, then K, then V
  OwnWeight projection, ffn_in, ffn_out;
  Norm attention_norm, output_norm;
};

// How an image becomes tokens: a class token, then a product of every patch, and a position each.
struct Patches {
  int64_t channels = 0, image_size = 0, patch_size = 0;
  FloatMatrix projection;                   // transposed: (channels * patch * patch, padded hidden), bias (padded hidden)
  std::vector<float> class_token;           // (hidden)
  bool is_there() const { return channels > 0; }
  int64_t per_side() const { return image_size / patch_size; }
  int64_t columns() const { return channels * patch_size * patch_size; }
};

// What stands between the last hidden state and the answers.
struct Head {
  bool per_token = false;
  // The pooler, or the classifier's own dense layer: packed or float, or neither.
  OwnWeight dense;
  FloatMatrix float_dense;
  Activation activation = Activation::none;
  FloatMatrix classifier;                   // none for a bare encoder
};

// BERT, RoBERTa, XLM-R, DistilBERT, ELECTRA and their kin; ViT, which normalizes before instead of after.
struct Model {
  bool is_pre_norm = false;                 // then attention_norm stands before attention, output_norm before ffn_in
  int64_t hidden = 0, heads = 0, intermediate = 0, max_tokens = 0, first_position = 0;
  float epsilon = 1e-12f;
  Levels levels{};
  Activation activation = Activation::gelu;
  PackedTable words;                        // none for images
  Patches patches;                          // none for texts
  FloatMatrix positions, types;             // types: none for DistilBERT and for images
  Norm embedding_norm;                      // of texts
  Norm last_norm;                           // of pre-norm encoders
  OwnWeight embedding_projection;           // ELECTRA's, where its embeddings are narrower
  FloatMatrix float_embedding_projection;
  std::vector<Layer> layers;
  Head head;
};

// Throws Failure: the bytes are not a packed checkpoint or are damaged; NotServed: they hold a model that the engine
// does not run. The message names the tensor or the key. Whatever the bytes are, nothing outside of them is read.
Model load_model(std::string_view config, const uint8_t* weights, size_t weights_bytes);

}  // namespace tritune
