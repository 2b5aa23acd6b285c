// thimble parity for encoders: padded rows of the reference against packed sequences.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "models/io/safetensors.h"
#include "models/transformer.h"

namespace thimble::cli {

// Whether the stored numbers are an encoder's: attention_mask, last_hidden_state or embeddings.
bool is_encoder_case(const SafetensorsFile& expected);

// Where the results go: stored() gives the values under a key and marks it compared.
struct EncoderChecks {
  std::function<std::vector<float>(const std::string& key, int64_t elements)> stored;
  std::function<void(const std::string& name, const char* metric, double value, double limit)> check;
  std::function<void(const std::string& name, const void* data, size_t bytes)> remember;
  std::function<void(const std::string& key)> used;  // an input that is not compared
  std::function<void()> gradients;                   // called after backward: the weights hold their gradients
  double atol_hidden, atol_loss;
};

// ids [n_seqs][length], padding included; masked rows are neither computed nor compared. Keys: attention_mask, token_type_ids,
// last_hidden_state, mean_pooled, embeddings (as the recipe in dir says), pooler_output, and loss = sum(embeddings * probe)
// with its gradients (wants_grads). Errors: input for masks that are not ones and then zeros.
void compare_encoder(Transformer& transformer, Context& ctx, const std::string& dir, const SafetensorsFile& expected,
                     const std::vector<int32_t>& ids, int64_t n_seqs, int64_t length, bool wants_grads, const EncoderChecks& to);

}  // namespace thimble::cli
