#include "encoder.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <memory>
#include <string>

#include "answers.h"
#include "threads.h"
#include "workspace.h"

namespace tritune {

namespace {

// One call: what every thread of it works with.
class Run {
 public:
  Run(const Model& model, const Kernels& kernels, const Batch& batch, int threads, uint8_t* arena, bool first_tokens)
      : model_(model), kernels_(kernels), batch_(batch), threads_(threads), first_tokens_(first_tokens),
        strides_(model), memory_(lay_out(model, batch, threads, arena)), barrier_(threads),
        next_head_(std::make_unique<std::atomic<int64_t>[]>(model.layers.size())) {}

  const float* hidden(int64_t row) const { return hidden_row(row); }

  // All layers, as thread `member` of the team.
  void work(int member) {
    const Own& own = memory_.own[member];
    const int64_t tokens = batch_.tokens();
    for_blocks(member, tokens, [&](int64_t first, int64_t rows) {
      model_.patches.is_there() ? embed_patches(own, first, rows) : embed(own, first, rows);
      query_key_value(own, model_.layers[0], first, rows, [](int64_t) {});
    });
    for (size_t i = 0; i < model_.layers.size(); ++i) {
      const bool is_last = i + 1 == model_.layers.size();
      const bool is_narrow = is_last && first_tokens_;
      barrier_.wait();
      attend(own, i, is_narrow);
      barrier_.wait();
      // Afterwards the hidden state of sequence s is row s.
      if (is_narrow && member == 0) keep_first_tokens();
      if (is_narrow) barrier_.wait();
      for_blocks(member, is_narrow ? batch_.sequences : tokens, [&](int64_t first, int64_t rows) {
        attention_to_ffn(own, model_.layers[i], first, rows);
        const auto finished = [&](int64_t row) { finish(first + row, model_.layers[i]); };
        if (!is_last) return query_key_value(own, model_.layers[i + 1], first, rows, finished);
        for (int64_t row = 0; row < rows; ++row) {
          finished(row);
          if (model_.is_pre_norm) normalize(hidden_row(first + row), nullptr, model_.hidden, model_.last_norm);
        }
      });
    }
  }

 private:
  // Blocks of this member's share of `count` rows.
  template <typename Work>
  void for_blocks(int member, int64_t count, const Work& work) const {
    const int64_t begin = count * member / threads_, end = count * (member + 1) / threads_;
    for (int64_t first = begin; first < end; first += kBlockRows) work(first, std::min(kBlockRows, end - first));
  }

  float* hidden_row(int64_t row) const { return memory_.shared.hidden + row * strides_.hidden; }

  // The codes of rows of x; `before(row)` is called with the number of each just before, so that it is still in the
  // first cache when it is quantized.
  template <typename Before>
  Codes quantized(const Own& own, const float* x, int64_t stride, int64_t rows, int64_t columns,
                  const Before& before) const {
    const int64_t of_codes = codes_stride(columns);
    for (int64_t row = 0; row < rows; ++row) {
      before(row);
      kernels_.quantize(x + row * stride, stride, 1, columns, model_.levels, own.codes + row * of_codes, of_codes,
                        own.scales + row, own.sums + row);
    }
    return {own.codes, of_codes, own.scales, own.sums, rows};
  }

  void linear(const Codes& x, const OwnWeight& weight, float* out, int64_t stride) const {
    kernels_.linear(x, weight.view, 0, weight.view.panels(), out, stride);
  }

  // x = layer_norm(x + residual), one row.
  void normalize(float* x, const float* residual, int64_t columns, const Norm& norm) const {
    kernels_.layer_norm(x, 0, residual, 0, 1, columns, norm.weight.data(), norm.bias.data(), model_.epsilon);
  }

  // The codes of layer_norm(hidden), which stays as it is; for encoders that normalize before.
  template <typename Before>
  Codes normalized(const Own& own, int64_t first, int64_t rows, const Norm& norm, const Before& before) const {
    return quantized(own, own.narrow, strides_.narrow, rows, model_.hidden, [&](int64_t row) {
      before(row);
      float* const copy = own.narrow + row * strides_.narrow;
      std::memcpy(copy, hidden_row(first + row), model_.hidden * sizeof(float));
      normalize(copy, nullptr, model_.hidden, norm);
    });
  }

  void embed(const Own& own, int64_t first, int64_t rows) const;
  void embed_patches(const Own& own, int64_t first, int64_t rows) const;
  template <typename Before>
  void query_key_value(const Own& own, const Layer& layer, int64_t first, int64_t rows, const Before& before) const;
  void attend(const Own& own, size_t layer, bool is_narrow) const;
  void attention_to_ffn(const Own& own, const Layer& layer, int64_t first, int64_t rows) const;
  void finish(int64_t row, const Layer& layer) const;
  void keep_first_tokens() const;
  void activate(float* row) const;

  const Model& model_;
  const Kernels& kernels_;
  const Batch& batch_;
  const int threads_;
  const bool first_tokens_;
  const Strides strides_;
  const Workspace memory_;
  Barrier barrier_;
  // For every layer the next pair of a sequence and a head that nobody has taken.
  const std::unique_ptr<std::atomic<int64_t>[]> next_head_;
};

// The row of a packed table as floats.
void decode(const PackedTable& table, int64_t row, float* out) {
  const float scale = table.scales[table.scales.size() > 1 ? row : 0];
  const uint8_t* bytes = table.bytes + row * table.row_bytes;
  const int32_t per_byte = 8 / table.bits, mask = (1 << table.bits) - 1;
  float values[256];
  for (int32_t field = 0; field <= mask; ++field) values[field] = float(table.first + table.step * field) * scale;
  for (int64_t i = 0; i < table.columns; ++i) {
    out[i] = values[bytes[i / per_byte] >> (i % per_byte * table.bits) & mask];
  }
}

void add(float* to, const float* what, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] += what[i];
}

void Run::embed(const Own& own, int64_t first, int64_t rows) const {
  const int64_t columns = model_.words.columns;
  const bool is_projected = model_.embedding_projection.is_there() || model_.float_embedding_projection.is_there();
  float* const target = is_projected ? own.wide : hidden_row(first);
  const int64_t stride = is_projected ? strides_.intermediate : strides_.hidden;
  int64_t sequence = std::upper_bound(batch_.offsets, batch_.offsets + batch_.sequences + 1, first) - batch_.offsets - 1;
  // RoBERTa and its kin do not count padding tokens, even those of a text; these stand right before the first position.
  const auto is_counted = [&](int32_t id) { return id != model_.first_position - 1; };
  int64_t counted = std::count_if(batch_.ids + batch_.offsets[sequence], batch_.ids + first, is_counted);
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t token = first + row;
    if (token == batch_.offsets[sequence + 1]) {
      ++sequence;
      counted = 0;
    }
    const int64_t own_position = is_counted(batch_.ids[token]) ? counted++ : -1;
    const int64_t position = batch_.positions ? batch_.positions[token] : own_position;
    float* out = target + row * stride;
    decode(model_.words, batch_.ids[token], out);
    if (model_.types.is_there()) {
      add(out, model_.types.values.data() + (batch_.types ? batch_.types[token] : 0) * columns, columns);
    }
    add(out, model_.positions.values.data() + (model_.first_position + position) * columns, columns);
  }
  for (int64_t row = 0; row < rows; ++row) normalize(target + row * stride, nullptr, columns, model_.embedding_norm);
  if (!is_projected) return;
  float* const hidden = hidden_row(first);
  if (model_.embedding_projection.is_there()) {
    const Codes codes = quantized(own, target, stride, rows, columns, [](int64_t) {});
    linear(codes, model_.embedding_projection, hidden, strides_.hidden);
    return;
  }
  for (int64_t row = 0; row < rows; ++row) {
    multiply(target + row * stride, model_.float_embedding_projection, hidden + row * strides_.hidden);
  }
}

// One patch as a row: its channels one after the other, as a convolution's kernel holds them.
void Run::embed_patches(const Own& own, int64_t first, int64_t rows) const {
  const Patches& patches = model_.patches;
  const int64_t size = patches.image_size, side = patches.patch_size, stride = strides_.hidden;
  const int64_t tokens = batch_.offsets[1];
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t token = (first + row) % tokens;
    float* to = own.narrow + row * strides_.narrow;
    if (token == 0) {
      std::memset(to, 0, patches.columns() * sizeof(float));
      continue;
    }
    const int64_t top = (token - 1) / patches.per_side() * side, left = (token - 1) % patches.per_side() * side;
    const float* image = batch_.pixels + (first + row) / tokens * patches.channels * size * size;
    for (int64_t line = 0; line < patches.channels * side; ++line, to += side) {
      std::memcpy(to, image + (line / side * size + top + line % side) * size + left, side * sizeof(float));
    }
  }
  kernels_.float_linear(own.narrow, strides_.narrow, rows, patches.columns(), patches.projection.values.data(),
                        patches.projection.bias.data(), stride, hidden_row(first), stride);
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t token = (first + row) % tokens;
    if (token == 0) std::memcpy(hidden_row(first + row), patches.class_token.data(), model_.hidden * sizeof(float));
    add(hidden_row(first + row), model_.positions.values.data() + token * model_.hidden, model_.hidden);
  }
}

template <typename Before>
void Run::query_key_value(const Own& own, const Layer& layer, int64_t first, int64_t rows, const Before& before) const {
  const Codes codes = model_.is_pre_norm
                          ? normalized(own, first, rows, layer.attention_norm, before)
                          : quantized(own, hidden_row(first), strides_.hidden, rows, model_.hidden, before);
  linear(codes, layer.query_key_value, memory_.shared.query_key_value + first * strides_.query_key_value,
         strides_.query_key_value);
}

void Run::attend(const Own& own, size_t layer, bool is_narrow) const {
  const int64_t width = model_.hidden / model_.heads;
  const float scaling = 1 / std::sqrt(float(width));
  while (true) {
    const int64_t item = next_head_[layer].fetch_add(1, std::memory_order_relaxed);
    if (item >= batch_.sequences * model_.heads) return;
    const int64_t begin = batch_.offsets[item / model_.heads], end = batch_.offsets[item / model_.heads + 1];
    const int64_t head = item % model_.heads * width;
    const float* query = memory_.shared.query_key_value + begin * strides_.query_key_value + head;
    const AttentionShape shape{is_narrow ? 1 : end - begin, end - begin, width, strides_.query_key_value,
                               strides_.hidden, scaling, model_.levels};
    kernels_.attention(shape, query, query + model_.hidden, query + 2 * model_.hidden,
                       memory_.shared.context + begin * strides_.hidden + head, own.attention);
  }
}

// Sequences never get shorter than one token, so a row is only ever moved to where nothing is needed any more.
void Run::keep_first_tokens() const {
  for (int64_t i = 0; i < batch_.sequences; ++i) {
    const int64_t from = batch_.offsets[i] * strides_.hidden, to = i * strides_.hidden;
    std::memmove(memory_.shared.hidden + to, memory_.shared.hidden + from, strides_.hidden * sizeof(float));
    std::memmove(memory_.shared.context + to, memory_.shared.context + from, strides_.hidden * sizeof(float));
  }
}

void Run::activate(float* row) const {
  if (model_.activation == Activation::gelu) kernels_.gelu(row, model_.intermediate);
  if (model_.activation == Activation::gelu_tanh) kernels_.gelu_tanh(row, model_.intermediate);
  if (model_.activation == Activation::relu) kernels_.relu(row, model_.intermediate);
}

// From the context to the second product of the feed-forward network. A product's result may not lie where a residual
// does, so afterwards one of `context` and `hidden` holds the residual, and the other what `finish` adds to it.
void Run::attention_to_ffn(const Own& own, const Layer& layer, int64_t first, int64_t rows) const {
  const int64_t stride = strides_.hidden;
  float* const hidden = hidden_row(first);
  float* const context = memory_.shared.context + first * stride;
  linear(quantized(own, context, stride, rows, model_.hidden, [](int64_t) {}), layer.projection, context, stride);
  const auto added = [&](int64_t row) { add(hidden + row * stride, context + row * stride, model_.hidden); };
  const auto added_and_normalized = [&](int64_t row) {
    normalize(context + row * stride, hidden + row * stride, model_.hidden, layer.attention_norm);
  };
  const Codes codes = model_.is_pre_norm
                          ? normalized(own, first, rows, layer.output_norm, added)
                          : quantized(own, context, stride, rows, model_.hidden, added_and_normalized);
  linear(codes, layer.ffn_in, own.wide, strides_.intermediate);
  const auto activated = [&](int64_t row) { activate(own.wide + row * strides_.intermediate); };
  linear(quantized(own, own.wide, strides_.intermediate, rows, model_.intermediate, activated), layer.ffn_out,
         model_.is_pre_norm ? context : hidden, stride);
}

void Run::finish(int64_t row, const Layer& layer) const {
  const float* const context = memory_.shared.context + row * strides_.hidden;
  if (model_.is_pre_norm) return add(hidden_row(row), context, model_.hidden);
  normalize(hidden_row(row), context, model_.hidden, layer.output_norm);
}

}  // namespace

void check(const Model& model, const Batch& batch) {
  const auto fail = [](int64_t sequence, const std::string& what) {
    fail_with("sequence " + std::to_string(sequence) + ": " + what);
  };
  if (batch.offsets[0] != 0) fail_with("offsets must begin with 0");
  for (int64_t i = 0; i < batch.sequences; ++i) {
    const int64_t begin = batch.offsets[i], end = batch.offsets[i + 1];
    if (end <= begin) fail(i, "has no tokens");
    if (end - begin > model.max_tokens) fail(i, "has more than " + std::to_string(model.max_tokens) + " tokens");
    if (batch.pixels) continue;
    for (int64_t t = begin; t < end; ++t) {
      if (batch.ids[t] < 0 || batch.ids[t] >= model.words.rows) fail(i, "an id is outside the vocabulary");
      if (batch.types && model.types.is_there() && (batch.types[t] < 0 || batch.types[t] >= model.types.rows)) {
        fail(i, "a token type does not exist");
      }
      if (batch.positions && (batch.positions[t] < 0 || batch.positions[t] >= model.max_tokens)) {
        fail(i, "a position is beyond the model's");
      }
    }
  }
}

size_t arena_bytes(const Model& model, const Batch& batch, int threads) {
  return lay_out(model, batch, threads, nullptr).bytes;
}

void encode(const Model& model, const Kernels& kernels, const Batch& batch, int threads, uint8_t* arena, float* hidden,
            float* answers) {
  const Head& head = model.head;
  const bool first_tokens = !hidden && !head.per_token;
  Run run(model, kernels, batch, threads, arena, first_tokens);
  run_team(threads, [&](int member) { run.work(member); });

  const int64_t tokens = batch.tokens();
  for (int64_t t = 0; hidden && t < tokens; ++t) {
    std::memcpy(hidden + t * model.hidden, run.hidden(t), model.hidden * sizeof(float));
  }
  if (!answers) return;
  const Buffer codes(padded(model.hidden, kColumnGroup)), buffer(padded(model.hidden, kColumnGroup) * sizeof(float));
  for (int64_t i = 0; i < (head.per_token ? tokens : batch.sequences); ++i) {
    const float* row = run.hidden(head.per_token || first_tokens ? i : batch.offsets[i]);
    answer(model, kernels, row, codes.as<int8_t>(), buffer.as<float>(), answers + i * answer_columns(model));
  }
}

}  // namespace tritune
