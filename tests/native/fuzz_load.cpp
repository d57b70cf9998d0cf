// Hostile models: whatever the bytes are, they are loaded or refused. A target of libFuzzer, and of the replay of its
// corpus; compiled with WITH_ENGINE, it goes through the C interface, and what was loaded also runs.

#include <algorithm>
#include <memory>
#include <string_view>
#include <vector>

#include "load.h"
#include "model.h"
#include "tritune_engine.h"

namespace {

// Exactly as long as what it holds, so that a sanitizer sees a read beyond it.
std::unique_ptr<uint8_t[]> copied(const uint8_t* bytes, size_t count) {
  std::unique_ptr<uint8_t[]> copy(new uint8_t[count]);
  std::copy(bytes, bytes + count, copy.get());
  return copy;
}

#ifdef WITH_ENGINE

constexpr int64_t kMost = 1 << 20;   // numbers; a larger model only takes longer

// More sequences of one token than go through a layer together, and one of up to three; both ends of the vocabulary.
void run_tokens(const tritune_model* model, const tritune_shape& shape, bool wants_hidden) {
  constexpr int64_t kSingle = 70;
  const int64_t tokens = kSingle + std::min<int64_t>(shape.max_tokens, 3);
  if (tokens * std::max(shape.hidden_size, shape.outputs) > kMost) return;
  std::vector<int64_t> offsets(kSingle + 2);
  for (int64_t i = 0; i <= kSingle; ++i) offsets[i] = i;
  offsets.back() = tokens;
  std::vector<int32_t> ids(tokens);
  ids.back() = static_cast<int32_t>(shape.vocabulary - 1);
  std::vector<float> hidden(wants_hidden ? tokens * shape.hidden_size : 0), answers(tokens * shape.outputs);
  tritune_run(model, ids.data(), nullptr, nullptr, offsets.data(), kSingle + 1, 1, wants_hidden ? hidden.data() : nullptr,
              answers.data(), nullptr, 0);
}

void run_image(const tritune_model* model, const tritune_shape& shape, bool wants_hidden) {
  if (shape.image_size * shape.image_size > kMost / shape.channels) return;
  if (shape.max_tokens > kMost / std::max(shape.hidden_size, shape.outputs)) return;
  const std::vector<float> pixels(shape.channels * shape.image_size * shape.image_size, 0.5f);
  std::vector<float> hidden(wants_hidden ? shape.max_tokens * shape.hidden_size : 0), answers(shape.outputs);
  tritune_run_images(model, pixels.data(), 1, 1, wants_hidden ? hidden.data() : nullptr, answers.data(), nullptr, 0);
}

bool load(std::string_view config, const uint8_t* weights, size_t weights_bytes) {
  tritune_model* model = tritune_load(config.data(), config.size(), weights, weights_bytes, nullptr, nullptr, 0);
  if (!model) return false;
  const tritune_shape shape = tritune_describe(model);
  for (const bool wants_hidden : {true, false}) {
    shape.image_size ? run_image(model, shape, wants_hidden) : run_tokens(model, shape, wants_hidden);
  }
  tritune_free(model);
  return true;
}

#else

bool load(std::string_view config, const uint8_t* weights, size_t weights_bytes) {
  try {
    tritune::load_model(config, weights, weights_bytes);
    return true;
  } catch (const tritune::Failure&) {
    return false;
  }
}

#endif

}  // namespace

bool load_from(const uint8_t* data, size_t size) {
  if (size < 4) return false;
  const size_t wanted = data[0] | data[1] << 8 | data[2] << 16 | static_cast<size_t>(data[3]) << 24;
  const size_t config_bytes = std::min(wanted, size - 4), weights_bytes = size - 4 - config_bytes;
  const auto config = copied(data + 4, config_bytes), weights = copied(data + 4 + config_bytes, weights_bytes);
  return load({reinterpret_cast<const char*>(config.get()), config_bytes}, weights.get(), weights_bytes);
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  load_from(data, size);
  return 0;
}
