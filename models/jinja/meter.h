// What keeps a template from a stranger in bounds: every step, byte and level of nesting of a rendering is counted here,
// and every error gets its place (file and line) from here.
#pragma once

#include <cstdint>
#include <string>

namespace thimble::jinja {

struct Limits {
  size_t template_bytes = size_t{1} << 20;
  int64_t steps = 10'000'000;               // expressions, statements, elements and characters looked at
  int64_t bytes = int64_t{256} << 20;       // of all strings and lists that a rendering makes, freed ones included
  size_t output_bytes = size_t{16} << 20;
  int depth = 600;                          // nested evaluations, of which a macro's call takes about six
};

class Meter {
 public:
  Meter(std::string name, const Limits& of) : limits(of), file(std::move(name)) {}

  // Throws Error (input): FILE:LINE: what.
  [[noreturn]] void fail(const std::string& what, const std::string& hint = {}) const;
  [[noreturn]] void fail_unsupported(const std::string& what, const std::string& hint = {}) const;
  void step(int64_t n = 1) {
    if (n > limits.steps - steps_) fail_limit("steps", limits.steps);
    steps_ += n;
  }
  // To be called before the memory is taken.
  void bytes(int64_t n) {
    if (n > limits.bytes - bytes_) fail_limit("bytes of memory", limits.bytes);
    bytes_ += n;
  }
  [[noreturn]] void fail_limit(const char* of, int64_t limit) const;

  const Limits limits;
  const std::string file;
  int line = 1;
  int depth = 0;

 private:
  int64_t steps_ = 0, bytes_ = 0;
};

// One level of nesting while it exists.
class Deeper {
 public:
  explicit Deeper(Meter& meter) : meter_(meter) {
    if (++meter_.depth > meter_.limits.depth) {
      --meter_.depth;
      meter_.fail_limit("levels of nesting", meter_.limits.depth);
    }
  }
  ~Deeper() { --meter_.depth; }
  Deeper(const Deeper&) = delete;
  Deeper& operator=(const Deeper&) = delete;

 private:
  Meter& meter_;
};

}  // namespace thimble::jinja
