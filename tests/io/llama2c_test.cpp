// llama2.c files: tensor places, and every field out of range.
#include "models/io/llama2c.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstring>

#include "tests/io/support.h"

namespace thimble {
namespace {

using namespace io_test;

// A file whose float number i has the value i.
std::string make_file(const std::array<int32_t, 7>& header, size_t floats) {
  std::string bytes(reinterpret_cast<const char*>(header.data()), sizeof header);
  for (size_t i = 0; i < floats; ++i) {
    const float f = static_cast<float>(i);
    bytes.append(reinterpret_cast<const char*>(&f), sizeof f);
  }
  return bytes;
}

// dim 4, hidden 6, 2 layers, 2 heads, 1 kv head (kv_dim 2), vocab 5, 3 positions.
constexpr std::array<int32_t, 7> kTied = {4, 6, 2, 2, 1, 5, 3};
constexpr size_t kFloats = 20 + 8 + 32 + 16 + 16 + 32 + 8 + 48 + 48 + 48 + 4 + 6;

TEST(Llama2c, TensorPlaces) {
  const ScratchDir dir;
  put_file(dir / "m.bin", make_file(kTied, kFloats));
  const Llama2cFile f(dir / "m.bin");
  EXPECT_EQ(f.dim, 4);
  EXPECT_EQ(f.hidden_dim, 6);
  EXPECT_EQ(f.n_layers, 2);
  EXPECT_EQ(f.n_heads, 2);
  EXPECT_EQ(f.n_kv_heads, 1);
  EXPECT_EQ(f.vocab_size, 5);
  EXPECT_EQ(f.max_seq_len, 3);
  EXPECT_EQ(f.head_dim(), 2);
  EXPECT_EQ(f.kv_dim(), 2);
  EXPECT_TRUE(f.tied);
  EXPECT_EQ(f.token_embedding[0], 0);
  EXPECT_EQ(f.rms_att[0], 20);
  EXPECT_EQ(f.wq[0], 28);
  EXPECT_EQ(f.wk[0], 60);
  EXPECT_EQ(f.wv[0], 76);
  EXPECT_EQ(f.wo[0], 92);
  EXPECT_EQ(f.rms_ffn[0], 124);
  EXPECT_EQ(f.w1[0], 132);
  EXPECT_EQ(f.w2[0], 180);
  EXPECT_EQ(f.w3[0], 228);
  EXPECT_EQ(f.rms_final[0], 276);
  EXPECT_EQ(f.wcls, f.token_embedding);

  auto untied = kTied;
  untied[5] = -5;
  put_file(dir / "u.bin", make_file(untied, kFloats + 20));
  const Llama2cFile u(dir / "u.bin");
  EXPECT_FALSE(u.tied);
  EXPECT_EQ(u.vocab_size, 5);
  EXPECT_EQ(u.wcls[0], 286);
  EXPECT_EQ(u.wcls[19], 305);
}

TEST(Llama2c, RefusesBadFields) {
  const ScratchDir dir;
  const auto refused = [&](size_t field, int32_t value, std::initializer_list<std::string> parts) {
    auto header = kTied;
    header[field] = value;
    put_file(dir / "m.bin", make_file(header, kFloats));
    SCOPED_TRACE(std::to_string(field) + " = " + std::to_string(value));
    expect_error(ErrorCode::input, parts, [&] { Llama2cFile f(dir / "m.bin"); });
  };
  const char* names[] = {"dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "max_seq_len"};
  for (size_t field = 0; field < 7; ++field)
    for (const int32_t value : {0, -1, INT32_MIN, INT32_MAX}) {
      if (field == 5 && value == -1) continue;  // one token, untied: only the size is wrong
      refused(field, value, {"m.bin", std::string("field \"") + names[field] + "\""});
    }
  refused(3, 3, {"\"n_heads\"", "does not divide dim 4"});
  refused(3, 4, {"\"n_heads\"", "head dimension 1 is odd"});
  refused(4, 3, {"\"n_kv_heads\"", "does not divide n_heads 2"});
  refused(5, -5, {"needs a file of", "found"});
  refused(2, 3, {"n_layers 3", "needs a file of", "found"});
  refused(0, 1 << 20, {"needs a file of"});
  for (const size_t floats : {kFloats - 1, kFloats + 1, size_t{0}}) {
    put_file(dir / "m.bin", make_file(kTied, floats));
    expect_error(ErrorCode::input, {"needs a file of"}, [&] { Llama2cFile f(dir / "m.bin"); });
  }
  put_file(dir / "m.bin", make_file(kTied, kFloats) + "x");
  expect_error(ErrorCode::input, {"needs a file of"}, [&] { Llama2cFile f(dir / "m.bin"); });
  put_file(dir / "m.bin", "short");
  expect_error(ErrorCode::input, {"has 5 bytes"}, [&] { Llama2cFile f(dir / "m.bin"); });
  put_file(dir / "m.bin", "");
  expect_error(ErrorCode::input, {"has 0 bytes"}, [&] { Llama2cFile f(dir / "m.bin"); });
  put_file(dir / "m.bin", make_file({0x616B3432, 1, 0, 0, 0, 0, 0}, 64));
  expect_error(ErrorCode::unsupported, {"version 1"}, [&] { Llama2cFile f(dir / "m.bin"); });
}

TEST(Llama2c, RandomHeaders) {
  const ScratchDir dir;
  Random random{11};
  const int32_t interesting[] = {0,    1,     2,       3,       4,       6,  7,  8,         64,
                                 4096, 65536, 1 << 20, 1 << 24, 1 << 30, -1, -5, INT32_MAX, INT32_MIN};
  for (int i = 0; i < 4000; ++i) {
    auto header = kTied;
    for (size_t edits = 1 + random.below(4); edits > 0; --edits)
      header[random.below(7)] = random.below(4) ? interesting[random.below(18)] : static_cast<int32_t>(random());
    put_file(dir / "m.bin", make_file(header, random.below(400)));
    try {
      const Llama2cFile f(dir / "m.bin");
      ASSERT_TRUE(std::isfinite(f.rms_final[f.dim - 1] + f.wcls[f.vocab_size * f.dim - 1]));
    } catch (const Error& e) {
      ASSERT_TRUE(e.code() == ErrorCode::input || e.code() == ErrorCode::unsupported);
    }
  }
}

TEST(Llama2c, PublishedModels) {
  struct Case {
    const char* path;
    int64_t dim, hidden, layers, heads, kv, vocab, seq;
  };
  for (const Case& c : {Case{"data/models/stories260K/stories260K.bin", 64, 172, 5, 8, 4, 512, 512},
                        Case{"data/models/babyllama_tok105/model5000.bin", 128, 352, 5, 8, 4, 105, 256}}) {
    const std::string path = shared(c.path);
    SKIP_WITHOUT(path);
    SCOPED_TRACE(path);
    const Llama2cFile f(path);
    EXPECT_EQ(f.dim, c.dim);
    EXPECT_EQ(f.hidden_dim, c.hidden);
    EXPECT_EQ(f.n_layers, c.layers);
    EXPECT_EQ(f.n_heads, c.heads);
    EXPECT_EQ(f.n_kv_heads, c.kv);
    EXPECT_EQ(f.vocab_size, c.vocab);
    EXPECT_EQ(f.max_seq_len, c.seq);
    EXPECT_TRUE(f.tied);
    // Trained RMS norm weights are of the order of 1 and matrices are centred, so a shifted layout shows.
    const auto mean = [](const float* p, int64_t n) {
      double sum = 0;
      for (int64_t i = 0; i < n; ++i) sum += p[i];
      return sum / static_cast<double>(n);
    };
    EXPECT_GT(mean(f.rms_att, c.layers * c.dim), 0.2);
    EXPECT_GT(mean(f.rms_ffn, c.layers * c.dim), 0.2);
    EXPECT_GT(mean(f.rms_final, c.dim), 0.2);
    EXPECT_LT(std::abs(mean(f.w1, c.layers * c.hidden * c.dim)), 0.05);
    EXPECT_LT(std::abs(mean(f.w3, c.layers * c.hidden * c.dim)), 0.05);
  }
}

}  // namespace
}  // namespace thimble
