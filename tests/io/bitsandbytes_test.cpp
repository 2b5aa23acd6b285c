// bitsandbytes: NF4 and FP4 by hand and against doubles, nested block scales, int8 rows, and what is refused.
#include "models/io/bitsandbytes.h"

#include <gtest/gtest.h>

#include "tests/io/coded.h"

namespace thimble {
namespace {

using namespace io_test;

constexpr const char* kConfig4 =
    R"({"quant_method":"bitsandbytes","load_in_4bit":true,"bnb_4bit_quant_type":"nf4","bnb_4bit_compute_dtype":"bfloat16"})";
constexpr const char* kConfig8 = R"({"quant_method":"bitsandbytes","load_in_8bit":true})";

const std::vector<float> kNf4 = {-1.0f,
                                 -0.6961928009986877f,
                                 -0.5250730514526367f,
                                 -0.39491748809814453f,
                                 -0.28444138169288635f,
                                 -0.18477343022823334f,
                                 -0.09105003625154495f,
                                 0.0f,
                                 0.07958029955625534f,
                                 0.16093020141124725f,
                                 0.24611230194568634f,
                                 0.33791524171829224f,
                                 0.44070982933044434f,
                                 0.5626170039176941f,
                                 0.7229568362236023f,
                                 1.0f};

struct Four {
  int64_t out = 6, in = 44, block = 64;  // blocks run over the ends of rows, and the last one is short
  std::string dtype = "bfloat16", type = "nf4";
  bool nested = false;
  std::vector<double> absmax, weights;
  Tensors tensors;

  Four(const std::string& result, bool nest, int64_t block_size, const std::string& quant_type = "nf4")
      : block(block_size), dtype(result), type(quant_type), nested(nest) {
    Random random{static_cast<uint64_t>(block_size)};
    const int64_t n = out * in, blocks = (n + block - 1) / block;
    std::vector<float> book = kNf4;
    if (type == "fp4")
      book = {0, 0.0052083333f,  0.6666667f,  1,  0.33333333f,  0.5f,  0.16666667f,  0.25f,
              0, -0.0052083333f, -0.6666667f, -1, -0.33333333f, -0.5f, -0.16666667f, -0.25f};
    nlohmann::json state = {{"quant_type", type}, {"blocksize", block}, {"dtype", dtype}, {"shape", {out, in}}};
    if (nested) {
      const float offset = 0.78125f;
      std::vector<uint8_t> codes;
      std::vector<float> map, outer;
      for (int k = 0; k < 256; ++k) map.push_back(static_cast<float>(k - 128) / 131.0f);
      for (int64_t b = 0; b < (blocks + 3) / 4; ++b) outer.push_back(0.3f + 0.1f * static_cast<float>(b));
      for (int64_t b = 0; b < blocks; ++b) {
        codes.push_back(static_cast<uint8_t>(random.below(256)));
        const auto product = static_cast<float>(double(map[codes.back()]) * double(outer[static_cast<size_t>(b / 4)]));
        absmax.push_back(static_cast<float>(double(product) + double(offset)));
      }
      tensors.add("l.weight.absmax", SafetensorsDtype::u8, {blocks}, codes);
      tensors.add("l.weight.nested_absmax", SafetensorsDtype::f32, {static_cast<int64_t>(outer.size())}, outer);
      tensors.add("l.weight.nested_quant_map", SafetensorsDtype::f32, {256}, map);
      state["nested_blocksize"] = 4;
      state["nested_dtype"] = "float32";
      state["nested_offset"] = offset;
    } else {
      std::vector<float> values;
      for (int64_t b = 0; b < blocks; ++b) {
        values.push_back(0.7f + 0.013f * static_cast<float>(b));
        absmax.push_back(double(values.back()));
      }
      tensors.add("l.weight.absmax", SafetensorsDtype::f32, {blocks}, values);
    }
    std::vector<uint8_t> bytes(static_cast<size_t>((n + 1) / 2));
    for (int64_t i = 0; i < n; ++i) {
      const size_t code = random.below(16);
      bytes[static_cast<size_t>(i / 2)] =
          static_cast<uint8_t>(bytes[static_cast<size_t>(i / 2)] | code << (i % 2 ? 0 : 4));
      const double value = static_cast<float>(double(book[code]) * absmax[static_cast<size_t>(i / block)]);
      weights.push_back(dtype == "float32"   ? value
                        : dtype == "float16" ? from_small(to_f16(value), 10, 5)
                                             : from_small(to_bf16(value), 7, 8));
    }
    tensors.add("l.weight", SafetensorsDtype::u8, {static_cast<int64_t>(bytes.size()), 1}, bytes);
    tensors.add("l.weight.quant_map", SafetensorsDtype::f32, {16}, book);
    set_state(state.dump());
  }
  void set_state(const std::string& json) {
    tensors.remove("l.weight.quant_state.bitsandbytes__" + type);
    tensors.add("l.weight.quant_state.bitsandbytes__" + type, SafetensorsDtype::u8, {static_cast<int64_t>(json.size())},
                std::vector<uint8_t>(json.begin(), json.end()));
  }
};

TEST(Bitsandbytes, HandExample) {
  // 0x0F: the first element is code 0 (-1), the second code 15 (1); 0x70 is 0 and -1. Times 2 and 3.
  Tensors t;
  t.add("l.weight", SafetensorsDtype::u8, {2, 1}, std::vector<uint8_t>{0x0F, 0x70});
  t.add("l.weight.absmax", SafetensorsDtype::f32, {2}, std::vector<float>{2, 3});
  t.add("l.weight.quant_map", SafetensorsDtype::f32, {16}, kNf4);
  const std::string state = R"({"quant_type":"nf4","blocksize":2,"dtype":"float32","shape":[2,2]})";
  t.add("l.weight.quant_state.bitsandbytes__nf4", SafetensorsDtype::u8, {static_cast<int64_t>(state.size())},
        std::vector<uint8_t>(state.begin(), state.end()));
  const CodedLinear l = Checkpoint(kConfig4, t).source->read("l");
  EXPECT_EQ(l.dense_format, WeightFormat::f32);
  expect_weights(l, 2, 2, {-2, 2, 0, -3});
}

TEST(Bitsandbytes, BlocksAgainstDoubles) {
  for (const std::string dtype : {"float32", "float16", "bfloat16"})
    for (const bool nested : {false, true})
      for (const std::string type : {"nf4", "fp4"}) {
        SCOPED_TRACE(dtype + type + (nested ? " nested" : ""));
        const Four f(dtype, nested, nested ? 16 : 64, type);
        const Checkpoint c(kConfig4, f.tensors);
        ASSERT_TRUE(c.source->has("l"));
        EXPECT_FALSE(c.source->has("m"));
        const CodedLinear l = c.source->read("l");
        EXPECT_EQ(l.dense_format, dtype == "float32"   ? WeightFormat::f32
                                  : dtype == "float16" ? WeightFormat::f16
                                                       : WeightFormat::bf16);
        expect_weights(l, f.out, f.in, f.weights);
        // Every tensor of the module is accounted for.
        const std::vector<std::string> used = c.source->tensors("l");
        for (const std::string& name : c.set->names())
          EXPECT_NE(std::find(used.begin(), used.end(), name), used.end()) << name;
      }
  // The bytes may be stored as another dtype.
  Four f("float32", false, 64);
  f.tensors.at("l.weight").dtype = SafetensorsDtype::bf16;
  f.tensors.at("l.weight").shape = {66, 1};
  expect_weights(Checkpoint(kConfig4, f.tensors).source->read("l"), f.out, f.in, f.weights);
}

TEST(Bitsandbytes, Int8Rows) {
  Tensors t;
  std::vector<double> want;
  std::vector<int8_t> codes;
  const std::vector<float> absmax = {12.7f, 0.5f, 3.0f};
  Random random{3};
  for (size_t o = 0; o < 3; ++o)
    for (size_t i = 0; i < 40; ++i) {
      codes.push_back(static_cast<int8_t>(i == 0 ? -128 : i == 1 ? 127 : static_cast<int>(random.below(256)) - 128));
      want.push_back(double(static_cast<float>(double(absmax[o]) / 127.0)) * codes.back());
    }
  t.add("l.weight", SafetensorsDtype::i8, {3, 40}, codes);
  t.add("l.SCB", SafetensorsDtype::f32, {3}, absmax);
  t.add("l.weight_format", SafetensorsDtype::u8, {}, std::vector<uint8_t>{0});
  const Checkpoint c(kConfig8, t);
  const CodedLinear l = c.source->read("l");
  EXPECT_EQ(l.bits, 8);
  EXPECT_EQ(l.groups, 1);
  EXPECT_EQ(l.zero, 128);
  expect_weights(l, 3, 40, want);
  EXPECT_EQ(c.source->description(), "bitsandbytes int8 row");
  ASSERT_EQ(c.source->warnings().size(), 1u);
  Tensors columns = t;
  columns.at("l.weight_format").bytes[0] = 2;
  expect_refused(ErrorCode::unsupported, {"l.weight_format", "layout 2"}, kConfig8, columns);
  columns = t;
  columns.at("l.SCB").shape = {1, 3};
  EXPECT_NO_THROW(Checkpoint(kConfig8, columns).source->read("l"));
  columns.remove("l.SCB");
  columns.add("l.SCB", SafetensorsDtype::f32, {4}, std::vector<float>(4));
  expect_refused(ErrorCode::input, {"l.SCB", "expected F32 [3]"}, kConfig8, columns);
  columns = t;
  columns.at("l.weight").shape = {120};
  expect_refused(ErrorCode::input, {"l.weight", "expected I8 [out, in]"}, kConfig8, columns);
}

TEST(Bitsandbytes, StatesThatLie) {
  const auto refused = [](const std::string& state, ErrorCode code, std::initializer_list<std::string> parts) {
    Four f("bfloat16", false, 64);
    f.set_state(state);
    expect_refused(code, parts, kConfig4, f.tensors);
  };
  refused(R"({"blocksize":64,"dtype":"bfloat16","shape":[6,45]})", ErrorCode::input, {"l.weight", "135 bytes"});
  refused(R"({"blocksize":64,"dtype":"bfloat16","shape":[2147483647,2147483647]})", ErrorCode::input,
          {"l.weight", "bytes of"});
  refused(R"({"blocksize":64,"dtype":"bfloat16","shape":[0,44]})", ErrorCode::input, {"shape"});
  refused(R"({"blocksize":64,"dtype":"bfloat16","shape":[264]})", ErrorCode::input, {"shape"});
  refused(R"({"blocksize":0,"dtype":"bfloat16","shape":[6,44]})", ErrorCode::input, {"blocksize"});
  refused(R"({"blocksize":32,"dtype":"bfloat16","shape":[6,44]})", ErrorCode::input, {"l.weight.absmax", "[9]"});
  refused(R"({"blocksize":64,"dtype":"float8","shape":[6,44]})", ErrorCode::unsupported,
          {"quant_state", "dtype", "float8"});
  refused("{", ErrorCode::input, {"quant_state.bitsandbytes__nf4"});
  refused(R"({"blocksize":64,"dtype":"bfloat16","shape":[6,44],"nested_blocksize":256})", ErrorCode::input,
          {"l.weight.absmax", "U8"});
  Four lost("bfloat16", true, 16);
  lost.tensors.remove("l.weight.nested_quant_map");
  expect_refused(ErrorCode::input, {"l.weight.nested_quant_map", "missing"}, kConfig4, lost.tensors);
}

TEST(Bitsandbytes, DamagedCheckpoints) {
  damage(kConfig4, Four("bfloat16", true, 16).tensors, 3000);
  damage(kConfig4, Four("float16", false, 64).tensors, 2000);
}

TEST(Quantization, MethodsThatNobodyReads) {
  const Tensors t = Four("float32", false, 64).tensors;
  for (const std::string method : {"hqq", "fp8", "aqlm", "quanto", "torchao", "marlin", "exl2", "mxfp4"})
    expect_refused(ErrorCode::unsupported, {"config.json", "\"" + method + "\"", "supported: gptq, awq"},
                   R"({"quant_method":")" + method + "\"}", t);
}

}  // namespace
}  // namespace thimble
