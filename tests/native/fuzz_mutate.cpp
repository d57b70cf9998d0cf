// Mutations that leave a model in one piece: its config, the header of its weights and their data change one at a time,
// and the lengths before them stay right. Otherwise hardly anything would get past the first length.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t most);

namespace {

// Takes `count` bytes, or what there is, off the front.
std::string take(std::string& rest, uint64_t count) {
  const std::string taken = rest.substr(0, static_cast<size_t>(std::min<uint64_t>(count, rest.size())));
  rest.erase(0, taken.size());
  return taken;
}

// Takes a length of `bytes` bytes off the front, the lowest first.
uint64_t take_length(std::string& rest, size_t bytes) {
  uint64_t length = 0;
  const std::string taken = take(rest, bytes);
  for (size_t i = 0; i < taken.size(); ++i) length |= uint64_t{static_cast<uint8_t>(taken[i])} << 8 * i;
  return length;
}

std::string as_length(uint64_t length, size_t bytes) {
  std::string text;
  for (size_t i = 0; i < bytes; ++i) text += static_cast<char>(length >> 8 * i);
  return text;
}

}  // namespace

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t most, unsigned int seed) {
  std::string rest(reinterpret_cast<const char*>(data), size);
  std::string config = take(rest, take_length(rest, 4)), header = take(rest, take_length(rest, 8));
  std::string* const parts[] = {&config, &header, &rest};
  if (seed % 4 == 3) return LLVMFuzzerMutate(data, size, most);
  std::string& part = *parts[seed % 4];
  const size_t before = part.size(), room = before + std::max<size_t>(most - std::min(most, size + 12), 1);
  part.resize(room);
  part.resize(LLVMFuzzerMutate(reinterpret_cast<uint8_t*>(part.data()), before, room));
  const std::string whole = as_length(config.size(), 4) + config + as_length(header.size(), 8) + header + rest;
  const size_t length = std::min(whole.size(), most);
  std::memcpy(data, whole.data(), length);
  return length;
}
