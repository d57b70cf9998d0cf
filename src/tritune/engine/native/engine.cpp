// The C interface: exceptions end here and become a message.

#include "tritune_engine.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "answers.h"
#include "encoder.h"
#include "failure.h"
#include "kernels.h"
#include "layout.h"
#include "model.h"
#include "threads.h"

namespace {

using namespace tritune;

const Kernels& kernels_or_failure(const char* isa) {
  const Kernels* kernels = kernels_for(isa);
  if (!kernels) {
    fail_with(std::string("instruction set ") + (isa ? isa : "?") + " does not run here; there are " + tritune_isas());
  }
  return *kernels;
}

int team_size(int threads, int64_t rows) { return int(std::clamp<int64_t>(rows, 1, std::clamp(threads, 1, kMostThreads))); }

// Memory of finished calls, for those to come: fresh memory costs a page fault every 4 KiB.
class Arenas {
 public:
  Buffer take(size_t bytes) {
    {
      const std::lock_guard<Mutex> lock(mutex_);
      const auto fits = std::find_if(kept_.begin(), kept_.end(), [&](const Buffer& b) { return b.size() >= bytes; });
      if (fits != kept_.end()) {
        Buffer found = std::move(*fits);
        kept_.erase(fits);
        return found;
      }
      if (!kept_.empty()) kept_.pop_back();  // too small for what is asked for now
    }
    return Buffer(bytes);
  }

  void give_back(Buffer arena) {
    const std::lock_guard<Mutex> lock(mutex_);
    kept_.push_back(std::move(arena));
  }

 private:
  Mutex mutex_;
  std::vector<Buffer> kept_;
};

}  // namespace

struct tritune_model {
  Model model;
  const Kernels& kernels;
  mutable Arenas arenas;
};

struct tritune_linear {
  OwnWeight weight;
  const Kernels& kernels;
};

const char* tritune_isas(void) {
  static const std::string names = [] {
    const char* found[16];
    std::string joined;
    for (int i = 0, count = available_isas(found, 16); i < count; ++i) joined.append(i ? " " : "").append(found[i]);
    return joined;
  }();
  return names.c_str();
}

tritune_model* tritune_load(const char* config, size_t config_bytes, const uint8_t* weights, size_t weights_bytes,
                            const char* isa, char* message, size_t room) {
  return guarded<tritune_model*>(nullptr, message, room, [&] {
    const Kernels& kernels = kernels_or_failure(isa);
    return new tritune_model{load_model({config, config_bytes}, weights, weights_bytes), kernels, {}};
  });
}

void tritune_free(tritune_model* model) { delete model; }

tritune_shape tritune_describe(const tritune_model* model) {
  const Model& own = model->model;
  return {own.hidden,     answer_columns(own),  own.head.per_token,    own.max_tokens,
          own.words.rows, own.patches.channels, own.patches.image_size};
}

const char* tritune_isa(const tritune_model* model) { return model->kernels.isa; }

namespace {

int run(const tritune_model& model, const Batch& batch, int threads, float* hidden, float* answers) {
  if (batch.sequences < 1) fail_with("a batch needs at least one sequence");
  check(model.model, batch);
  const int team = team_size(threads, batch.tokens());
  Buffer arena = model.arenas.take(arena_bytes(model.model, batch, team));
  encode(model.model, model.kernels, batch, team, arena.bytes(), hidden, answers);
  model.arenas.give_back(std::move(arena));
  return 0;
}

}  // namespace

int tritune_run(const tritune_model* model, const int32_t* ids, const int32_t* types, const int32_t* positions,
                const int64_t* offsets, int64_t sequences, int threads, float* hidden, float* answers, char* message,
                size_t room) {
  return guarded(1, message, room, [&] {
    if (model->model.patches.is_there()) fail_with("the model takes images, not tokens");
    return run(*model, {ids, types, positions, nullptr, offsets, sequences}, threads, hidden, answers);
  });
}

int tritune_run_images(const tritune_model* model, const float* pixels, int64_t images, int threads, float* hidden,
                       float* answers, char* message, size_t room) {
  return guarded(1, message, room, [&] {
    const Patches& patches = model->model.patches;
    if (!patches.is_there()) fail_with("the model takes tokens, not images");
    std::vector<int64_t> offsets;
    for (int64_t i = 0; i <= images; ++i) offsets.push_back(i * (1 + patches.per_side() * patches.per_side()));
    return run(*model, {nullptr, nullptr, nullptr, pixels, offsets.data(), images}, threads, hidden, answers);
  });
}

tritune_linear* tritune_linear_new(const uint8_t* packed, int64_t rows, int64_t columns, int32_t step, int32_t first,
                                   const float* scales, const float* bias, const char* isa, char* message, size_t room) {
  return guarded<tritune_linear*>(nullptr, message, room, [&] {
    const Kernels& kernels = kernels_or_failure(isa);
    if (rows < 1 || columns < 1) fail_with("a weight needs rows and columns");
    OwnWeight weight;
    const int64_t outputs = padded(rows, kPanelRows);
    weight.view = {rows, columns, 2, step, first, nullptr, nullptr, nullptr};
    weight.fields = Buffer(weight.view.panels() * weight.view.panel_bytes());
    weight.scales = Buffer(outputs * sizeof(float));
    weight.bias = Buffer(outputs * sizeof(float));
    panels_of_packed(packed, rows, columns, weight.fields.bytes());
    for (int64_t n = 0; n < outputs; ++n) {
      weight.scales.as<float>()[n] = n < rows ? scales[n] : 0;
      weight.bias.as<float>()[n] = n < rows && bias ? bias[n] : 0;
    }
    weight.view.fields = weight.fields.bytes();
    weight.view.scales = weight.scales.as<float>();
    weight.view.bias = weight.bias.as<float>();
    return new tritune_linear{std::move(weight), kernels};
  });
}

void tritune_linear_free(tritune_linear* linear) { delete linear; }

namespace {

constexpr int64_t kBlockRows = 64;

// One member's rows of a product, block by block; `product` takes the codes, the block's first row and a buffer.
struct Rows {
  Buffer codes, scales, sums, out;

  explicit Rows(const Weight& weight)
      : codes(kBlockRows * weight.padded_columns()), scales(kBlockRows * sizeof(float)),
        sums(kBlockRows * sizeof(int32_t)), out(kBlockRows * padded(weight.rows, kPanelRows) * sizeof(float)) {}
};

}  // namespace

int tritune_linear_run(const tritune_linear* linear, const float* input, int64_t tokens, float clip, float largest,
                       int threads, float* output, char* message, size_t room) {
  return guarded(1, message, room, [&] {
    const Weight& weight = linear->weight.view;
    const int64_t stride = weight.padded_columns(), outputs = padded(weight.rows, kPanelRows);
    const int team = team_size(threads, padded(tokens, kBlockRows) / kBlockRows);
    std::vector<Rows> memory;
    for (int i = 0; i < team; ++i) memory.emplace_back(weight);
    run_team(team, [&](int member) {
      const Rows& own = memory[member];
      const int64_t end = tokens * (member + 1) / team;
      for (int64_t at = tokens * member / team; at < end; at += kBlockRows) {
        const int64_t rows = std::min(kBlockRows, end - at);
        linear->kernels.quantize(input + at * weight.columns, weight.columns, rows, weight.columns, {clip, largest},
                                 own.codes.as<int8_t>(), stride, own.scales.as<float>(), own.sums.as<int32_t>());
        const Codes codes{own.codes.as<int8_t>(), stride, own.scales.as<float>(), own.sums.as<int32_t>(), rows};
        linear->kernels.linear(codes, weight, 0, weight.panels(), own.out.as<float>(), outputs);
        for (int64_t row = 0; row < rows; ++row) {
          std::memcpy(output + (at + row) * weight.rows, own.out.as<float>() + row * outputs,
                      weight.rows * sizeof(float));
        }
      }
    });
    return 0;
  });
}

int tritune_linear_sums(const tritune_linear* linear, const int8_t* codes, int64_t tokens, int32_t* sums, char* message,
                        size_t room) {
  return guarded(1, message, room, [&] {
    const Weight& weight = linear->weight.view;
    const int64_t stride = weight.padded_columns(), outputs = padded(weight.rows, kPanelRows);
    const Rows own(weight);
    for (int64_t row = 0; row < tokens; ++row) {
      int8_t* padded_codes = own.codes.as<int8_t>();
      std::memset(padded_codes, 0, stride);
      std::memcpy(padded_codes, codes + row * weight.columns, weight.columns);
      int32_t sum = 0;
      for (int64_t k = 0; k < weight.columns; ++k) sum += padded_codes[k];
      linear->kernels.sums({padded_codes, stride, nullptr, &sum, 1}, weight, 0, weight.panels(),
                           own.out.as<int32_t>(), outputs);
      std::memcpy(sums + row * weight.rows, own.out.as<int32_t>(), weight.rows * sizeof(int32_t));
    }
    return 0;
  });
}
