#include "json.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <locale>
#include <sstream>

#include "model.h"

namespace tritune::json {
namespace {

constexpr int kDeepest = 64;
// A header of 100,000 tensors has half as many. A value takes 40 bytes here and at least 2 in the text.
constexpr int64_t kMostValues = 2'000'000;

bool is_digit(char c) { return c >= '0' && c <= '9'; }

// Bytes of the UTF-8 character at `text[0]`, or 0 where there is none (RFC 3629: no overlong forms, no surrogates).
size_t character_bytes(std::string_view text) {
  const auto byte = [text](size_t i) { return i < text.size() ? static_cast<uint8_t>(text[i]) : 0; };
  const uint8_t first = byte(0), second = byte(1);
  if (first < 0x80) return 1;
  const size_t length = first >= 0xC2 && first <= 0xDF ? 2 : first >= 0xE0 && first <= 0xEF ? 3
                        : first >= 0xF0 && first <= 0xF4 ? 4 : 0;
  for (size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return 0;
  }
  const bool overlong = (first == 0xE0 && second < 0xA0) || (first == 0xF0 && second < 0x90);
  const bool outside = (first == 0xED && second > 0x9F) || (first == 0xF4 && second > 0x8F);
  return overlong || outside ? 0 : length;
}

void append_utf8(std::string& text, uint32_t point) {
  const auto rest = [point](int shift) { return static_cast<char>(0x80 | ((point >> shift) & 0x3F)); };
  if (point < 0x80) {
    text += static_cast<char>(point);
  } else if (point < 0x800) {
    text += {static_cast<char>(0xC0 | (point >> 6)), rest(0)};
  } else if (point < 0x10000) {
    text += {static_cast<char>(0xE0 | (point >> 12)), rest(6), rest(0)};
  } else {
    text += {static_cast<char>(0xF0 | (point >> 18)), rest(12), rest(6), rest(0)};
  }
}

class Parser {
 public:
  Parser(std::string_view text, const char* source) : text_(text), source_(source) {}

  Value whole_text() {
    Value value = next_value(0);
    skip_space();
    if (at_ != text_.size()) fail("something follows the end");
    return value;
  }

 private:
  [[noreturn]] void fail(const char* why) const {
    fail_with(std::string(source_) + ": not the JSON of a packed checkpoint (byte " + std::to_string(at_) + ": " +
                  why + "); download or convert it again");
  }

  // 0 at the end; a 0 in the text is refused wherever it stands.
  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }

  bool take(char wanted) {
    if (at_ >= text_.size() || text_[at_] != wanted) return false;
    ++at_;
    return true;
  }

  void skip_space() {
    while (at_ < text_.size() && (peek() == ' ' || peek() == '\n' || peek() == '\r' || peek() == '\t')) ++at_;
  }

  Value next_value(int depth) {
    if (++values_ > kMostValues) fail("too many values");
    skip_space();
    switch (peek()) {
      case '{': return {next_object(depth)};
      case '[': return {next_list(depth)};
      case '"': return {next_text()};
      case 't': return word("true"), Value{true};
      case 'f': return word("false"), Value{false};
      case 'n': return word("null"), Value{};
      default: return next_number();
    }
  }

  void word(std::string_view wanted) {
    if (text_.substr(at_, wanted.size()) != wanted) fail("an unknown word");
    at_ += wanted.size();
  }

  // Past the bracket that opens what lies in so many others.
  void enter(int depth) {
    if (depth == kDeepest) fail("nested too deeply");
    ++at_;
    skip_space();
  }

  Value::List next_list(int depth) {
    Value::List list;
    enter(depth);
    if (take(']')) return list;
    do {
      list.push_back(next_value(depth + 1));
      skip_space();
    } while (take(','));
    if (!take(']')) fail("a list without its end");
    return list;
  }

  Value::Object next_object(int depth) {
    Value::Object object;
    enter(depth);
    if (take('}')) return object;
    do {
      skip_space();
      if (peek() != '"') fail("a member without a name");
      std::string name = next_text();
      skip_space();
      if (!take(':')) fail("a member without a value");
      object.push_back({std::move(name), next_value(depth + 1)});
      skip_space();
    } while (take(','));
    if (!take('}')) fail("an object without its end");
    refuse_twins(object);
    return object;
  }

  void refuse_twins(const Value::Object& object) const {
    std::vector<std::string_view> names;
    names.reserve(object.size());
    for (const Member& member : object) names.push_back(member.name);
    std::sort(names.begin(), names.end());
    if (std::adjacent_find(names.begin(), names.end()) != names.end()) fail("an object names a member twice");
  }

  std::string next_text() {
    std::string text;
    ++at_;
    while (!take('"')) {
      const char c = peek();
      if (static_cast<uint8_t>(c) < 0x20) fail("a text without its end, or with a control character");
      if (c == '\\') {
        ++at_;
        append_utf8(text, escaped());
        continue;
      }
      const size_t bytes = character_bytes(text_.substr(at_, 4));
      if (bytes == 0) fail("not UTF-8");
      text.append(text_.substr(at_, bytes));
      at_ += bytes;
    }
    return text;
  }

  uint32_t escaped() {
    const char c = peek();
    ++at_;
    switch (c) {
      case '"': case '\\': case '/': return static_cast<uint32_t>(c);
      case 'b': return '\b';
      case 'f': return '\f';
      case 'n': return '\n';
      case 'r': return '\r';
      case 't': return '\t';
      case 'u': break;
      default: fail("an unknown escape");
    }
    const uint32_t point = four_digits();
    if (point < 0xD800 || point > 0xDFFF) return point;
    if (point > 0xDBFF || !take('\\') || !take('u')) fail("half a surrogate pair");
    const uint32_t low = four_digits();
    if (low < 0xDC00 || low > 0xDFFF) fail("half a surrogate pair");
    return 0x10000 + ((point - 0xD800) << 10) + (low - 0xDC00);
  }

  uint32_t four_digits() {
    uint32_t point = 0;
    const std::string_view digits = text_.substr(std::min(at_, text_.size()), 4);
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), point, 16);
    if (error != std::errc() || digits.size() < 4 || end != digits.data() + 4) fail("an unknown escape");
    at_ += 4;
    return point;
  }

  Value next_number() {
    const size_t start = at_;
    take('-');
    const size_t first = at_;
    const size_t digits = skip_digits();
    if (digits == 0 || (digits > 1 && text_[first] == '0')) fail("an unexpected character");
    bool is_whole = true;
    if (take('.')) {
      is_whole = false;
      if (skip_digits() == 0) fail("a number without digits");
    }
    if (take('e') || take('E')) {
      is_whole = false;
      if (!take('+')) take('-');
      if (skip_digits() == 0) fail("a number without digits");
    }
    const std::string_view number = text_.substr(start, at_ - start);
    return is_whole ? Value{whole(number)} : Value{real(number)};
  }

  size_t skip_digits() {
    const size_t start = at_;
    while (is_digit(peek())) ++at_;
    return at_ - start;
  }

  int64_t whole(std::string_view number) const {
    int64_t value = 0;
    if (std::from_chars(number.data(), number.data() + number.size(), value).ec != std::errc()) {
      fail("too large a number");
    }
    return value;
  }

  // Not std::from_chars, which some standard libraries lack for doubles.
  double real(std::string_view number) const {
    const std::string text(number);
#if defined(__wasm__)  // which has one locale, and a stream is half of the module
    const double value = std::strtod(text.c_str(), nullptr);
#else
    std::istringstream stream{text};
    stream.imbue(std::locale::classic());
    double value = 0;
    if (!(stream >> value)) fail("too large a number");
#endif
    if (!std::isfinite(value)) fail("too large a number");
    return value;
  }

  const std::string_view text_;
  const char* const source_;
  size_t at_ = 0;
  int64_t values_ = 0;
};

}  // namespace

const Value* Value::find(std::string_view name) const {
  const Object* object = as<Object>();
  if (object == nullptr) return nullptr;
  const auto found = std::find_if(object->begin(), object->end(), [name](const Member& m) { return m.name == name; });
  return found == object->end() ? nullptr : &found->value;
}

Value parse(std::string_view text, const char* source) { return Parser(text, source).whole_text(); }

std::string shown(std::string_view text) {
  constexpr size_t kLongest = 80;
  std::string line(text.substr(0, kLongest));
  std::replace_if(line.begin(), line.end(), [](char c) { return c < ' ' || c > '~'; }, '?');
  return "'" + line + (text.size() > kLongest ? "...'" : "'");
}

}  // namespace tritune::json
