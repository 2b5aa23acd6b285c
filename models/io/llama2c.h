// llama2.c checkpoints, version 0: seven int32, then all weights as f32. Mapped, not copied.
// Errors: input with file and field; unsupported for the newer, versioned files.
#pragma once

#include <cstdint>
#include <string>

#include "tensor/file.h"

namespace thimble {

// Rotary pairs are interleaved (2j, 2j+1) with base 10000; RMS eps is 1e-5. Pointers live as long as the object.
struct Llama2cFile {
  explicit Llama2cFile(const std::string& path);

  int64_t dim = 0, hidden_dim = 0, n_layers = 0, n_heads = 0, n_kv_heads = 0, vocab_size = 0, max_seq_len = 0;
  bool tied = true;  // the output matrix is the token embedding
  int64_t head_dim() const { return dim / n_heads; }
  int64_t kv_dim() const { return head_dim() * n_kv_heads; }
  const std::string& path() const { return map.path(); }

  const float* token_embedding = nullptr;  // [vocab_size, dim]
  const float* rms_att = nullptr;          // [n_layers, dim]
  const float* wq = nullptr;               // [n_layers, dim, dim]
  const float* wk = nullptr;               // [n_layers, kv_dim, dim]
  const float* wv = nullptr;               // [n_layers, kv_dim, dim]
  const float* wo = nullptr;               // [n_layers, dim, dim]
  const float* rms_ffn = nullptr;          // [n_layers, dim]
  const float* w1 = nullptr;               // gate [n_layers, hidden_dim, dim]
  const float* w2 = nullptr;               // down [n_layers, dim, hidden_dim]
  const float* w3 = nullptr;               // up [n_layers, hidden_dim, dim]
  const float* rms_final = nullptr;        // [dim]
  const float* wcls = nullptr;             // [vocab_size, dim]; token_embedding when tied

  MappedFile map;
};

}  // namespace thimble
