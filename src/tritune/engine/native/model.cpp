#include "model.h"

#include <new>

#include "config.h"
#include "families.h"
#include "quantization.h"
#include "weights.h"

namespace tritune {
namespace {

constexpr size_t kLargestConfig = 64 << 20;  // as checkpoints/integrity.py has it
// Far beyond any model, and small enough that no product of two overflows; a kernel's sums of K terms of 8 by 8 bits
// stay below 2^31 up to this width.
constexpr int64_t kWidest = 1 << 16, kMostLayers = 1000, kMostRows = 1 << 24;

enum class Task { none, sequences, tokens, spans };

struct TaskRow {
  const char* suffix;   // of a class name
  Task task;
};
constexpr TaskRow kTasks[] = {
    {"Model", Task::none},
    {"ForSequenceClassification", Task::sequences},
    {"ForImageClassification", Task::sequences},
    {"ForTokenClassification", Task::tokens},
    {"ForQuestionAnswering", Task::spans},
};

struct ActivationRow {
  const char* name;
  Activation activation;
};
// The names of transformers' activations.py.
constexpr ActivationRow kActivations[] = {
    {"gelu", Activation::gelu},
    {"gelu_python", Activation::gelu},
    {"gelu_new", Activation::gelu_tanh},
    {"gelu_fast", Activation::gelu_tanh},
    {"gelu_accurate", Activation::gelu_tanh},
    {"gelu_pytorch_tanh", Activation::gelu_tanh},
    {"gelu_python_tanh", Activation::gelu_tanh},
    {"relu", Activation::relu},
    {"tanh", Activation::tanh},
};

const Family& served_family(const Section& config) {
  const std::string type = config.text("model_type");
  const Family* family = family_of(type);
  if (family == nullptr) not_served(config.path("model_type") + " " + json::shown(type));
  return *family;
}

Task task_of(const Section& config, const Family& family) {
  const auto* names = config.at("architectures").as<json::Value::List>();
  const std::string* name = names == nullptr || names->empty() ? nullptr : names->front().as<std::string>();
  if (name == nullptr) config.fail("architectures", "no list of class names");
  for (const TaskRow& row : kTasks) {
    if (*name == std::string(family.class_stem) + row.suffix) return row.task;
  }
  not_served(config.path("architectures") + " " + json::shown(*name));
}

Activation activation_of(const Section& config, const char* key) {
  const std::string name = config.text(key);
  for (const ActivationRow& row : kActivations) {
    if (name == row.name) return row.activation;
  }
  not_served(config.path(key) + " " + json::shown(name));
}

// Settings that change what a model computes, where they are not what the engine computes.
void refuse_other_attention(const Section& config) {
  for (const char* key : {"is_decoder", "add_cross_attention"}) {
    if (config.find(key) != nullptr && !config.is_null(key) && config.boolean(key)) {
      not_served(config.path(key) + " true");
    }
  }
  const char* key = "position_embedding_type";
  if (config.find(key) != nullptr && config.text_or(key, "absolute") != "absolute") {
    not_served(config.path(key) + " " + json::shown(config.text(key)));
  }
}

// transformers writes the names of labels, but for the two that a config has by default.
int64_t label_count(const Section& config) {
  const json::Value* names = config.find("id2label");
  if (names == nullptr || names->is_null()) return 2;
  const auto* labels = names->as<json::Value::Object>();
  if (labels == nullptr || labels->empty()) config.fail("id2label", "no mapping with labels");
  return static_cast<int64_t>(labels->size());
}

// Throughout, a shape is checked before anything of its size is made.
class Loader {
 public:
  Loader(const json::Value& root, const uint8_t* weights, size_t weights_bytes)
      : config_(root, ""),
        quantization_(read_quantization({config_.at("quantization_config"), "quantization_config"})),
        family_(served_family(config_)),
        task_(task_of(config_, family_)),
        weights_(weights, weights_bytes) {}

  Model load() {
    read_sizes();
    family_.takes_images ? read_patches() : read_embeddings();
    for (int64_t layer = 0; layer < layers_; ++layer) model_.layers.push_back(read_layer(layer));
    read_head();
    weights_.check_all_taken();
    return std::move(model_);
  }

 private:
  std::string of_encoder(const std::string& name) const {
    return (task_ == Task::none ? "" : family_.prefix) + name;
  }

  OwnWeight packed(const std::vector<std::string>& names, int64_t rows, int64_t columns) {
    return weights_.packed(names, rows, columns, quantization_.weight);
  }

  void read_sizes() {
    const auto& keys = family_.keys;
    refuse_other_attention(config_);
    model_.hidden = config_.whole(keys.hidden, 1, kWidest);
    model_.heads = config_.whole(keys.heads, 1, model_.hidden);
    if (model_.hidden % model_.heads) config_.fail(keys.heads, "no divisor of " + std::string(keys.hidden));
    model_.intermediate = config_.whole(keys.intermediate, 1, kWidest);
    layers_ = config_.whole(keys.layers, 1, kMostLayers);
    embedding_ = keys.embedding == nullptr ? model_.hidden : config_.whole(keys.embedding, 1, kWidest);
    if (keys.epsilon != nullptr) model_.epsilon = static_cast<float>(config_.positive(keys.epsilon));
    model_.activation = activation_of(config_, keys.activation);
    model_.levels = quantization_.activations;
    if (family_.takes_images) return;
    positions_ = config_.whole("max_position_embeddings", 1, kMostRows);
    if (family_.positions_follow_padding) model_.first_position = config_.whole("pad_token_id", 0, positions_ - 2) + 1;
    model_.max_tokens = positions_ - model_.first_position;
  }

  void read_embeddings() {
    const int64_t words = config_.whole("vocab_size", 1, kMostRows);
    const std::string at = of_encoder("embeddings.");
    model_.words = weights_.packed_table(at + "word_embeddings", words, embedding_, quantization_.embedding);
    model_.positions = weights_.table(at + "position_embeddings", positions_, embedding_);
    if (family_.has_types) {
      const int64_t types = config_.whole("type_vocab_size", 1, kMostRows);
      model_.types = weights_.table(at + "token_type_embeddings", types, embedding_);
    }
    model_.embedding_norm = weights_.norm(at + "LayerNorm", embedding_);
    if (embedding_ == model_.hidden) return;
    const std::string projection = of_encoder(family_.embedding_projection);
    if (weights_.is_packed(projection)) {
      model_.embedding_projection = packed({projection}, model_.hidden, embedding_);
    } else {
      model_.float_embedding_projection = weights_.linear(projection, model_.hidden, embedding_);
    }
  }

  void read_patches() {
    Patches& patches = model_.patches;
    if (!config_.boolean("qkv_bias")) not_served(config_.path("qkv_bias") + " false");
    if (config_.text("pooler_act") != "tanh") not_served(config_.path("pooler_act") + " " + config_.text("pooler_act"));
    patches.channels = config_.whole("num_channels", 1, kWidest);
    patches.image_size = config_.whole("image_size", 1, kWidest);
    patches.patch_size = config_.whole("patch_size", 1, patches.image_size);
    if (patches.columns() > kWidest) config_.fail("patch_size", "too large");
    model_.is_pre_norm = true;
    model_.max_tokens = 1 + patches.per_side() * patches.per_side();
    const std::string at = of_encoder("embeddings.");
    patches.class_token = weights_.values(at + "cls_token", {1, 1, model_.hidden});
    model_.positions = {.rows = model_.max_tokens, .columns = model_.hidden,
                        .values = weights_.values(at + "position_embeddings", {1, model_.max_tokens, model_.hidden}),
                        .bias = {}};
    const std::string projection = at + "patch_embeddings.projection";
    if (weights_.is_packed(projection)) not_served("model.safetensors: " + projection + " is packed");
    patches.projection = weights_.convolution(
        projection, {model_.hidden, patches.channels, patches.patch_size, patches.patch_size});
    model_.last_norm = weights_.norm(of_encoder("layernorm"), model_.hidden);
  }

  Layer read_layer(int64_t number) {
    const std::string at = of_encoder(family_.layer + std::to_string(number) + ".");
    const int64_t hidden = model_.hidden, intermediate = model_.intermediate;
    return {
        .query_key_value = packed({at + family_.query, at + family_.key, at + family_.value}, hidden, hidden),
        .projection = packed({at + family_.projection}, hidden, hidden),
        .ffn_in = packed({at + family_.ffn_in}, intermediate, hidden),
        .ffn_out = packed({at + family_.ffn_out}, hidden, intermediate),
        .attention_norm = weights_.norm(at + family_.attention_norm, hidden),
        .output_norm = weights_.norm(at + family_.output_norm, hidden),
    };
  }

  void read_head() {
    if (task_ == Task::none) {
      model_.head.per_token = family_.pooler == nullptr;
      if (family_.pooler != nullptr) read_dense(family_.pooler, Activation::tanh);
      return;
    }
    model_.head.per_token = task_ != Task::sequences;
    const SequenceHead& head = family_.sequence_head;
    if (task_ == Task::sequences && head.dense != nullptr) read_dense(head.dense, head.activation);
    const char* name = task_ == Task::sequences ? head.classifier : task_ == Task::tokens ? "classifier" : "qa_outputs";
    const int64_t labels = label_count(config_);
    if (task_ == Task::spans && labels != 2) config_.fail("id2label", "not of two labels, start and end");
    model_.head.classifier = weights_.linear(name, labels, model_.hidden);
  }

  void read_dense(const std::string& name, Activation activation) {
    Head& head = model_.head;
    head.activation = activation;
    if (weights_.is_packed(name)) {
      head.dense = packed({name}, model_.hidden, model_.hidden);
    } else {
      head.float_dense = weights_.linear(name, model_.hidden, model_.hidden);
    }
  }

  const Section config_;
  const Quantization quantization_;
  const Family& family_;
  const Task task_;
  Weights weights_;
  Model model_;
  int64_t layers_ = 0, embedding_ = 0, positions_ = 0;
};

}  // namespace

Buffer::Buffer(size_t bytes)
    : memory_(static_cast<uint8_t*>(::operator new(bytes, std::align_val_t{kAlignment}))), size_(bytes) {}

void Buffer::Free::operator()(uint8_t* memory) const { ::operator delete(memory, std::align_val_t{kAlignment}); }

Model load_model(std::string_view config, const uint8_t* weights, size_t weights_bytes) {
  if (config.size() > kLargestConfig) fail_with("config.json: too large; download or convert it again");
  const json::Value root = json::parse(config, "config.json");
  return Loader(root, weights, weights_bytes).load();
}

}  // namespace tritune
