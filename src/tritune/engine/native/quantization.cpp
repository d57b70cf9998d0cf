#include "quantization.h"

#include <limits>


namespace tritune {
namespace {

enum class Codes { symmetric, as_integers, odd };

// The quantizers of quant/registry.py whose packed weights are scale * code.
struct Quantizer {
  const char* name;
  int64_t fewest_bits, most_bits;
  Codes codes;
  bool has_units = false;
};
constexpr Quantizer kQuantizers[] = {
    {"twn", 2, 2, Codes::symmetric},
    {"least_squares", 2, 2, Codes::symmetric},
    {"quaternary", 2, 2, Codes::odd},
    {"uniform", 3, 8, Codes::symmetric, true},
    {"bwn", 1, 1, Codes::odd},
    {"elastic_binary", 1, 1, Codes::odd},
    {"lsq", 2, 8, Codes::as_integers},
    {"dorefa", 2, 4, Codes::odd},
    {"seq", 2, 3, Codes::odd},
};
constexpr int64_t kFormatVersion = 1;

const Quantizer* quantizer_named(std::string_view name) {
  for (const Quantizer& quantizer : kQuantizers) {
    if (name == quantizer.name) return &quantizer;
  }
  return nullptr;
}

bool serves(const Quantizer& quantizer, int64_t bits) {
  return quantizer.fewest_bits <= bits && bits <= quantizer.most_bits;
}

// As quant/registry.py has it.
const char* default_quantizer(int64_t bits) { return bits == 1 ? "bwn" : bits == 2 ? "twn" : "uniform"; }

Coding coding_of(const Section& section, const char* kind, std::string name, int64_t bits) {
  const Quantizer* quantizer = quantizer_named(name);
  if (quantizer == nullptr) not_served(section.path(std::string(kind) + "_quantizer") + " " + json::shown(name));
  if (!serves(*quantizer, bits)) section.fail(std::string(kind) + "_bits", "no width of its quantizer");
  const int32_t half = 1 << (bits - 1), stored = bits > 4 ? 8 : static_cast<int32_t>(bits);
  Coding coding;
  coding.bits = stored;
  coding.has_units = quantizer->has_units;
  coding.step = quantizer->codes == Codes::odd ? 2 : 1;
  coding.highest = quantizer->codes == Codes::odd ? 2 * half - 1 : half - 1;
  coding.lowest = quantizer->codes == Codes::as_integers ? -half : -coding.highest;
  // Ternary codes and odd ones begin at the field 0; see checkpoints/packing.py.
  coding.first = coding.step == 2 || coding.highest - coding.lowest == 2 ? coding.lowest : -(1 << (stored - 1));
  const std::string granularity = section.text(std::string(kind) + "_granularity");
  if (granularity != "row" && granularity != "tensor") {
    section.fail(std::string(kind) + "_granularity", "neither row nor tensor");
  }
  coding.per_row = granularity == "row";
  return coding;
}

int64_t bits_of(const Section& section, const std::string& key, int64_t fewest) {
  if (section.is_null(key)) not_served(section.path(key) + " null (float)");
  return section.whole(key, fewest, 8);
}

Coding weight_coding(const Section& section, int64_t bits) {
  return coding_of(section, "weight", section.text_or("weight_quantizer", default_quantizer(bits)), bits);
}

// The embedding's own settings, or where they are open those of the weights, where these serve its width.
Coding embedding_coding(const Section& section, int64_t weight_bits) {
  const bool is_same = section.is_text("embedding_bits") && section.text("embedding_bits") == "same";
  const int64_t bits = is_same ? weight_bits : bits_of(section, "embedding_bits", 1);
  const std::string of_weights = section.text_or("weight_quantizer", "");
  const Quantizer* own = quantizer_named(of_weights);
  const bool takes_own = own != nullptr && serves(*own, bits);
  const char* otherwise = takes_own ? own->name : default_quantizer(bits);
  const Coding coding =
      coding_of(section, "embedding", section.text_or("embedding_quantizer", otherwise), bits);
  if (coding.bits == 1 || coding.bits == 3) {
    not_served("word embeddings of " + std::to_string(coding.bits) + " bits");
  }
  return coding;
}

Levels activation_levels(const Section& section) {
  const int64_t bits = bits_of(section, "activation_bits", 2);
  const std::string quantizer = section.text_or("activation_quantizer", "uniform");
  if (quantizer != "uniform") not_served(section.path("activation_quantizer") + " " + json::shown(quantizer));
  const std::string granularity = section.text("activation_granularity");
  if (granularity != "token") not_served(section.path("activation_granularity") + " " + json::shown(granularity));
  if (!section.boolean("attention_products")) not_served(section.path("attention_products") + " false");
  Levels levels{std::numeric_limits<float>::infinity(), static_cast<float>((1 << (bits - 1)) - 1)};
  if (!section.is_null("activation_clip")) levels.clip = static_cast<float>(section.positive("activation_clip"));
  return levels;
}

}  // namespace

Quantization read_quantization(const Section& section) {
  if (section.text("quant_method") != "tritune") section.fail("quant_method", "not tritune");
  if (section.text("stage") != "packed") section.fail("stage", "not packed");
  section.whole("format_version", kFormatVersion, kFormatVersion);
  for (const char* key : {"layers", "modules"}) {
    if (!section.is_null(key)) not_served(section.path(key) + " (settings of single layers)");
  }
  const int64_t bits = bits_of(section, "weight_bits", 1);
  return {weight_coding(section, bits), embedding_coding(section, bits), activation_levels(section)};
}

}  // namespace tritune
