// Values of a config.json by key, each checked for its kind and bounds.

#pragma once

#include <string>

#include "json.h"

namespace tritune {

// Throws NotServed: of a sound model with such a `what`.
[[noreturn]] void not_served(const std::string& what);

class Section {
 public:
  // `value` is the object `name` of config.json; the name is empty for the whole file. Throws Failure: it is no object.
  Section(const json::Value& value, std::string name);

  // Where a key stands, for messages.
  std::string path(const std::string& key) const;
  // Throws Failure: what the key holds is wrong.
  [[noreturn]] void fail(const std::string& key, const std::string& why) const;

  // A key that is missing is a failure in all of these but in `find`.
  const json::Value* find(const std::string& key) const { return value_.find(key); }
  const json::Value& at(const std::string& key) const;
  bool is_null(const std::string& key) const { return at(key).is_null(); }
  bool is_text(const std::string& key) const { return at(key).as<std::string>() != nullptr; }
  std::string text(const std::string& key) const;
  std::string text_or(const std::string& key, const char* where_null) const;
  bool boolean(const std::string& key) const;
  int64_t whole(const std::string& key, int64_t smallest, int64_t largest) const;
  // A number above 0 that a 32-bit float holds.
  double positive(const std::string& key) const;

 private:
  const json::Value& value_;
  const std::string name_;
};

}  // namespace tritune
