// What the loader makes of files, for tests:
//
//   load_driver dump CONFIG WEIGHTS      the model as JSON, or the refusal: "refused: ..." or "not served: ..."
//   load_driver replay FILE...           each as fuzz_load.cpp reads it; prints how many were loaded
//   load_driver damage STRIDE FILE...    each with bits flipped and cut short, the header of the weights at every byte,
//                                        the rest at every STRIDE-th; prints how many of all were loaded

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "load.h"
#include "model.h"

using namespace tritune;

namespace {

std::string content_of(const char* path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) std::fprintf(stderr, "%s cannot be read\n", path), std::exit(2);
  return {std::istreambuf_iterator<char>(file), {}};
}

// Members of an object, in curly brackets, each by its own call.
class Object {
 public:
  Object() { std::putchar('{'); }
  ~Object() { std::putchar('}'); }
  void name(const char* name) {
    std::printf("%s\"%s\": ", is_first_ ? "" : ",\n", name);
    is_first_ = false;
  }
  void number(const char* own_name, double value) {
    name(own_name);
    std::isfinite(value) ? std::printf("%.9g", value) : std::printf("null");
  }
  void floats(const char* own_name, const float* values, size_t count) {
    name(own_name);
    for (size_t i = 0; i < count; ++i) std::printf("%c%.9g", i ? ',' : '[', values[i]);
    std::printf(count ? "]" : "[]");
  }
  void floats(const char* own_name, const std::vector<float>& values) {
    floats(own_name, values.data(), values.size());
  }

 private:
  bool is_first_ = true;
};

void dump(const OwnWeight& weight) {
  if (!weight.is_there()) return void(std::printf("null"));
  const Weight& view = weight.view;
  Object object;
  object.number("rows", view.rows);
  object.number("columns", view.columns);
  object.number("bits", view.bits);
  object.number("step", view.step);
  object.number("first", view.first);
  object.name("fields");
  std::putchar('"');
  for (int64_t i = 0; i < view.panels() * view.panel_bytes(); ++i) std::printf("%02x", view.fields[i]);
  std::putchar('"');
  const auto rows = static_cast<size_t>(padded(view.rows, kPanelRows));
  object.floats("scales", view.scales, rows);
  object.floats("bias", view.bias, rows);
}

void dump(const FloatMatrix& matrix) {
  if (!matrix.is_there()) return void(std::printf("null"));
  Object object;
  object.number("rows", matrix.rows);
  object.number("columns", matrix.columns);
  object.floats("values", matrix.values);
  object.floats("bias", matrix.bias);
}

void dump(const Norm& norm) {
  Object object;
  object.floats("weight", norm.weight);
  object.floats("bias", norm.bias);
}

void dump(const PackedTable& table, const uint8_t* start) {
  Object object;
  object.number("rows", table.rows);
  object.number("columns", table.columns);
  object.number("bits", table.bits);
  object.number("step", table.step);
  object.number("first", table.first);
  object.number("row_bytes", table.row_bytes);
  object.number("offset", static_cast<double>(table.bytes - start));
  object.floats("scales", table.scales);
}

void dump(const Patches& patches) {
  if (!patches.is_there()) return void(std::printf("null"));
  Object object;
  object.number("channels", patches.channels);
  object.number("image_size", patches.image_size);
  object.number("patch_size", patches.patch_size);
  object.name("projection"), dump(patches.projection);
  object.floats("class_token", patches.class_token);
}

void dump(const Layer& layer) {
  Object object;
  object.name("query_key_value"), dump(layer.query_key_value);
  object.name("projection"), dump(layer.projection);
  object.name("ffn_in"), dump(layer.ffn_in);
  object.name("ffn_out"), dump(layer.ffn_out);
  object.name("attention_norm"), dump(layer.attention_norm);
  object.name("output_norm"), dump(layer.output_norm);
}

void dump(const Head& head) {
  Object object;
  object.number("per_token", head.per_token);
  object.number("activation", static_cast<int>(head.activation));
  object.name("dense"), dump(head.dense);
  object.name("float_dense"), dump(head.float_dense);
  object.name("classifier"), dump(head.classifier);
}

void dump(const Model& model, const uint8_t* start) {
  Object object;
  object.number("is_pre_norm", model.is_pre_norm);
  object.number("hidden", model.hidden);
  object.number("heads", model.heads);
  object.number("intermediate", model.intermediate);
  object.number("max_tokens", model.max_tokens);
  object.number("first_position", model.first_position);
  object.number("epsilon", model.epsilon);
  object.number("clip", model.levels.clip);
  object.number("largest", model.levels.largest);
  object.number("activation", static_cast<int>(model.activation));
  object.name("words"), dump(model.words, start);
  object.name("patches"), dump(model.patches);
  object.name("last_norm"), dump(model.last_norm);
  object.name("positions"), dump(model.positions);
  object.name("types"), dump(model.types);
  object.name("embedding_norm"), dump(model.embedding_norm);
  object.name("embedding_projection"), dump(model.embedding_projection);
  object.name("float_embedding_projection"), dump(model.float_embedding_projection);
  object.name("layers");
  for (size_t i = 0; i < model.layers.size(); ++i) std::printf(i ? ",\n" : "["), dump(model.layers[i]);
  std::printf("],\n\"head\": ");
  dump(model.head);
}

int dump_files(const char* config_path, const char* weights_path) {
  const std::string config = content_of(config_path), weights = content_of(weights_path);
  const auto* bytes = reinterpret_cast<const uint8_t*>(weights.data());
  try {
    dump(load_model(config, bytes, weights.size()), bytes);
  } catch (const NotServed& refusal) {
    std::printf("not served: %s", refusal.what());
  } catch (const Failure& refusal) {
    std::printf("refused: %s", refusal.what());
  }
  return 0;
}

struct Counts {
  long tried = 0, loaded = 0;

  void load(const std::string& content) {
    ++tried;
    loaded += load_from(reinterpret_cast<const uint8_t*>(content.data()), content.size());
  }
};

// Where the data of the tensors begins: after two lengths, the config and the header.
size_t header_end(const std::string& content) {
  uint32_t config = 0, header = 0;
  std::memcpy(&config, content.data(), 4);
  std::memcpy(&header, content.data() + 4 + config, 4);
  return 4 + config + 8 + header;
}

Counts damage(const std::string& content, size_t stride) {
  Counts counts;
  const size_t dense = header_end(content);
  std::string damaged = content;
  for (size_t at = 0; at < content.size(); at += at < dense ? 1 : stride) {
    for (const int flipped : {1 << at % 8, 255}) {
      damaged[at] = static_cast<char>(content[at] ^ flipped);
      counts.load(damaged);
    }
    damaged[at] = content[at];
  }
  for (size_t length = 0; length < content.size(); length += stride) counts.load(content.substr(0, length));
  return counts;
}

}  // namespace

int main(int count, char** words) {
  const std::string verb = count > 1 ? words[1] : "";
  if (verb == "dump" && count == 4) return dump_files(words[2], words[3]);
  const bool is_damage = verb == "damage" && count > 2;
  if (verb != "replay" && !is_damage) return 2;
  Counts all;
  for (int i = is_damage ? 3 : 2; i < count; ++i) {
    const std::string content = content_of(words[i]);
    Counts own;
    if (is_damage) own = damage(content, std::strtoul(words[2], nullptr, 10));
    else own.load(content);
    all.tried += own.tried, all.loaded += own.loaded;
  }
  std::printf("%ld of %ld loaded\n", all.loaded, all.tried);
  return 0;
}
