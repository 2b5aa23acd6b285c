#include "models/io/llama2c.h"

#include <fmt/format.h>

#include <cstring>
#include <initializer_list>

#include "tensor/error.h"

namespace thimble {
namespace {

constexpr size_t kHeaderBytes = 7 * sizeof(int32_t);
constexpr int32_t kVersionedMagic = 0x616B3432;  // "ak42" opens versions 1 and 2

}  // namespace

Llama2cFile::Llama2cFile(const std::string& path) : map(path) {
  const auto refuse = [&](const std::string& what) {
    throw Error(ErrorCode::input, path + ": " + what, "is this a llama2.c model (version 0)? it may be incomplete");
  };
  if (map.size() < kHeaderBytes)
    refuse(fmt::format("has {} bytes, but the header alone takes {}", map.size(), kHeaderBytes));
  int32_t header[7];
  std::memcpy(header, map.read(0, kHeaderBytes).data(), kHeaderBytes);
  if (header[0] == kVersionedMagic)
    throw Error(ErrorCode::unsupported, fmt::format("{}: llama2.c file of version {}", path, header[1]),
                "export the model as version 0 or as safetensors");

  // The limits lie far above any model of this format and keep every product below 2^63.
  const auto field = [&](const char* name, int32_t value, int32_t max) {
    if (value < 1 || value > max)
      refuse(fmt::format("field \"{}\": expected an integer between 1 and {}, found {}", name, max, value));
    return int64_t{value};
  };
  dim = field("dim", header[0], 1 << 20);
  hidden_dim = field("hidden_dim", header[1], 1 << 22);
  n_layers = field("n_layers", header[2], 1 << 12);
  n_heads = field("n_heads", header[3], 1 << 12);
  n_kv_heads = field("n_kv_heads", header[4], 1 << 12);
  tied = header[5] > 0;
  if (header[5] == INT32_MIN) refuse("field \"vocab_size\": out of range");
  vocab_size = field("vocab_size", tied ? header[5] : -header[5], 1 << 24);
  max_seq_len = field("max_seq_len", header[6], 1 << 24);
  if (dim % n_heads != 0) refuse(fmt::format("field \"n_heads\": {} does not divide dim {}", n_heads, dim));
  if (head_dim() % 2 != 0) refuse(fmt::format("field \"n_heads\": the head dimension {} is odd", head_dim()));
  if (n_heads % n_kv_heads != 0)
    refuse(fmt::format("field \"n_kv_heads\": {} does not divide n_heads {}", n_kv_heads, n_heads));

  // Offsets count floats. The largest sum is below 2^57, so nothing can overflow.
  const float* base = reinterpret_cast<const float*>(map.data() + kHeaderBytes);
  int64_t at = 0;
  struct Range {
    const float** pointer;
    int64_t floats;
  };
  const int64_t table = vocab_size * dim, square = dim * dim, kv = kv_dim() * dim, ffn = hidden_dim * dim;
  const float* rotary_tables = nullptr;  // former cos and sin tables: present in the file, used by nobody
  for (const Range& r : std::initializer_list<Range>{{&token_embedding, table},
                                                     {&rms_att, n_layers * dim},
                                                     {&wq, n_layers * square},
                                                     {&wk, n_layers * kv},
                                                     {&wv, n_layers * kv},
                                                     {&wo, n_layers * square},
                                                     {&rms_ffn, n_layers * dim},
                                                     {&w1, n_layers * ffn},
                                                     {&w2, n_layers * ffn},
                                                     {&w3, n_layers * ffn},
                                                     {&rms_final, dim},
                                                     {&rotary_tables, max_seq_len * head_dim()},
                                                     {&wcls, tied ? 0 : table}}) {
    const uint64_t begin = kHeaderBytes + sizeof(float) * static_cast<uint64_t>(at);
    if (begin <= map.size()) *r.pointer = base + at;  // beyond the end no pointer may even be formed
    at += r.floats;
  }
  const uint64_t expected = kHeaderBytes + sizeof(float) * static_cast<uint64_t>(at);
  if (expected != map.size())
    refuse(
        fmt::format("the header (dim {}, hidden_dim {}, n_layers {}, n_heads {}, n_kv_heads {}, vocab_size {}, "
                    "max_seq_len {}) needs a file of {} bytes, found {}",
                    dim, hidden_dim, n_layers, n_heads, n_kv_heads, header[5], max_seq_len, expected, map.size()));
  if (tied) wcls = token_embedding;
}

}  // namespace thimble
