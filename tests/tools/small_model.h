// A tiny random Llama with its tokenizer, as files, and the assertions that the tests of this folder share.
#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "models/io/safetensors.h"
#include "models/tokenizer/bpe_trainer.h"
#include "models/tokenizer/tokenizer.h"
#include "tests/scratch_dir.h"
#include "tests/tools/run_command.h"

namespace thimble::tools_test {

using testing::ScratchDir;

inline void put_file(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

inline std::string get_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream out;
  out << in.rdbuf();
  return out.str();
}

inline std::string shared(const std::string& path) { return std::string(THIMBLE_SOURCE_DIR) + "/../shared/" + path; }

#define SKIP_WITHOUT(path) \
  if (!std::filesystem::exists(path)) GTEST_SKIP() << "not here: " << (path)

inline const std::string& sample_text() {
  static const std::string text = [] {
    std::string t;
    for (int i = 0; i < 12; ++i)
      t += "Once upon a time there was a small red boat. It sailed " + std::to_string(i * 37 % 29) +
           " days over the blue sea, and a gull sat on its mast.\nThe gull said: do you know the way home? The boat did not "
           "know, but it sailed on. Caf\xC3\xA9, na\xC3\xAFve.\n";
    return t;
  }();
  return text;
}

inline Tokenizer sample_tokenizer() {
  BpeTrainerOptions options;
  options.vocab_size = 400;
  return train_bpe(sample_text(), options);
}

struct SmallModel {
  int64_t vocab = 0;  // 0: the tokenizer's
  int64_t hidden = 32, inter = 48, layers = 2, heads = 4, kv_heads = 2, positions = 64;
  bool uniform = false;  // the head is zero: every token is equally probable
};

inline nlohmann::json small_config(const SmallModel& m) {
  return {{"model_type", "llama"},       {"vocab_size", m.vocab},          {"hidden_size", m.hidden},
          {"intermediate_size", m.inter}, {"num_hidden_layers", m.layers},  {"num_attention_heads", m.heads},
          {"num_key_value_heads", m.kv_heads}, {"max_position_embeddings", m.positions}, {"rms_norm_eps", 1e-5},
          {"hidden_act", "silu"},        {"tie_word_embeddings", false},   {"bos_token_id", 1},
          {"eos_token_id", 2}};
}

// Writes config.json, model.safetensors and the tokenizer into dir.
inline void write_small_model(const std::string& dir, SmallModel m = {}) {
  const Tokenizer tokenizer = sample_tokenizer();
  tokenizer.save(dir);
  if (m.vocab == 0) m.vocab = tokenizer.vocab_size();
  put_file(dir + "/config.json", small_config(m).dump(1));
  uint64_t state = 7;
  // splitmix64, as uniform values of the given spread.
  const auto random = [&](double spread) {
    uint64_t z = state += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    z ^= z >> 31;
    return static_cast<float>((double(z >> 11) / double(uint64_t{1} << 53) * 2 - 1) * spread);
  };
  std::vector<std::pair<std::string, std::vector<int64_t>>> shapes = {
      {"model.embed_tokens.weight", {m.vocab, m.hidden}}, {"model.norm.weight", {m.hidden}}, {"lm_head.weight", {m.vocab, m.hidden}}};
  const int64_t kv = m.hidden / m.heads * m.kv_heads;
  for (int64_t l = 0; l < m.layers; ++l) {
    const std::string p = "model.layers." + std::to_string(l) + ".";
    shapes.insert(shapes.end(), {{p + "input_layernorm.weight", {m.hidden}},
                                 {p + "self_attn.q_proj.weight", {m.hidden, m.hidden}},
                                 {p + "self_attn.k_proj.weight", {kv, m.hidden}},
                                 {p + "self_attn.v_proj.weight", {kv, m.hidden}},
                                 {p + "self_attn.o_proj.weight", {m.hidden, m.hidden}},
                                 {p + "post_attention_layernorm.weight", {m.hidden}},
                                 {p + "mlp.gate_proj.weight", {m.inter, m.hidden}},
                                 {p + "mlp.up_proj.weight", {m.inter, m.hidden}},
                                 {p + "mlp.down_proj.weight", {m.hidden, m.inter}}});
  }
  std::vector<std::vector<float>> data;
  for (const auto& [name, shape] : shapes) {
    size_t n = 1;
    for (int64_t d : shape) n *= static_cast<size_t>(d);
    std::vector<float> values(n);
    const bool norm = shape.size() == 1;
    for (float& v : values) v = norm ? 1 + random(0.2) : random(0.4);
    if (m.uniform && name == "lm_head.weight") std::fill(values.begin(), values.end(), 0.0f);
    data.push_back(std::move(values));
  }
  std::vector<NamedTensor> tensors;
  for (size_t i = 0; i < shapes.size(); ++i)
    tensors.push_back({shapes[i].first, SafetensorsDtype::f32, shapes[i].second, data[i].data()});
  write_safetensors(dir + "/model.safetensors", tensors, {{"format", "pt"}});
}

// The status, words that the message must hold, and never a signal.
inline void expect_failure(const RunResult& r, int status, const std::vector<std::string>& words) {
  EXPECT_EQ(r.signal, 0);
  EXPECT_FALSE(r.timed_out);
  EXPECT_EQ(r.status, status) << r.err;
  EXPECT_EQ(r.err.compare(0, 7, "error: "), 0) << r.err;
  for (const std::string& word : words) EXPECT_NE(r.err.find(word), std::string::npos) << "missing \"" << word << "\" in: " << r.err;
}

// Standard output is one JSON object with this schema; returns it.
inline nlohmann::json expect_json(const RunResult& r, const std::string& schema) {
  EXPECT_EQ(r.signal, 0);
  EXPECT_EQ(r.status, 0) << r.err;
  nlohmann::json j = nlohmann::json::parse(r.out, nullptr, false);  // refuses anything behind the value
  EXPECT_TRUE(j.is_object()) << r.out;
  if (!j.is_object()) return nlohmann::json::object();
  EXPECT_EQ(j.value("schema", ""), schema);
  return j;
}

}  // namespace thimble::tools_test
