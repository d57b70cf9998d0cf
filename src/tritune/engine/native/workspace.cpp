#include "workspace.h"

namespace tritune {
namespace {

// Cuts one piece of memory into aligned arrays; without memory it only counts.
class Arena {
 public:
  explicit Arena(uint8_t* memory) : memory_(memory) {}

  template <typename T>
  T* take(int64_t count) {
    T* piece = memory_ ? reinterpret_cast<T*>(memory_ + used_) : nullptr;
    used_ += padded(count * sizeof(T), kAlignment);
    return piece;
  }
  int64_t used() const { return used_; }

 private:
  uint8_t* memory_;
  int64_t used_ = 0;
};

int64_t longest(const Batch& batch) {
  int64_t tokens = 0;
  for (int64_t i = 0; i < batch.sequences; ++i) tokens = std::max(tokens, batch.offsets[i + 1] - batch.offsets[i]);
  return tokens;
}

}  // namespace

Workspace lay_out(const Model& model, const Batch& batch, int threads, uint8_t* memory) {
  Arena arena(memory);
  const Strides strides(model);
  const int64_t tokens = batch.tokens();
  Workspace laid;
  laid.shared = {arena.take<float>(tokens * strides.hidden), arena.take<float>(tokens * strides.query_key_value),
                 arena.take<float>(tokens * strides.hidden)};
  laid.own = std::make_unique<Own[]>(threads);
  for (int i = 0; i < threads; ++i) {
    laid.own[i] = {arena.take<int8_t>(kBlockRows * strides.codes), arena.take<float>(kBlockRows),
                   arena.take<float>(kBlockRows * strides.intermediate), arena.take<float>(kBlockRows * strides.narrow),
                   arena.take<int32_t>(kBlockRows),
                   arena.take<uint8_t>(attention_scratch_bytes(longest(batch), model.hidden / model.heads))};
  }
  laid.bytes = arena.used();
  return laid;
}

}  // namespace tritune
