// PyTorch checkpoints: containers and pickles made by hand, every refusal by its name, random damage, and a file that
// torch itself wrote.
#include "models/io/pickle.h"

#include <gtest/gtest.h>

#include <cstring>

#include "tests/io/gguf_bytes.h"
#include "tests/io/support.h"

namespace thimble {
namespace {

using namespace io_test;

// A zip container with members stored as they are.
std::string zip(const std::vector<std::pair<std::string, std::string>>& members, uint16_t method = 0) {
  std::string out, directory;
  for (const auto& member : members) {
    const std::string &name = member.first, &data = member.second;
    const auto offset = static_cast<uint32_t>(out.size());
    const auto fields = [&](std::string& to) {
      put<uint16_t>(to, 0);  // flags
      put(to, method);
      put<uint32_t>(to, 0);  // time
      put<uint32_t>(to, 0);  // crc
      put(to, static_cast<uint32_t>(data.size()));
      put(to, static_cast<uint32_t>(data.size()));
      put(to, static_cast<uint16_t>(name.size()));
    };
    out += "PK\x03\x04";
    put<uint16_t>(out, 20);
    fields(out);
    put<uint16_t>(out, 3);  // an extra field
    out += name + "xyz" + data;
    directory += "PK\x01\x02";
    put<uint32_t>(directory, 20);
    fields(directory);
    put<uint16_t>(directory, 0);
    put<uint16_t>(directory, 0);
    put<uint64_t>(directory, 0);
    put(directory, offset);
    directory += name;
  }
  const auto at = static_cast<uint32_t>(out.size());
  out += directory + "PK\x05\x06";
  put<uint32_t>(out, 0);
  put(out, static_cast<uint16_t>(members.size()));
  put(out, static_cast<uint16_t>(members.size()));
  put(out, static_cast<uint32_t>(directory.size()));
  put(out, at);
  put<uint16_t>(out, 0);
  return out;
}

std::string text(const std::string& s) {
  std::string out = "X";
  put(out, static_cast<uint32_t>(s.size()));
  return out + s;
}
std::string integer(int32_t v) {
  std::string out = "J";
  put(out, v);
  return out;
}
std::string tuple(const std::vector<int32_t>& v) {
  std::string out = "(";
  for (int32_t x : v) out += integer(x);
  return out + "t";
}
std::string global(const std::string& module, const std::string& name) { return "c" + module + "\n" + name + "\n"; }

std::string tensor(const std::string& type, const std::string& key, int32_t numel, int32_t offset,
                   const std::vector<int32_t>& shape, const std::vector<int32_t>& strides) {
  return global("torch._utils", "_rebuild_tensor_v2") + "((" + text("storage") + global("torch", type) + text(key) +
         text("cpu") + integer(numel) + "tQ" + integer(offset) + tuple(shape) + tuple(strides) + "\x89" +
         global("collections", "OrderedDict") + ")RtR";
}

std::string dict(const std::vector<std::pair<std::string, std::string>>& items) {
  std::string out = "}(";
  for (const auto& [key, value] : items) out += text(key) + value;
  return out + "u";
}
std::string finish(const std::string& body) { return "\x80\x02" + body + "."; }

std::string floats(const std::vector<float>& v) {
  std::string out;
  for (float x : v) put(out, x);
  return out;
}

PickleFile open(const std::string& body,
                std::vector<std::pair<std::string, std::string>> storages = {{"0", floats({0, 1, 2, 3, 4, 5})}}) {
  std::vector<std::pair<std::string, std::string>> members = {{"m/data.pkl", finish(body)}, {"m/byteorder", "little"}};
  for (auto& [key, data] : storages) members.emplace_back("m/data/" + key, data);
  return PickleFile(zip(members), "x.bin");
}

std::vector<float> read(const PickleFile& f, const std::string& name) {
  const TensorView v = f.find_view(name);
  std::vector<float> out(v ? static_cast<size_t>(v.info->elements()) : 0);
  if (v) v.read_f32(out.data());
  return out;
}

TEST(Pickle, ReadsTensorsWithStridesAndSharedStorages) {
  const PickleFile f = open(dict({{"whole", tensor("FloatStorage", "0", 6, 0, {2, 3}, {3, 1})},
                                  {"turned", tensor("FloatStorage", "0", 6, 0, {3, 2}, {1, 3})},
                                  {"part", tensor("FloatStorage", "0", 6, 2, {2}, {3})},
                                  {"scalar", tensor("FloatStorage", "0", 6, 4, {}, {})},
                                  {"empty", tensor("FloatStorage", "0", 6, 0, {0, 3}, {3, 1})},
                                  {"one", tensor("FloatStorage", "0", 6, 5, {1, 1}, {9, 9})},
                                  {"bf16", tensor("BFloat16Storage", "0", 12, 3, {1}, {1})}}));
  EXPECT_EQ(f.tensors().size(), 7u);
  EXPECT_EQ(read(f, "whole"), (std::vector<float>{0, 1, 2, 3, 4, 5}));
  EXPECT_EQ(read(f, "turned"), (std::vector<float>{0, 3, 1, 4, 2, 5}));
  EXPECT_EQ(f.find_view("turned").info->shape, (std::vector<int64_t>{3, 2}));
  EXPECT_EQ(read(f, "part"), (std::vector<float>{2, 5}));
  EXPECT_EQ(read(f, "scalar"), (std::vector<float>{4}));
  EXPECT_TRUE(f.find_view("empty"));
  EXPECT_EQ(read(f, "one"), (std::vector<float>{5}));
  EXPECT_EQ(read(f, "bf16"), (std::vector<float>{1.0f}));  // the upper half of the float 1
  EXPECT_FALSE(f.find_view("absent"));
  EXPECT_EQ(f.find_view("whole").data, f.find_view("scalar").data - 16);
}

TEST(Pickle, ReadsParametersMetadataAndTrainingCheckpoints) {
  const std::string t = tensor("FloatStorage", "0", 6, 0, {2}, {1});
  const std::string parameter =
      global("torch._utils", "_rebuild_parameter") + "(" + t + "\x88" + global("collections", "OrderedDict") + ")RtR";
  // An OrderedDict with _metadata set on it, under "state_dict" of a checkpoint.
  const std::string state =
      global("collections", "OrderedDict") + ")R(" + text("w") + parameter + "u}(" + text("_metadata") + "Nub";
  const PickleFile f = open(dict({{"epoch", integer(3)}, {"state_dict", state}}));
  EXPECT_EQ(read(f, "w"), (std::vector<float>{0, 1}));
}

void refused(ErrorCode code, std::initializer_list<std::string> parts, const std::string& body) {
  expect_error(code, parts, [&] { open(body); });
}

TEST(Pickle, RunsNothingAndRefusesByName) {
  const ErrorCode named = ErrorCode::unsupported, input = ErrorCode::input;
  refused(named, {"x.bin", "posix.system", "nothing is run", "safetensors"},
          global("posix", "system") + "(" + text("touch x") + "tR");
  refused(named, {"builtins.eval"}, text("builtins") + text("eval") + "\x93(" + text("1") + "tR");
  refused(named, {"torch._utils._rebuild_qtensor"}, dict({{"w", global("torch._utils", "_rebuild_qtensor") + "(tR"}}));
  refused(named, {"torch.QInt8Storage"}, dict({{"w", tensor("QInt8Storage", "0", 6, 0, {2}, {1})}}));
  refused(named, {"a call of", "torch.FloatStorage"}, global("torch", "FloatStorage") + ")R");
  refused(named, {"opcode 0x69"}, "i");
  refused(named, {"state on something else"}, "]}b");
  refused(input, {"no state dict"}, "]");
  refused(input, {"no state dict"}, dict({{"a", integer(1)}}));
  refused(input, {"\"a\"", "no tensor"}, dict({{"a", integer(1)}, {"w", tensor("FloatStorage", "0", 6, 0, {2}, {1})}}));
  refused(input, {"storage", "\"9\"", "missing"}, dict({{"w", tensor("FloatStorage", "9", 6, 0, {2}, {1})}}));
  refused(input, {"its storage has 24 bytes"}, dict({{"w", tensor("FloatStorage", "0", 7, 0, {2}, {1})}}));
  refused(input, {"beyond the end of its storage"}, dict({{"w", tensor("FloatStorage", "0", 6, 5, {2}, {1})}}));
  refused(input, {"beyond the end of its storage"}, dict({{"w", tensor("FloatStorage", "0", 6, 0, {3, 2}, {3, 1})}}));
  refused(input, {"beyond the end of its storage"}, dict({{"w", tensor("FloatStorage", "0", 6, -1, {2}, {1})}}));
  refused(input, {"negative"}, dict({{"w", tensor("FloatStorage", "0", 6, 0, {-2}, {1})}}));
  refused(input, {"more elements than its storage"},
          dict({{"w", tensor("FloatStorage", "0", 6, 0, {1000, 1000, 1000}, {0, 0, 0})}}));
  refused(input, {"other dimensions than strides"}, dict({{"w", tensor("FloatStorage", "0", 6, 0, {2}, {1, 1})}}));
  refused(input, {"stack is empty"}, "0");
  refused(input, {"no mark"}, "t");
  refused(input, {"memo 3 is empty"}, "h\x03");
  refused(input, {"announced"}, "X\xff\xff\xff\x7f");
  refused(input, {"without an end"}, "cposix");
  expect_error(input, {"no data.pkl"}, [] { PickleFile(zip({{"m/x", "y"}}), "x"); });
  expect_error(named, {"TorchScript"}, [] { PickleFile(zip({{"m/constants.pkl", "y"}}), "x"); });
  expect_error(named, {"\"m/data.pkl\"", "compressed"}, [] { PickleFile(zip({{"m/data.pkl", "y"}}, 8), "x"); });
  expect_error(named, {"before version 1.6"}, [] { PickleFile("\x80\x02\x8a\x0al\xfc\x9c", "x"); });
  expect_error(input, {"expected a zip container"}, [] { PickleFile("hello", "x"); });
  expect_error(named, {"big-endian"}, [] {
    PickleFile(zip({{"m/data.pkl", finish("}")}, {"m/byteorder", "big"}}), "x");
  });
  expect_error(input, {"stands twice"}, [] { PickleFile(zip({{"m/data.pkl", "y"}, {"m/data.pkl", "y"}}), "x"); });
}

TEST(Pickle, RandomDamageNeverCrashes) {
  const std::string body = dict({{"whole", tensor("FloatStorage", "0", 6, 0, {2, 3}, {3, 1})},
                                 {"turned", tensor("HalfStorage", "1", 6, 0, {3, 2}, {1, 3})}});
  const std::string good =
      zip({{"m/data.pkl", finish(body)}, {"m/data/0", floats({0, 1, 2, 3, 4, 5})}, {"m/data/1", floats({0, 1, 2})}});
  Random random{11};
  int accepted = 0;
  for (int i = 0; i < 30000; ++i) {
    try {
      const PickleFile f(mutate(good, random, good.size()), "x");
      for (const auto& [name, t] : f.tensors()) {
        std::vector<float> out(static_cast<size_t>(t.info.elements()));
        f.find_view(name).read_f32(out.data());
      }
      ++accepted;
    } catch (const Error& e) {
      EXPECT_NE(e.code(), ErrorCode::internal) << e.what();
    }
  }
  EXPECT_GT(accepted, 0);
}

TEST(Pickle, ReadsShards) {
  const testing::ScratchDir dir;
  const auto shard = [&](const std::string& file, const std::string& name) {
    put_file(dir.path() + "/" + file,
             zip({{"m/data.pkl", finish(dict({{name, tensor("FloatStorage", "0", 6, 0, {6}, {1})}}))},
                  {"m/data/0", floats({0, 1, 2, 3, 4, 5})}}));
  };
  shard("pytorch_model-1.bin", "a");
  shard("pytorch_model-2.bin", "b");
  const std::string index = dir.path() + "/pytorch_model.bin.index.json";
  put_file(index, R"({"weight_map": {"a": "pytorch_model-1.bin", "b": "pytorch_model-2.bin"}})");
  ASSERT_TRUE(PickleSet::present(dir.path()));
  const PickleSet set(dir.path());
  EXPECT_EQ(set.names(), (std::vector<std::string>{"a", "b"}));
  EXPECT_TRUE(set.has("b"));
  put_file(index, R"({"weight_map": {"a": "pytorch_model-2.bin", "b": "pytorch_model-2.bin"}})");
  expect_error(ErrorCode::input, {"tensor"}, [&] { PickleSet{dir.path()}; });
  put_file(index, R"({"weight_map": {"a": "../pytorch_model-1.bin", "b": "pytorch_model-2.bin"}})");
  expect_error(ErrorCode::input, {"plain file name"}, [&] { PickleSet{dir.path()}; });
}

TEST(Pickle, EqualsTheSafetensorsOfTheSameModel) {
  const std::string pickled = shared("oracle/hf/llama_gqa_untied_ptbin"), plain = shared("oracle/hf/llama_gqa_untied");
  SKIP_WITHOUT(pickled);
  const PickleSet a(pickled);
  const SafetensorsSet b(plain);
  ASSERT_EQ(a.names(), b.names());
  for (const std::string& name : a.names()) {
    const TensorView x = a.view(name), y = b.view(name);
    ASSERT_EQ(x.info->shape, y.info->shape);
    ASSERT_EQ(x.info->bytes, y.info->bytes);
    EXPECT_EQ(std::memcmp(x.data, y.data, x.info->bytes), 0) << name;
  }
}

}  // namespace
}  // namespace thimble
