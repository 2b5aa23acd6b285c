// What the tests of this folder share: engines, the stored reference cases, batches, scratch directories.
#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "models/generator.h"
#include "models/io/tensor_source.h"
#include "models/model.h"
#include "models/sampler.h"
#include "models/transformer.h"
#include "tensor/error.h"
#include "tensor/sha256.h"
#include "tests/scratch_dir.h"

namespace thimble::models_test {

inline std::string oracle(const std::string& name) { return std::string(THIMBLE_SOURCE_DIR) + "/tests/data/oracle/" + name; }
inline std::string case_dir(const std::string& name) { return std::string(THIMBLE_SOURCE_DIR) + "/tests/data/cases/" + name; }
inline std::string shared(const std::string& path) { return std::string(THIMBLE_SOURCE_DIR) + "/../shared/" + path; }

// Model directories below `root`, sorted.
inline std::vector<std::string> case_dirs(const std::string& root) {
  std::vector<std::string> dirs;
  if (std::filesystem::is_directory(root))
    for (const auto& entry : std::filesystem::directory_iterator(root))
      if (std::filesystem::exists(entry.path() / "expected.safetensors")) dirs.push_back(entry.path().string());
  std::sort(dirs.begin(), dirs.end());
  return dirs;
}
inline std::string base_name(const std::string& path) { return std::filesystem::path(path).filename().string(); }

// ref, avx2, avx512 and the best, as far as this machine has them.
inline std::vector<Tier> tiers() {
  std::vector<Tier> list;
  for (Tier t : {Tier::ref, Tier::avx2, Tier::avx512, best_tier()})
    if (tier_supported(t) && std::find(list.begin(), list.end(), t) == list.end()) list.push_back(t);
  return list;
}

struct Engine {
  explicit Engine(Tier tier = best_tier(), int threads = 2)
      : kernels(build_kernel_table(tier)), ctx(std::make_unique<Context>(kernels, threads, nullptr)) {}
  KernelTable kernels;
  std::unique_ptr<Context> ctx;
};

// Sequences packed without padding.
struct Rows {
  std::vector<int32_t> ids, cu = {0};
  void add(const std::vector<int32_t>& sequence) {
    ids.insert(ids.end(), sequence.begin(), sequence.end());
    cu.push_back(static_cast<int32_t>(ids.size()));
  }
  Batch batch(KvCache* cache = nullptr) const {
    Batch b;
    b.ids = ids.data();
    b.n = static_cast<int64_t>(ids.size());
    b.cu_seqlens = cu.data();
    b.n_seqs = static_cast<int64_t>(cu.size()) - 1;
    b.cache = cache;
    return b;
  }
};

// Logits of all rows, as a vector.
inline std::vector<float> logits_of(Transformer& transformer, Context& ctx, const Rows& rows, KvCache* cache = nullptr) {
  const ArenaScope scope(ctx.saved);
  const Batch batch = rows.batch(cache);
  const Var y = transformer.logits(ctx, transformer.forward(ctx, batch));
  return std::vector<float>(y.t.f32(), y.t.f32() + y.t.numel());
}

inline std::vector<int32_t> text(uint64_t seed, int64_t n, int64_t vocab) {
  Philox rng(seed, 2);
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < n; ++i) ids.push_back(static_cast<int32_t>(rng.below(static_cast<uint64_t>(vocab))));
  return ids;
}

// Of two texts that depend on the size of the vocabulary only.
inline std::vector<float> logits(Model& model, Context& ctx) {
  Rows rows;
  rows.add(text(71, 20, model.config.vocab_size));
  rows.add(text(72, 9, model.config.vocab_size));
  Transformer t(model, 32);
  return logits_of(t, ctx, rows);
}

inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

using testing::ScratchDir;

// fn throws an error with this code that names all the words.
template <class Fn>
void expect_error(ErrorCode code, const std::vector<std::string>& words, const Fn& fn) {
  try {
    fn();
    ADD_FAILURE() << "accepted, though it should name " << words.front();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), code) << e.what();
    for (const std::string& w : words)
      EXPECT_NE(std::string(e.what()).find(w), std::string::npos) << "no " << w << " in: " << e.what();
  }
}

inline nlohmann::json read_json(const std::string& path) { return nlohmann::json::parse(std::ifstream(path)); }
inline void write_json(const std::string& path, const nlohmann::json& json) { std::ofstream(path) << json.dump(1); }

// A checkpoint in memory, to be changed and written elsewhere.
struct Checkpoint {
  struct Item {
    std::string name;
    SafetensorsDtype dtype;
    std::vector<int64_t> shape;
    std::string bytes;
  };
  nlohmann::json config;
  std::vector<Item> tensors;

  static Checkpoint read(const std::string& dir) {
    Checkpoint c;
    c.config = read_json(dir + "/config.json");
    const SafetensorsSet set(dir);
    for (const std::string& name : set.names()) {
      const TensorView v = set.view(name);
      c.tensors.push_back({name, v.info->dtype, v.info->shape, std::string(reinterpret_cast<const char*>(v.data), v.info->bytes)});
    }
    return c;
  }
  Item& item(const std::string& name) {
    for (Item& i : tensors)
      if (i.name == name) return i;
    throw std::runtime_error("no tensor " + name);
  }
  void erase(const std::string& name) {
    tensors.erase(std::remove_if(tensors.begin(), tensors.end(), [&](const Item& i) { return i.name == name; }), tensors.end());
  }
  void write(const std::string& dir) const {
    write_json(dir + "/config.json", config);
    std::vector<NamedTensor> list;
    for (const Item& i : tensors) list.push_back({i.name, i.dtype, i.shape, i.bytes.data()});
    write_safetensors(dir + "/model.safetensors", list);
  }
};

}  // namespace thimble::models_test
