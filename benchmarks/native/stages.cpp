// Where the time of an encoder's forward pass goes, on one thread: one line of CSV.
//
//     stages FOLDER ISA SEQUENCES TOKENS SECONDS
//
// The encoder calls all arithmetic through a table of kernels, so a table of stopwatches shows what each of them takes;
// the engine itself has none. "rest" is what is not in the table: word embeddings, the head, moving rows.

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "encoder.h"

using namespace tritune;

enum Stage { kProducts, kAttention, kQuantize, kNorm, kActivation, kStages };
static const char* const kNames[] = {"products", "attention", "quantize", "norm", "activation"};

static const Kernels* real;
static double spent[kStages];

static double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// The kernel at a place of the table, with a stopwatch.
template <Stage stage, auto kernel, typename Function>
struct Timed;
template <Stage stage, auto kernel, typename... Arguments>
struct Timed<stage, kernel, void (*)(Arguments...)> {
  static void call(Arguments... arguments) {
    const double before = now();
    (real->*kernel)(arguments...);
    spent[stage] += now() - before;
  }
};
template <Stage stage, auto kernel>
static constexpr auto timed = Timed<stage, kernel, std::remove_cvref_t<decltype(std::declval<Kernels>().*kernel)>>::call;

static std::string content(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

int main(int count, char** arguments) {
  if (count != 6) return std::fputs("stages FOLDER ISA SEQUENCES TOKENS SECONDS\n", stderr), 2;
  const std::string folder = arguments[1], config = content(folder + "/config.json");
  const std::string weights = content(folder + "/model.safetensors");
  const int64_t sequences = std::atoll(arguments[3]), tokens = std::atoll(arguments[4]);
  if (!(real = kernels_for(arguments[2]))) return std::fprintf(stderr, "no %s here\n", arguments[2]), 1;
  Kernels table = *real;
  table.linear = timed<kProducts, &Kernels::linear>;
  table.float_linear = timed<kProducts, &Kernels::float_linear>;
  table.attention = timed<kAttention, &Kernels::attention>;
  table.quantize = timed<kQuantize, &Kernels::quantize>;
  table.layer_norm = timed<kNorm, &Kernels::layer_norm>;
  table.gelu = timed<kActivation, &Kernels::gelu>;
  try {
    const Model model = load_model(config, reinterpret_cast<const uint8_t*>(weights.data()), weights.size());
    std::vector<int32_t> ids(sequences * tokens);
    for (size_t i = 0; i < ids.size(); ++i) ids[i] = int32_t(i * 7919 % model.words.rows);
    std::vector<int64_t> offsets;
    for (int64_t i = 0; i <= sequences; ++i) offsets.push_back(i * tokens);
    const Batch batch{ids.data(), nullptr, nullptr, nullptr, offsets.data(), sequences};
    const Buffer arena(arena_bytes(model, batch, 1));
    std::vector<float> answers(sequences * std::max<int64_t>(model.hidden, model.head.classifier.rows));
    const auto run = [&] { encode(model, table, batch, 1, arena.bytes(), nullptr, answers.data()); };
    run();
    // Those of the fastest call: other work on the machine lengthens some of them.
    double whole = 1e9, shares[kStages] = {};
    for (const double begin = now(); now() - begin < std::atof(arguments[5]);) {
      for (double& stage : spent) stage = 0;
      const double before = now();
      run();
      const double seconds = now() - before;
      if (seconds > whole) continue;
      whole = seconds;
      std::copy(spent, spent + kStages, shares);
    }
    double rest = whole;
    std::printf("ms");
    for (const char* name : kNames) std::printf(",%s", name);
    std::printf(",rest\n%.4f", 1e3 * whole);
    for (const double stage : shares) {
      std::printf(",%.4f", stage / whole);
      rest -= stage;
    }
    std::printf(",%.4f\n", rest / whole);
  } catch (const Failure& failure) {
    return std::fprintf(stderr, "%s\n", failure.what()), 1;
  }
}
