// A strict reader of JSON: what is not exactly JSON, or too large to be a config, is refused.

#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace tritune::json {

struct Member;

// Null, true or false, a whole number, another number, text in UTF-8, a list, or an object in the order of the text.
struct Value {
  using List = std::vector<Value>;
  using Object = std::vector<Member>;
  std::variant<std::monostate, bool, int64_t, double, std::string, List, Object> content;

  bool is_null() const { return std::holds_alternative<std::monostate>(content); }

  // Null where the value is of another kind.
  template <typename T>
  const T* as() const { return std::get_if<T>(&content); }

  // The member of an object, or null.
  const Value* find(std::string_view name) const;
};

struct Member {
  std::string name;
  Value value;
};

// Throws Failure, whose message begins with `source`: the text is not JSON (bare NaN and Infinity are not), names a
// member twice, is nested deeper than 64, or holds a number that no int64 or double holds, or too many values.
Value parse(std::string_view text, const char* source);

// Text from a file in a message of one line: in quotes, shortened, without anything unprintable.
std::string shown(std::string_view text);

}  // namespace tritune::json
