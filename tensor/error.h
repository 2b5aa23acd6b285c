// The one exception of the project. Libraries throw it at boundaries (file, config, shape, budget);
// tools/cli turns the code into the exit status and prints "error: message" and "hint: hint".
#pragma once

#include <stdexcept>
#include <string>

namespace thimble {

// Values are the exit statuses of the command line.
enum class ErrorCode {
  internal = 1,     // a bug of ours
  usage = 2,        // unknown option, key or value
  input = 3,        // bad file, format or data
  budget = 4,       // RAM or disk
  unsupported = 5,  // understood, but not offered
  interrupted = 6,  // a checkpoint was written
  mismatch = 7,     // a comparison exceeded its tolerance
  partial = 8,      // finished, some cells failed
};

class Error : public std::runtime_error {
 public:
  // message: what is wrong, naming file and field, with what was expected. hint: what to do; may be empty.
  Error(ErrorCode code, const std::string& message, std::string hint = {})
      : std::runtime_error(message), code_(code), hint_(std::move(hint)) {}
  ErrorCode code() const noexcept { return code_; }
  const std::string& hint() const noexcept { return hint_; }

 private:
  ErrorCode code_;
  std::string hint_;
};

// What fn returns; its errors say `where` in front.
template <class Fn>
auto with_context(const std::string& where, Fn&& fn) {
  try {
    return fn();
  } catch (const Error& e) {
    throw Error(e.code(), where + ": " + e.what(), e.hint());
  }
}

[[noreturn]] void throw_check_failed(const char* expression, const char* file, int line);

// An assertion: its failure is our bug (exit 1), never the user's input.
#define THIMBLE_CHECK(condition) \
  ((condition) ? void(0) : ::thimble::throw_check_failed(#condition, __FILE__, __LINE__))
#ifdef NDEBUG
#define THIMBLE_DCHECK(condition) void(0)
#else
#define THIMBLE_DCHECK(condition) THIMBLE_CHECK(condition)
#endif

}  // namespace thimble
