#include "config.h"

#include <limits>

#include "model.h"

namespace tritune {

void not_served(const std::string& what) {
  fail_with<NotServed>(what + ": the native engine does not run such a model; it runs module by module instead");
}

Section::Section(const json::Value& value, std::string name) : value_(value), name_(std::move(name)) {
  if (value.as<json::Value::Object>() == nullptr) {
    fail_with("config.json: " + (name_.empty() ? "it" : name_) + " is no object; download or convert it again");
  }
}

std::string Section::path(const std::string& key) const {
  return "config.json: " + (name_.empty() ? key : name_ + "." + key);
}

void Section::fail(const std::string& key, const std::string& why) const {
  fail_with(path(key) + " is " + why + "; download or convert it again");
}

const json::Value& Section::at(const std::string& key) const {
  const json::Value* value = find(key);
  if (value == nullptr) fail(key, "missing");
  return *value;
}

std::string Section::text(const std::string& key) const {
  const std::string* text = at(key).as<std::string>();
  if (text == nullptr) fail(key, "no text");
  return *text;
}

std::string Section::text_or(const std::string& key, const char* where_null) const {
  return is_null(key) ? where_null : text(key);
}

bool Section::boolean(const std::string& key) const {
  const bool* boolean = at(key).as<bool>();
  if (boolean == nullptr) fail(key, "neither true nor false");
  return *boolean;
}

int64_t Section::whole(const std::string& key, int64_t smallest, int64_t largest) const {
  const int64_t* number = at(key).as<int64_t>();
  if (number == nullptr || *number < smallest || *number > largest) {
    fail(key, "no whole number from " + std::to_string(smallest) + " to " + std::to_string(largest));
  }
  return *number;
}

double Section::positive(const std::string& key) const {
  const json::Value& value = at(key);
  const double* real = value.as<double>();
  const int64_t* whole = value.as<int64_t>();
  const double number = real ? *real : whole ? static_cast<double>(*whole) : 0;
  if (!(number >= std::numeric_limits<float>::min() && number <= std::numeric_limits<float>::max())) {
    fail(key, "no positive number of 32 bits");
  }
  return number;
}

}  // namespace tritune
