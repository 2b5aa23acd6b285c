// The GGUF reader. The header is copied piece by piece with pread, so that a file truncated meanwhile raises an error
// and no signal; its size is bounded by the file's, since nothing is reserved on the word of a count.
#include "models/io/gguf.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "models/io/json.h"
#include "tensor/error.h"

namespace thimble {
namespace {

constexpr const char* kDamaged = "the file is damaged or was made by a faulty writer; download or convert it again";
constexpr uint64_t kMaxString = uint64_t{1} << 30;  // ggml's limits
constexpr uint64_t kMaxArray = uint64_t{1} << 30;
constexpr size_t kMaxTensorName = 64;  // with the terminating zero of ggml's struct
constexpr uint32_t kMaxDims = 4;

constexpr const char* kTypeNames[kGgufTypes] = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                                "bool", "string", "array", "u64", "i64", "f64"};
// Bytes of one value; 0 for strings and arrays.
constexpr size_t kTypeBytes[kGgufTypes] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};

struct TypeRow {
  uint32_t number;
  GgmlTypeInfo info;
};
constexpr TypeRow kGgmlTypes[] = {
    {0, {"F32", 1, 4}},         {1, {"F16", 1, 2}},         {2, {"Q4_0", 32, 18}},      {3, {"Q4_1", 32, 20}},
    {6, {"Q5_0", 32, 22}},      {7, {"Q5_1", 32, 24}},      {8, {"Q8_0", 32, 34}},      {9, {"Q8_1", 32, 36}},
    {10, {"Q2_K", 256, 84}},    {11, {"Q3_K", 256, 110}},   {12, {"Q4_K", 256, 144}},   {13, {"Q5_K", 256, 176}},
    {14, {"Q6_K", 256, 210}},   {15, {"Q8_K", 256, 292}},   {16, {"IQ2_XXS", 256, 66}}, {17, {"IQ2_XS", 256, 74}},
    {18, {"IQ3_XXS", 256, 98}}, {19, {"IQ1_S", 256, 50}},   {20, {"IQ4_NL", 32, 18}},   {21, {"IQ3_S", 256, 110}},
    {22, {"IQ2_S", 256, 82}},   {23, {"IQ4_XS", 256, 136}}, {24, {"I8", 1, 1}},         {25, {"I16", 1, 2}},
    {26, {"I32", 1, 4}},        {27, {"I64", 1, 8}},        {28, {"F64", 1, 8}},        {29, {"IQ1_M", 256, 56}},
    {30, {"BF16", 1, 2}},       {34, {"TQ1_0", 256, 54}},   {35, {"TQ2_0", 256, 66}},   {39, {"MXFP4", 32, 17}},
};

// Forks number types of their own from here.
constexpr uint32_t kForkTypes = 97;

// Types of newer files whose blocks this reader does not know the size of.
const char* newer_type(uint32_t type) {
  return type == 40 ? "NVFP4" : type == 41 ? "Q1_0" : type == 42 ? "Q2_0" : nullptr;
}

bool is_integer(GgufType t) {
  return t != GgufType::f32 && t != GgufType::f64 && t != GgufType::boolean && t != GgufType::string &&
         t != GgufType::array;
}

template <class T>
T load(const char* at) {
  T v;
  std::memcpy(&v, at, sizeof v);
  return v;
}

}  // namespace

const char* gguf_type_name(GgufType type) { return kTypeNames[static_cast<uint32_t>(type)]; }

const GgmlTypeInfo* ggml_type_info(uint32_t type) {
  for (const TypeRow& row : kGgmlTypes)
    if (row.number == type) return &row.info;
  return nullptr;
}

int64_t GgufTensor::elements() const {
  int64_t n = 1;
  for (int64_t d : dims) n *= d;
  return n;
}

// Reads the header in order, fetching more of the file as needed.
class GgufFile::Cursor {
 public:
  explicit Cursor(GgufFile& file) : file_(file) {}

  size_t at() const { return at_; }
  uint64_t left() const { return file_.size_ - at_; }

  template <class T>
  T number(const char* what) {
    need(sizeof(T), what);
    const T v = load<T>(&file_.header_[at_]);
    at_ += sizeof(T);
    return v;
  }

  // The bytes of a string stay in the header; returns where they start.
  size_t string(const char* what, uint64_t& length) {
    length = number<uint64_t>(what);
    if (length > kMaxString) fail(fmt::format("{}: a string of {} bytes: the limit is {}", what, length, kMaxString));
    need(length, what);
    const size_t begin = at_;
    at_ += length;
    return begin;
  }

  std::string copied_string(const char* what) {
    uint64_t length = 0;
    const size_t begin = string(what, length);
    return std::string(file_.header_.data() + begin, length);
  }

  void skip(uint64_t bytes, const char* what) {
    need(bytes, what);
    at_ += bytes;
  }

  [[noreturn]] void fail(const std::string& what) const {
    throw Error(ErrorCode::input, fmt::format("{}: at byte {}: {}", file_.name_, at_, what), kDamaged);
  }

 private:
  void need(uint64_t bytes, const char* what) {
    if (bytes > left())
      fail(fmt::format("{}: {} bytes are announced, but only {} are left in the file", what, bytes, left()));
    const uint64_t end = at_ + bytes;
    std::vector<char>& have = file_.header_;
    if (end <= have.size()) return;
    const uint64_t chunk = std::max<uint64_t>(uint64_t{1} << 16, have.size());
    const uint64_t to = std::min(file_.size_, std::max(end, have.size() + chunk));
    const std::string more = file_.in_memory_ ? file_.memory_.substr(have.size(), to - have.size())
                                              : file_.map_.read(have.size(), to - have.size());
    have.insert(have.end(), more.begin(), more.end());
  }

  GgufFile& file_;
  size_t at_ = 0;
};

GgufFile::GgufFile(const std::string& path) : name_(path), map_(path) {
  size_ = map_.size();
  parse();
}

GgufFile GgufFile::from_memory(std::string bytes, const std::string& name) {
  GgufFile file;
  file.name_ = name;
  file.memory_ = std::move(bytes);
  file.in_memory_ = true;
  file.size_ = file.memory_.size();
  file.parse();
  return file;
}

bool GgufFile::present(const std::string& path) {
  if (!file_exists(path) || is_directory(path)) return false;
  const MappedFile map(path);
  return map.size() >= 4 && map.read(0, 4) == "GGUF";
}

void GgufFile::parse() {
  Cursor in(*this);
  if (size_ < 8) in.fail(fmt::format("expected a GGUF header, found a file of {} bytes", size_));
  char magic[4];
  const uint32_t word = in.number<uint32_t>("magic");
  std::memcpy(magic, &word, 4);
  if (std::memcmp(magic, "GGUF", 4) != 0)
    throw Error(ErrorCode::input,
                fmt::format("{}: expected the bytes GGUF at the start, found {}", name_, quote_for_message({magic, 4})),
                std::memcmp(magic, "ggml", 4) == 0 || std::memcmp(magic, "lmgg", 4) == 0 ||
                        std::memcmp(magic, "fmgg", 4) == 0 || std::memcmp(magic, "tjgg", 4) == 0
                    ? "this is a file from before GGUF; convert it with an old release of llama.cpp"
                    : "the file is of another format or damaged");
  version_ = in.number<uint32_t>("version");
  if (version_ != 0 && (version_ & 0xFFFFu) == 0)
    throw Error(ErrorCode::unsupported, fmt::format("{}: version {:#x}: the file is big-endian", name_, version_),
                "convert it to little-endian");
  if (version_ != 2 && version_ != 3)
    throw Error(version_ == 1 || version_ > 3 ? ErrorCode::unsupported : ErrorCode::input,
                fmt::format("{}: GGUF version {}: expected 2 or 3", name_, version_),
                version_ < 2 ? "convert it with an old release of llama.cpp" : "the file was made by a newer program");
  const auto n_tensors = in.number<int64_t>("tensor count");
  const auto n_keys = in.number<int64_t>("key count");
  // A tensor needs at least 24 bytes of header, a key 13: counts beyond that are lies.
  if (n_tensors < 0 || static_cast<uint64_t>(n_tensors) > in.left() / 24)
    in.fail(fmt::format("{} tensors are announced, but only {} bytes are left in the file", n_tensors, in.left()));
  if (n_keys < 0 || static_cast<uint64_t>(n_keys) > in.left() / 13)
    in.fail(fmt::format("{} metadata keys are announced, but only {} bytes are left in the file", n_keys, in.left()));
  parse_metadata(in, static_cast<uint64_t>(n_keys));
  if (const GgufEntry* e = find("general.alignment")) {
    if (e->type != GgufType::u32) wrong_type("general.alignment", *e, "u32");
    alignment_ = load<uint32_t>(&header_[e->offset]);
    if (alignment_ == 0 || (alignment_ & (alignment_ - 1)) != 0)
      in.fail(fmt::format("general.alignment: expected a power of two, found {}", alignment_));
  }
  if (const auto parts = get_int("split.count"); parts && *parts > 1)
    throw Error(ErrorCode::unsupported, fmt::format("{}: the model is split into {} files", name_, *parts),
                "join the parts with llama.cpp's gguf-split --merge");
  parse_tensors(in, static_cast<uint64_t>(n_tensors));
  header_.resize(std::min<size_t>(header_.size(), in.at()));
  header_.shrink_to_fit();
}

void GgufFile::parse_metadata(Cursor& in, uint64_t count) {
  for (uint64_t i = 0; i < count; ++i) {
    std::string key = in.copied_string("metadata key");
    if (key.empty()) in.fail(fmt::format("metadata key {} is empty", i));
    if (entries_.count(key)) in.fail(fmt::format("the metadata key {} stands twice", quote_for_message(key)));
    const std::string where = "metadata key " + quote_for_message(key);
    const auto type = in.number<uint32_t>(where.c_str());
    if (type >= kGgufTypes) in.fail(fmt::format("{}: unknown type {}", where, type));
    GgufEntry e;
    e.type = e.element = static_cast<GgufType>(type);
    if (e.type == GgufType::array) {
      const auto element = in.number<uint32_t>(where.c_str());
      if (element >= kGgufTypes) in.fail(fmt::format("{}: unknown element type {}", where, element));
      e.element = static_cast<GgufType>(element);
      if (e.element == GgufType::array) in.fail(where + ": nested arrays are not accepted (nor by llama.cpp)");
      e.count = in.number<uint64_t>(where.c_str());
      if (e.count > kMaxArray)
        in.fail(fmt::format("{}: an array of {} elements: the limit is {}", where, e.count, kMaxArray));
      const uint64_t least = e.element == GgufType::string ? 8 : kTypeBytes[element];
      if (e.count > in.left() / least)
        in.fail(fmt::format("{}: an array of {} elements is announced, but only {} bytes are left in the file", where,
                            e.count, in.left()));
    }
    e.offset = in.at();
    if (e.element == GgufType::string) {
      uint64_t length = 0;
      for (uint64_t j = 0; j < e.count; ++j) in.string(where.c_str(), length);
    } else {
      in.skip(e.count * kTypeBytes[static_cast<uint32_t>(e.element)], where.c_str());
    }
    e.bytes = in.at() - e.offset;
    entries_.emplace(key, e);
    keys_.push_back(std::move(key));
  }
}

void GgufFile::parse_tensors(Cursor& in, uint64_t count) {
  uint64_t expected = 0;  // the running sum of padded sizes
  for (uint64_t i = 0; i < count; ++i) {
    GgufTensor t;
    t.name = in.copied_string("tensor name");
    if (t.name.size() >= kMaxTensorName)
      in.fail(fmt::format("tensor name {}: {} bytes: the limit is {}", quote_for_message(t.name), t.name.size(),
                          kMaxTensorName - 1));
    const std::string where = "tensor " + quote_for_message(t.name);
    if (tensor_index_.count(t.name)) in.fail(where + " stands twice");
    const auto n_dims = in.number<uint32_t>(where.c_str());
    if (n_dims > kMaxDims) in.fail(fmt::format("{}: {} dimensions: the limit is {}", where, n_dims, kMaxDims));
    int64_t elements = 1;
    for (uint32_t d = 0; d < n_dims; ++d) {
      const auto dim = in.number<int64_t>(where.c_str());
      if (dim < 0) in.fail(fmt::format("{}: dimension {} is negative: {}", where, d, dim));
      if (dim > 0 && elements > std::numeric_limits<int64_t>::max() / 16 / dim)
        in.fail(fmt::format("{}: the product of its dimensions overflows", where));
      elements *= dim;
      t.dims.push_back(dim);
    }
    const auto type = in.number<uint32_t>(where.c_str());
    const GgmlTypeInfo* info = ggml_type_info(type);
    if (!info) {
      if (const char* newer = newer_type(type))
        throw Error(ErrorCode::unsupported, fmt::format("{}: {} has type {}", name_, where, newer),
                    "convert the model to another type, such as Q4_K");
      if (type >= kForkTypes)
        throw Error(ErrorCode::unsupported,
                    fmt::format("{}: {} has type {}, which no ggml release has but a fork of it", name_, where, type),
                    "convert the model to a type of llama.cpp, such as Q4_K");
      in.fail(fmt::format("{}: unknown tensor type {}", where, type));
    }
    t.type = static_cast<GgmlType>(type);
    const int64_t row = t.dims.empty() ? 1 : t.dims[0];
    if (row % info->elements != 0)
      in.fail(fmt::format("{}: rows of {} elements are no multiple of {}'s block of {}", where, row, info->name,
                          info->elements));
    t.bytes = static_cast<uint64_t>(elements / info->elements) * static_cast<uint64_t>(info->bytes);
    t.offset = in.number<uint64_t>(where.c_str());
    if (t.offset != expected)
      in.fail(fmt::format("{}: offset {}: expected {} (the end of the tensor before it)", where, t.offset, expected));
    if (t.bytes > size_) in.fail(fmt::format("{}: {} bytes are announced, but the file has {}", where, t.bytes, size_));
    const uint64_t end = t.offset + t.bytes;  // both at most the file's size
    expected = (end + alignment_ - 1) & ~(alignment_ - 1);
    if (expected > size_ + alignment_)
      in.fail(fmt::format("{}: ends at byte {} of the data, but the file has {}", where, end, size_));
    tensor_index_.emplace(t.name, tensors_.size());
    tensors_.push_back(std::move(t));
  }
  data_start_ = (in.at() + alignment_ - 1) & ~(alignment_ - 1);
  for (const GgufTensor& t : tensors_)
    if (t.bytes > 0 && (data_start_ > size_ || t.offset + t.bytes > size_ - data_start_))
      in.fail(fmt::format("tensor {}: its data ends at byte {}, but the file has {}: it is truncated",
                          quote_for_message(t.name), data_start_ + t.offset + t.bytes, size_));
}

const GgufEntry* GgufFile::find(const std::string& key) const {
  const auto it = entries_.find(key);
  return it == entries_.end() ? nullptr : &it->second;
}

void GgufFile::wrong_type(const std::string& key, const GgufEntry& entry, const char* expected) const {
  const std::string found = entry.type == GgufType::array ? std::string("an array of ") + gguf_type_name(entry.element)
                                                          : gguf_type_name(entry.type);
  throw Error(ErrorCode::input,
              fmt::format("{}: metadata key {}: expected {}, found {}", name_, quote_for_message(key), expected, found),
              kDamaged);
}

int64_t GgufFile::int_at(const std::string& key, GgufType type, size_t offset) const {
  const char* at = &header_[offset];
  switch (type) {
    case GgufType::u8:
      return load<uint8_t>(at);
    case GgufType::boolean:
      return load<uint8_t>(at) != 0;
    case GgufType::i8:
      return load<int8_t>(at);
    case GgufType::u16:
      return load<uint16_t>(at);
    case GgufType::i16:
      return load<int16_t>(at);
    case GgufType::u32:
      return load<uint32_t>(at);
    case GgufType::i32:
      return load<int32_t>(at);
    case GgufType::i64:
      return load<int64_t>(at);
    default:
      break;
  }
  const auto v = load<uint64_t>(at);
  if (v > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()))
    throw Error(ErrorCode::input, fmt::format("{}: metadata key {}: {} is too large", name_, quote_for_message(key), v),
                kDamaged);
  return static_cast<int64_t>(v);
}

std::optional<std::string> GgufFile::get_string(const std::string& key) const {
  const GgufEntry* e = find(key);
  if (!e) return std::nullopt;
  if (e->type != GgufType::string) wrong_type(key, *e, "a string");
  return std::string(header_.data() + e->offset + 8, e->bytes - 8);
}

std::optional<int64_t> GgufFile::get_int(const std::string& key) const {
  const GgufEntry* e = find(key);
  if (!e) return std::nullopt;
  if (!is_integer(e->type)) wrong_type(key, *e, "an integer");
  return int_at(key, e->type, e->offset);
}

std::optional<double> GgufFile::get_float(const std::string& key) const {
  const GgufEntry* e = find(key);
  if (!e) return std::nullopt;
  if (e->type == GgufType::f32) return load<float>(&header_[e->offset]);
  if (e->type == GgufType::f64) return load<double>(&header_[e->offset]);
  if (!is_integer(e->type)) wrong_type(key, *e, "a number");
  return static_cast<double>(int_at(key, e->type, e->offset));
}

std::optional<bool> GgufFile::get_bool(const std::string& key) const {
  const GgufEntry* e = find(key);
  if (!e) return std::nullopt;
  if (e->type != GgufType::boolean) wrong_type(key, *e, "a bool");
  return header_[e->offset] != 0;
}

int64_t GgufFile::require_int(const std::string& key, int64_t min, int64_t max) const {
  const std::optional<int64_t> v = get_int(key);
  if (!v)
    throw Error(ErrorCode::input, fmt::format("{}: metadata key {} is missing", name_, quote_for_message(key)),
                kDamaged);
  if (*v < min || *v > max)
    throw Error(ErrorCode::input,
                fmt::format("{}: metadata key {}: expected an integer between {} and {}, found {}", name_,
                            quote_for_message(key), min, max, *v),
                kDamaged);
  return *v;
}

std::string GgufFile::require_string(const std::string& key) const {
  std::optional<std::string> v = get_string(key);
  if (!v)
    throw Error(ErrorCode::input, fmt::format("{}: metadata key {} is missing", name_, quote_for_message(key)),
                kDamaged);
  return *std::move(v);
}

const GgufEntry& GgufFile::array_of(const std::string& key, const GgufEntry& entry, const char* expected) const {
  if (entry.type != GgufType::array) wrong_type(key, entry, expected);
  return entry;
}

std::vector<std::string_view> GgufFile::get_strings(const std::string& key) const {
  const GgufEntry* found = find(key);
  if (!found) return {};
  const GgufEntry& e = array_of(key, *found, "an array of strings");
  if (e.element != GgufType::string) wrong_type(key, e, "an array of strings");
  std::vector<std::string_view> out;
  out.reserve(e.count);
  const char* at = header_.data() + e.offset;
  for (uint64_t i = 0; i < e.count; ++i) {
    const auto length = load<uint64_t>(at);
    out.emplace_back(at + 8, length);
    at += 8 + length;
  }
  return out;
}

std::vector<int64_t> GgufFile::get_ints(const std::string& key) const {
  const GgufEntry* found = find(key);
  if (!found) return {};
  const GgufEntry& e = array_of(key, *found, "an array of integers");
  if (!is_integer(e.element) && e.element != GgufType::boolean) wrong_type(key, e, "an array of integers");
  std::vector<int64_t> out(e.count);
  const size_t step = kTypeBytes[static_cast<uint32_t>(e.element)];
  for (uint64_t i = 0; i < e.count; ++i) out[i] = int_at(key, e.element, e.offset + i * step);
  return out;
}

std::vector<float> GgufFile::get_floats(const std::string& key) const {
  const GgufEntry* found = find(key);
  if (!found) return {};
  const GgufEntry& e = array_of(key, *found, "an array of floats");
  std::vector<float> out(e.count);
  for (uint64_t i = 0; i < e.count; ++i) {
    if (e.element == GgufType::f32)
      out[i] = load<float>(&header_[e.offset + 4 * i]);
    else if (e.element == GgufType::f64)
      out[i] = static_cast<float>(load<double>(&header_[e.offset + 8 * i]));
    else
      wrong_type(key, e, "an array of floats");
  }
  return out;
}

const GgufTensor* GgufFile::find_tensor(const std::string& name) const {
  const auto it = tensor_index_.find(name);
  return it == tensor_index_.end() ? nullptr : &tensors_[it->second];
}

const std::byte* GgufFile::data(const GgufTensor& tensor) const {
  const std::byte* base = reinterpret_cast<const std::byte*>(memory_.data());
  if (!in_memory_) {
    map_.check_not_truncated();
    base = map_.data();
  }
  return tensor.bytes ? base + data_start_ + tensor.offset : base;
}

}  // namespace thimble
