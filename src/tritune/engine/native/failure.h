// How the engine fails: by an exception, or, where there are none, through the host that runs it.

#pragma once

#include <algorithm>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>

namespace tritune {

// What a caller is told in one line.
struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A sound model that this engine does not run; others may.
struct NotServed : Failure {
  using Failure::Failure;
};

#if defined(__wasm__)

// Throws an error of JavaScript, which leaves the module at once: nothing that was under way is cleaned up, and its
// memory is lost until the module is.
extern "C" [[noreturn]] __attribute__((import_module("tritune"), import_name("fail"))) void tritune_host_fail(
    const char* text, size_t bytes);

template <typename Kind = Failure>
[[noreturn]] void fail_with(const std::string& what) {
  tritune_host_fail(what.data(), what.size());
}

template <typename Result, typename Work>
Result guarded(Result, char*, size_t, const Work& work) {
  return work();
}

#else

template <typename Kind = Failure>
[[noreturn]] void fail_with(const std::string& what) {
  throw Kind(what);
}

inline void tell(const char* what, char* message, size_t room) {
  if (!message || !room) return;
  const size_t length = std::min(std::strlen(what), room - 1);
  std::memcpy(message, what, length);
  message[length] = 0;
}

// What `work` returns, or `otherwise` and a message of one line.
template <typename Result, typename Work>
Result guarded(Result otherwise, char* message, size_t room, const Work& work) {
  try {
    return work();
  } catch (const std::bad_alloc&) {
    tell("not enough memory", message, room);
  } catch (const std::exception& error) {
    tell(error.what(), message, room);
  }
  return otherwise;
}

#endif

}  // namespace tritune
