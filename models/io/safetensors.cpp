// The reader half of safetensors.h. The header is read with SAX events into a state machine instead of a JSON tree:
// memory stays proportional to the number of tensors, whatever the header nests, and nothing unexpected is skipped.
#include "models/io/tensor_source.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <set>
#include <unordered_set>

#include "models/io/half.h"
#include "models/io/json.h"
#include "models/io/shards.h"
#include "tensor/error.h"

namespace thimble {
namespace {

struct DtypeRow {
  const char* name;
  int bits;
};
constexpr DtypeRow kDtypes[] = {
    {"BOOL", 8},    {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6},     {"U8", 8},          {"I8", 8},
    {"F8_E4M3", 8}, {"F8_E5M2", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"I16", 16},
    {"U16", 16},    {"F16", 16},    {"BF16", 16},   {"I32", 32},        {"U32", 32},        {"F32", 32},
    {"C64", 64},    {"F64", 64},    {"I64", 64},    {"U64", 64},
};
static_assert(sizeof kDtypes / sizeof kDtypes[0] == kSafetensorsDtypes);

constexpr const char* kDamaged = "the file is damaged or was made by a faulty writer; download or convert it again";

[[noreturn]] void refuse(const std::string& file, const std::string& what, const char* hint = kDamaged) {
  throw Error(ErrorCode::input, file + ": " + what, hint);
}

// The handler of SAX events: `expect_` is the whole state, since the grammar of a header is flat.
class HeaderParser {
 public:
  HeaderParser(std::string_view text, const std::string& file) : text_(text), file_(file) {}

  bool null() { return unexpected("null"); }
  bool boolean(bool) { return unexpected("true or false"); }
  bool number_integer(int64_t v) { return unexpected(std::to_string(v)); }
  bool number_float(double, const std::string& s) { return unexpected(s); }
  bool binary(nlohmann::json::binary_t&) { return unexpected("binary"); }

  bool number_unsigned(uint64_t v) {
    if (expect_ == Expect::dim) {
      if (v > static_cast<uint64_t>(INT64_MAX)) fail(fmt::format("{}: field shape: {} is too large", subject(), v));
      if (tensor_.shape.size() == kSafetensorsMaxRank)
        fail(fmt::format("{}: field shape: more than {} dimensions", subject(), kSafetensorsMaxRank));
      tensor_.shape.push_back(static_cast<int64_t>(v));
      return true;
    }
    if (expect_ == Expect::offset) {
      if (n_offsets_ == 2) fail(subject() + ": field data_offsets: expected two numbers, found more");
      offsets_[n_offsets_++] = v;
      return true;
    }
    return unexpected(std::to_string(v));
  }

  bool string(std::string& v) {
    if (expect_ == Expect::metadata_value) {
      header_.metadata[key_] = v;
      expect_ = Expect::metadata_key;
      return true;
    }
    if (expect_ == Expect::dtype) {
      const std::optional<SafetensorsDtype> dtype = safetensors_dtype_from_name(v);
      if (!dtype) fail(subject() + ": field dtype: unknown dtype " + quote_for_message(v));
      tensor_.dtype = *dtype;
      expect_ = Expect::field;
      return true;
    }
    return unexpected("the string " + quote_for_message(v));
  }

  bool start_object(size_t) {
    if (expect_ == Expect::root) {
      expect_ = Expect::name;
    } else if (expect_ == Expect::metadata) {
      expect_ = Expect::metadata_key;
    } else if (expect_ == Expect::tensor) {
      const std::string name = tensor_.name;
      tensor_ = TensorInfo{};
      tensor_.name = name;
      n_offsets_ = 0;
      has_dtype_ = has_shape_ = has_offsets_ = false;
      expect_ = Expect::field;
    } else {
      return unexpected("an object");
    }
    return true;
  }

  bool end_object() {
    if (expect_ == Expect::metadata_key) {
      expect_ = Expect::name;
    } else if (expect_ == Expect::field) {
      const char* missing = !has_dtype_ ? "dtype" : !has_shape_ ? "shape" : !has_offsets_ ? "data_offsets" : nullptr;
      if (missing) fail(fmt::format("{}: field {}: missing", subject(), missing));
      finish_tensor();
      expect_ = Expect::name;
    } else {
      expect_ = Expect::end;
    }
    return true;
  }

  bool start_array(size_t) {
    if (expect_ == Expect::shape)
      expect_ = Expect::dim;
    else if (expect_ == Expect::offsets)
      expect_ = Expect::offset;
    else
      return unexpected("an array");
    return true;
  }

  bool end_array() {
    if (expect_ == Expect::offset && n_offsets_ != 2)
      fail(fmt::format("{}: field data_offsets: expected two numbers, found {}", subject(), n_offsets_));
    expect_ = Expect::field;
    return true;
  }

  bool key(std::string& k) {
    if (expect_ == Expect::metadata_key) {
      if (header_.metadata.count(k)) fail("__metadata__: the key " + quote_for_message(k) + " stands twice");
      key_ = k;
      expect_ = Expect::metadata_value;
    } else if (expect_ == Expect::field) {
      bool* seen = k == "dtype"          ? &has_dtype_
                   : k == "shape"        ? &has_shape_
                   : k == "data_offsets" ? &has_offsets_
                                         : nullptr;
      if (!seen) fail(subject() + ": unknown field " + quote_for_message(k) + "; expected dtype, shape, data_offsets");
      if (*seen) fail(subject() + ": the field " + k + " stands twice");
      *seen = true;
      expect_ = seen == &has_dtype_ ? Expect::dtype : seen == &has_shape_ ? Expect::shape : Expect::offsets;
    } else if (k == "__metadata__") {
      if (has_metadata_) fail("__metadata__ stands twice");
      has_metadata_ = true;
      expect_ = Expect::metadata;
    } else {
      if (!names_.insert(k).second) fail("the tensor name " + quote_for_message(k) + " stands twice");
      tensor_.name = k;
      expect_ = Expect::tensor;
    }
    return true;
  }

  bool parse_error(size_t at, const std::string&, const nlohmann::detail::exception& e) {
    position = at;
    fail(json_syntax_message(e.what()));
  }

  SafetensorsHeader take() { return std::move(header_); }
  size_t position = 0;

 private:
  enum class Expect {
    root,
    name,
    metadata,
    metadata_key,
    metadata_value,
    tensor,
    field,
    dtype,
    shape,
    dim,
    offsets,
    offset,
    end,
  };

  [[noreturn]] void fail(const std::string& what) const {
    const JsonPosition p = json_position(text_, position > 0 ? position - 1 : 0);
    refuse(file_, fmt::format("header line {}, column {}: {}", p.line, p.column, what));
  }

  std::string subject() const { return "tensor " + quote_for_message(tensor_.name); }

  bool unexpected(const std::string& found) const {
    switch (expect_) {
      case Expect::root:
        fail("expected an object, found " + found);
      case Expect::metadata:
        fail("__metadata__: expected an object, found " + found);
      case Expect::metadata_value:
        fail("__metadata__: key " + quote_for_message(key_) + ": expected a string, found " + found);
      case Expect::tensor:
        fail(subject() + ": expected an object, found " + found);
      case Expect::dtype:
        fail(subject() + ": field dtype: expected a string, found " + found);
      case Expect::shape:
        fail(subject() + ": field shape: expected an array, found " + found);
      case Expect::dim:
        fail(subject() + ": field shape: expected whole numbers from 0, found " + found);
      case Expect::offsets:
        fail(subject() + ": field data_offsets: expected an array, found " + found);
      case Expect::offset:
        fail(subject() + ": field data_offsets: expected whole numbers from 0, found " + found);
      default:
        fail("unexpected " + found);
    }
  }

  void finish_tensor() {
    uint64_t bits = static_cast<uint64_t>(safetensors_dtype_bits(tensor_.dtype));
    bool overflow = false;
    uint64_t elements = 1;
    for (const int64_t d : tensor_.shape)  // also partial products: TensorInfo::elements() forms them signed
      overflow = overflow || __builtin_mul_overflow(elements, static_cast<uint64_t>(d), &elements) ||
                 elements > static_cast<uint64_t>(INT64_MAX);
    overflow = overflow || __builtin_mul_overflow(elements, bits, &bits);
    const std::string shape =
        fmt::format("{} [{}]", safetensors_dtype_name(tensor_.dtype), fmt::join(tensor_.shape, ", "));
    if (overflow) fail(subject() + ": field shape: the size of " + shape + " overflows 64 bits");
    if (bits % 8 != 0) fail(subject() + ": field shape: " + shape + " does not fill whole bytes");
    if (offsets_[1] < offsets_[0])
      fail(fmt::format("{}: field data_offsets: [{}, {}] ends before it begins", subject(), offsets_[0], offsets_[1]));
    if (offsets_[1] - offsets_[0] != bits / 8)
      fail(fmt::format("{}: field data_offsets: [{}, {}] spans {} bytes, but {} needs {}", subject(), offsets_[0],
                       offsets_[1], offsets_[1] - offsets_[0], shape, bits / 8));
    tensor_.offset = offsets_[0];
    tensor_.bytes = bits / 8;
    header_.tensors.push_back(tensor_);
  }

  std::string_view text_;
  const std::string& file_;
  Expect expect_ = Expect::root;
  SafetensorsHeader header_;
  std::unordered_set<std::string> names_;
  TensorInfo tensor_;
  std::string key_;
  uint64_t offsets_[2] = {0, 0};
  int n_offsets_ = 0;
  bool has_dtype_ = false, has_shape_ = false, has_offsets_ = false, has_metadata_ = false;
};

template <class T>
T load(const std::byte* p) {
  T v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <class From, class To>
void widen(const std::byte* p, int64_t n, To* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = static_cast<To>(load<From>(p + i * static_cast<int64_t>(sizeof(From))));
}

[[noreturn]] void cannot_convert(const TensorView& t, const char* to) {
  throw Error(ErrorCode::unsupported,
              fmt::format("{}: tensor {}: cannot read dtype {} as {}", t.file, quote_for_message(t.info->name),
                          safetensors_dtype_name(t.info->dtype), to),
              "convert the model to F32, F16 or BF16");
}

template <class To>
bool widen_integers(const TensorView& t, To* out) {
  const int64_t n = t.info->elements();
  switch (t.info->dtype) {
    case SafetensorsDtype::boolean:
      for (int64_t i = 0; i < n; ++i) out[i] = static_cast<To>(t.data[i] != std::byte{0});
      return true;
    case SafetensorsDtype::u8:
      widen<uint8_t>(t.data, n, out);
      return true;
    case SafetensorsDtype::i8:
      widen<int8_t>(t.data, n, out);
      return true;
    case SafetensorsDtype::i16:
      widen<int16_t>(t.data, n, out);
      return true;
    case SafetensorsDtype::u16:
      widen<uint16_t>(t.data, n, out);
      return true;
    case SafetensorsDtype::i32:
      widen<int32_t>(t.data, n, out);
      return true;
    case SafetensorsDtype::u32:
      widen<uint32_t>(t.data, n, out);
      return true;
    case SafetensorsDtype::i64:
      widen<int64_t>(t.data, n, out);
      return true;
    case SafetensorsDtype::u64:
      widen<uint64_t>(t.data, n, out);
      return true;
    default:
      return false;
  }
}

template <class To>
void widen_any(const TensorView& t, To* out, const char* to) {
  const int64_t n = t.info->elements();
  switch (t.info->dtype) {
    case SafetensorsDtype::f32:
      widen<float>(t.data, n, out);
      return;
    case SafetensorsDtype::f64:
      widen<double>(t.data, n, out);
      return;
    case SafetensorsDtype::f16:
      for (int64_t i = 0; i < n; ++i) out[i] = static_cast<To>(io_detail::f16_to_f32(load<uint16_t>(t.data + 2 * i)));
      return;
    case SafetensorsDtype::bf16:
      for (int64_t i = 0; i < n; ++i) out[i] = static_cast<To>(io_detail::bf16_to_f32(load<uint16_t>(t.data + 2 * i)));
      return;
    default:
      if (!widen_integers(t, out)) cannot_convert(t, to);
  }
}

bool is_pickle_name(std::string_view name) {
  for (const char* end : {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".bin.index.json"})
    if (name.ends_with(end)) return true;
  return false;
}

[[noreturn]] void refuse_pickle(const std::string& path) {
  throw Error(
      ErrorCode::unsupported, path + ": is a pickle, which can run any program when it is loaded",
      "convert the model to safetensors where it came from: model.save_pretrained(DIR, safe_serialization=True)");
}

constexpr const char* kIndexHint = "the index comes with the model: restore both, or convert the model again";

}  // namespace

const char* safetensors_dtype_name(SafetensorsDtype dtype) { return kDtypes[static_cast<size_t>(dtype)].name; }

int safetensors_dtype_bits(SafetensorsDtype dtype) { return kDtypes[static_cast<size_t>(dtype)].bits; }

std::optional<SafetensorsDtype> safetensors_dtype_from_name(std::string_view name) {
  for (size_t i = 0; i < kSafetensorsDtypes; ++i)
    if (name == kDtypes[i].name) return static_cast<SafetensorsDtype>(i);
  return std::nullopt;
}

int64_t TensorInfo::elements() const {
  int64_t n = 1;
  for (const int64_t d : shape) n *= d;
  return n;
}

std::string describe_tensor(const TensorInfo& info) {
  return fmt::format("{} [{}]", safetensors_dtype_name(info.dtype), fmt::join(info.shape, ", "));
}

SafetensorsHeader parse_safetensors_header(std::string_view text, uint64_t data_bytes, const std::string& file) {
  if (text.empty() || text[0] != '{') refuse(file, "the header does not start with '{'", "is this a safetensors file?");
  if (text.find('\0') != std::string_view::npos)  // nlohmann's lexer would take it for the end
    refuse(file, fmt::format("the header holds a NUL byte at {}", text.find('\0')));
  HeaderParser parser(text, file);
  const char* begin = text.data();
  const char* end = begin + text.size();
  const bool ok = nlohmann::json::sax_parse(JsonCursor(begin, begin, &parser.position),
                                            JsonCursor(end, begin, &parser.position), &parser);
  THIMBLE_CHECK(ok);
  SafetensorsHeader header = parser.take();
  header.data_bytes = data_bytes;
  // Zero-sized tensors sort before the one that begins at the same byte.
  std::sort(header.tensors.begin(), header.tensors.end(), [](const TensorInfo& a, const TensorInfo& b) {
    if (a.offset != b.offset) return a.offset < b.offset;
    return a.bytes != b.bytes ? a.bytes < b.bytes : a.name < b.name;
  });
  uint64_t at = 0;
  for (const TensorInfo& t : header.tensors) {
    if (t.offset != at)
      refuse(file, fmt::format("tensor {}: field data_offsets: begins at {}, but the tensors before it end at {} ({})",
                               quote_for_message(t.name), t.offset, at, t.offset > at ? "a hole" : "an overlap"));
    if (t.bytes > data_bytes - at)
      refuse(file,
             fmt::format("tensor {}: field data_offsets: ends at {}, but the file holds {} data bytes",
                         quote_for_message(t.name), t.offset + t.bytes, data_bytes),
             "the file is incomplete; download or convert it again");
    at += t.bytes;
  }
  if (at != data_bytes)
    refuse(file, fmt::format("the tensors end at {}, but the file holds {} data bytes", at, data_bytes));
  return header;
}

void TensorView::read_f32(float* out) const { widen_any(*this, out, "f32"); }

void TensorView::read_f64(double* out) const { widen_any(*this, out, "f64"); }

void TensorView::read_i64(int64_t* out) const {
  if (!widen_integers(*this, out)) cannot_convert(*this, "integers");
  if (info->dtype != SafetensorsDtype::u64) return;
  for (int64_t i = 0, n = info->elements(); i < n; ++i)
    if (out[i] < 0)
      refuse(file,
             fmt::format("tensor {}: element {} exceeds a signed 64-bit integer", quote_for_message(info->name), i));
}

SafetensorsFile::SafetensorsFile(const std::string& path) : map_(path) {
  constexpr const char* kWhatIsIt = "is this a safetensors file?";
  if (map_.size() < 8)
    refuse(path, fmt::format("has {} bytes, but the length of a safetensors header alone takes 8", map_.size()),
           kWhatIsIt);
  const std::string prefix = map_.read(0, 8);
  uint64_t length = 0;
  for (int i = 7; i >= 0; --i) length = length << 8 | static_cast<unsigned char>(prefix[static_cast<size_t>(i)]);
  if (length > kSafetensorsMaxHeader)
    refuse(path, fmt::format("the header length {} exceeds the limit of {} bytes", length, kSafetensorsMaxHeader),
           kWhatIsIt);
  if (length > map_.size() - 8)
    refuse(path, fmt::format("the header length {} exceeds the {} bytes that follow it", length, map_.size() - 8),
           "the file is incomplete, or no safetensors file");
  data_start_ = 8 + length;
  header_ = parse_safetensors_header(map_.read(8, length), map_.size() - data_start_, path);
  index_.reserve(header_.tensors.size());
  for (size_t i = 0; i < header_.tensors.size(); ++i) index_.emplace(header_.tensors[i].name, i);
}

const TensorInfo* SafetensorsFile::find(const std::string& name) const {
  const auto it = index_.find(name);
  return it == index_.end() ? nullptr : &header_.tensors[it->second];
}

TensorView SafetensorsFile::view(const std::string& name) const {
  const TensorInfo* info = find(name);
  if (!info)
    refuse(path(), "tensor " + quote_for_message(name) + ": not in the file", "does the file belong to this model?");
  map_.check_not_truncated();
  return {info, map_.data() + data_start_ + info->offset, path()};
}

const std::byte* SafetensorsFile::data(const std::string& name) const { return view(name).data; }

bool SafetensorsSet::present(const std::string& path) {
  if (!is_directory(path)) return file_exists(path) && path.ends_with(".safetensors");
  return file_exists(join_path(path, "model.safetensors")) ||
         file_exists(join_path(path, "model.safetensors.index.json"));
}

SafetensorsSet::SafetensorsSet(const std::string& path) : path_(path) {
  const std::string single = join_path(path, "model.safetensors");
  const std::string index = join_path(path, "model.safetensors.index.json");
  if (!is_directory(path)) {
    if (is_pickle_name(path) && file_exists(path)) refuse_pickle(path);
    files_.push_back(std::make_unique<SafetensorsFile>(path));
  } else if (file_exists(single)) {
    files_.push_back(std::make_unique<SafetensorsFile>(single));
  } else if (file_exists(index)) {
    const std::map<std::string, std::string> placed = read_shard_index(index, path, ".safetensors");
    std::map<std::string, size_t> shards;  // opened in the order of their names
    for (const auto& [tensor, shard] : placed) shards.emplace(shard, 0);
    for (auto& [shard, i] : shards) {
      i = files_.size();
      files_.push_back(std::make_unique<SafetensorsFile>(join_path(path, shard)));
    }
    for (const auto& [tensor, shard] : placed) {
      const SafetensorsFile& file = *files_[shards[shard]];
      if (!file.find(tensor))
        refuse(file.path(), "tensor " + quote_for_message(tensor) + ": promised by " + index + ", but not in the file",
               kIndexHint);
    }
    for (const auto& [shard, i] : shards)
      for (const TensorInfo& t : files_[i]->tensors()) {
        const auto it = placed.find(t.name);
        if (it == placed.end() || it->second != shard)
          refuse(files_[i]->path(),
                 "tensor " + quote_for_message(t.name) + ": in the file, but " + index +
                     (it == placed.end() ? " does not name it" : " places it elsewhere"),
                 kIndexHint);
      }
  } else {
    std::error_code error;
    std::set<std::string> pickles;
    for (const auto& entry : std::filesystem::directory_iterator(path, error))
      if (is_pickle_name(entry.path().filename().string()) && entry.path().extension() != ".json")
        pickles.insert(entry.path().string());
    if (!pickles.empty()) refuse_pickle(*pickles.begin());
    refuse(path, "holds neither model.safetensors nor model.safetensors.index.json",
           "give the directory of a model, or a .safetensors file");
  }
  for (size_t f = 0; f < files_.size(); ++f)
    for (const TensorInfo& t : files_[f]->tensors()) {
      names_.push_back(t.name);
      where_.emplace(t.name, f);
    }
  std::sort(names_.begin(), names_.end());
}

const SafetensorsFile* SafetensorsSet::file_of(const std::string& name) const {
  const auto it = where_.find(name);
  return it == where_.end() ? nullptr : files_[it->second].get();
}

const TensorInfo* SafetensorsSet::find(const std::string& name) const {
  const SafetensorsFile* file = file_of(name);
  return file ? file->find(name) : nullptr;
}

TensorView SafetensorsSet::find_view(const std::string& name) const {
  const SafetensorsFile* file = file_of(name);
  return file ? file->view(name) : TensorView{};
}

void SafetensorsSet::release_pages() const {
  for (const auto& file : files_) file->release_pages();
}

uint64_t SafetensorsSet::file_bytes() const {
  uint64_t n = 0;
  for (const auto& file : files_) n += file->file_bytes();
  return n;
}

TensorView TensorSource::view(const std::string& name) const {
  TensorView v = find_view(name);
  if (!v) refuse(path(), "tensor " + quote_for_message(name) + ": missing", "does the file belong to this model?");
  return v;
}

const std::byte* SafetensorsSet::data(const std::string& name) const { return view(name).data; }

}  // namespace thimble
