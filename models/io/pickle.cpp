// The interpreter builds plain values (numbers, strings, tuples, dicts, tensors) on a stack. Nothing it builds is
// larger than the bytes it has read: strings are views, containers hold pointers, and a value that appears twice is
// shared.
#include "models/io/pickle.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <unordered_map>

#include "models/io/json.h"
#include "models/io/shards.h"
#include "tensor/error.h"

namespace thimble {
namespace {

constexpr const char* kDamaged = "the file is damaged or incomplete; download it again";
constexpr const char* kConvert =
    "convert the model to safetensors where it came from: model.save_pretrained(DIR, safe_serialization=True)";
constexpr uint64_t kMaxPickle = uint64_t{256} << 20;
constexpr size_t kMaxDims = 16;

template <class T>
T load(const char* at) {
  T v;
  std::memcpy(&v, at, sizeof v);
  return v;
}

struct StorageType {
  const char* name;
  SafetensorsDtype dtype;
};
constexpr StorageType kStorages[] = {
    {"FloatStorage", SafetensorsDtype::f32}, {"DoubleStorage", SafetensorsDtype::f64},
    {"HalfStorage", SafetensorsDtype::f16},  {"BFloat16Storage", SafetensorsDtype::bf16},
    {"LongStorage", SafetensorsDtype::i64},  {"IntStorage", SafetensorsDtype::i32},
    {"ShortStorage", SafetensorsDtype::i16}, {"CharStorage", SafetensorsDtype::i8},
    {"ByteStorage", SafetensorsDtype::u8},   {"BoolStorage", SafetensorsDtype::boolean}};

enum class Kind : uint8_t { none, boolean, integer, real, text, tuple, list, dict, global, storage, tensor };
enum class Global : uint8_t {
  ordered_dict,
  rebuild_tensor,
  rebuild_tensor_v2,
  rebuild_parameter,
  size,
  storage_type,
  constant
};

struct Value {
  Kind kind = Kind::none;
  int64_t number = 0;         // boolean, integer
  std::string text;           // text; global: its full name; storage: its member
  std::vector<Value*> items;  // tuple, list; dict: key, value, key, value
  Global global = Global::constant;
  SafetensorsDtype dtype = SafetensorsDtype::f32;  // storage, tensor, storage type
  int64_t elements = 0;                            // storage
  int64_t offset = 0;                              // tensor, in elements
  std::vector<int64_t> shape, strides;
};

class Unpickler {
 public:
  Unpickler(const std::string& bytes, const std::string& file) : bytes_(bytes), file_(file) {}

  // The value at STOP. It lives as long as this object.
  const Value* run() {
    for (;;) {
      const auto op = static_cast<uint8_t>(*take(1));
      switch (op) {
        case 0x80:
          take(1);
          break;  // PROTO
        case 0x95:
          take(8);
          break;  // FRAME
        case '.':
          return pop();  // STOP
        case '(':
          marks_.push_back(stack_.size());
          break;
        case '0':
          pop();
          break;
        case '1':
          pop_to_mark();
          break;
        case '2':
          push(top());
          break;
        case 'N':
          make(Kind::none);
          break;
        case 0x88:
          make(Kind::boolean)->number = 1;
          break;
        case 0x89:
          make(Kind::boolean);
          break;
        case 'J':
          make(Kind::integer)->number = number<int32_t>();
          break;
        case 'K':
          make(Kind::integer)->number = number<uint8_t>();
          break;
        case 'M':
          make(Kind::integer)->number = number<uint16_t>();
          break;
        case 0x8A:
          long_integer();
          break;  // LONG1
        case 'G':
          take(8), make(Kind::real);
          break;  // BINFLOAT: nobody asks for its value
        case 'X':
          text(number<uint32_t>());
          break;  // BINUNICODE
        case 0x8C:
          text(number<uint8_t>());
          break;  // SHORT_BINUNICODE
        case 0x8D:
          text(number<uint64_t>());
          break;  // BINUNICODE8
        case 'T':
        case 'B':
          text(number<uint32_t>());
          break;  // BINSTRING, BINBYTES
        case 'U':
        case 'C':
          text(number<uint8_t>());
          break;  // their short forms
        case ')':
          make(Kind::tuple);
          break;
        case 't':
          make_from(Kind::tuple, pop_to_mark());
          break;
        case 0x85:
          make_from(Kind::tuple, pop_n(1));
          break;
        case 0x86:
          make_from(Kind::tuple, pop_n(2));
          break;
        case 0x87:
          make_from(Kind::tuple, pop_n(3));
          break;
        case ']':
          make(Kind::list);
          break;
        case 'l':
          make_from(Kind::list, pop_to_mark());
          break;
        case 'a':
          extend(Kind::list, pop_n(1));
          break;
        case 'e':
          extend(Kind::list, pop_to_mark());
          break;
        case '}':
          make(Kind::dict);
          break;
        case 'd':
          make_from(Kind::dict, pop_to_mark());
          break;
        case 's':
          extend(Kind::dict, pop_n(2));
          break;
        case 'u':
          extend(Kind::dict, pop_to_mark());
          break;
        case 'q':
          memo_[number<uint8_t>()] = top();
          break;
        case 'r':
          memo_[number<uint32_t>()] = top();
          break;
        case 0x94: {
          const auto next = static_cast<uint32_t>(memo_.size());
          memo_[next] = top();
          break;
        }  // MEMOIZE
        case 'h':
          recall(number<uint8_t>());
          break;
        case 'j':
          recall(number<uint32_t>());
          break;
        case 'c': {
          const std::string module = line();
          import_name(module, line());
          break;
        }
        case 0x93: {  // STACK_GLOBAL
          const std::vector<Value*> names = pop_n(2);
          import_name(expect(names[0], Kind::text, "a module's name")->text,
                      expect(names[1], Kind::text, "a name")->text);
          break;
        }
        case 'Q':
          persistent(pop());
          break;
        case 'R': {
          Value* arguments = pop();
          call(pop(), arguments);
          break;
        }
        case 0x81: {
          Value* arguments = pop();
          call(pop(), arguments);
          break;
        }  // NEWOBJ
        case 'b':
          build();
          break;
        default:
          unsupported(fmt::format("opcode 0x{:02x} at byte {}", op, at_ - 1));
      }
    }
  }

  [[noreturn]] void fail(const std::string& what) const {
    throw Error(ErrorCode::input, fmt::format("{}: in its pickle, at byte {}: {}", file_, at_, what), kDamaged);
  }

 private:
  [[noreturn]] void unsupported(const std::string& what) const {
    throw Error(ErrorCode::unsupported,
                fmt::format("{}: its pickle uses {}: only what the tensors of a model need is read, and nothing is run",
                            file_, what),
                kConvert);
  }

  const char* take(uint64_t n) {
    if (n > bytes_.size() - at_) fail(fmt::format("{} bytes are announced, but {} are left", n, bytes_.size() - at_));
    const char* from = bytes_.data() + at_;
    at_ += n;
    return from;
  }
  template <class T>
  T number() {
    return load<T>(take(sizeof(T)));
  }
  std::string line() {
    const size_t end = bytes_.find('\n', at_);
    if (end == std::string::npos) fail("a name without an end");
    std::string text = bytes_.substr(at_, end - at_);
    at_ = end + 1;
    return text;
  }

  Value* make(Kind kind) {
    values_.emplace_back();
    values_.back().kind = kind;
    stack_.push_back(&values_.back());
    return stack_.back();
  }
  void make_from(Kind kind, std::vector<Value*> items) {
    if (kind == Kind::dict && items.size() % 2 != 0) fail("a dict with a key that has no value");
    make(kind)->items = std::move(items);
  }
  void text(uint64_t n) {
    const char* from = take(n);
    make(Kind::text)->text.assign(from, n);
  }
  void long_integer() {
    const auto n = number<uint8_t>();
    if (n > 8) fail(fmt::format("a whole number of {} bytes", n));
    const char* from = take(n);
    uint64_t v = n > 0 && from[n - 1] < 0 ? ~uint64_t{0} : 0;
    for (int i = 0; i < n; ++i)
      v = (v & ~(uint64_t{255} << 8 * i)) | static_cast<uint64_t>(static_cast<uint8_t>(from[i])) << 8 * i;
    make(Kind::integer)->number = static_cast<int64_t>(v);
  }

  size_t floor() const { return marks_.empty() ? 0 : marks_.back(); }
  Value* top() const {
    if (stack_.size() <= floor()) fail("the stack is empty");
    return stack_.back();
  }
  Value* pop() {
    Value* v = top();
    stack_.pop_back();
    return v;
  }
  void push(Value* v) { stack_.push_back(v); }
  std::vector<Value*> pop_n(size_t n) {
    if (stack_.size() < floor() + n) fail("the stack is too short");
    std::vector<Value*> items(stack_.end() - static_cast<std::ptrdiff_t>(n), stack_.end());
    stack_.resize(stack_.size() - n);
    return items;
  }
  std::vector<Value*> pop_to_mark() {
    if (marks_.empty()) fail("there is no mark");
    const size_t from = marks_.back();
    marks_.pop_back();
    std::vector<Value*> items(stack_.begin() + static_cast<std::ptrdiff_t>(from), stack_.end());
    stack_.resize(from);
    return items;
  }
  void extend(Kind kind, std::vector<Value*> items) {
    Value* v = expect(top(), kind, kind == Kind::dict ? "a dict" : "a list");
    if (kind == Kind::dict && items.size() % 2 != 0) fail("a key that has no value");
    v->items.insert(v->items.end(), items.begin(), items.end());
  }
  void recall(uint32_t at) {
    const auto it = memo_.find(at);
    if (it == memo_.end()) fail(fmt::format("memo {} is empty", at));
    push(it->second);
  }
  Value* expect(Value* v, Kind kind, const char* what) const {
    if (v->kind != kind) fail(std::string("expected ") + what);
    return v;
  }

  void import_name(const std::string& module, const std::string& name) {
    const std::string full = module + "." + name;
    Value* v = make(Kind::global);
    v->text = full;
    if (full == "collections.OrderedDict") {
      v->global = Global::ordered_dict;
    } else if (full == "torch._utils._rebuild_tensor_v2") {
      v->global = Global::rebuild_tensor_v2;
    } else if (full == "torch._utils._rebuild_tensor") {
      v->global = Global::rebuild_tensor;
    } else if (full == "torch._utils._rebuild_parameter") {
      v->global = Global::rebuild_parameter;
    } else if (full == "torch.Size") {
      v->global = Global::size;
    } else if (full == "torch.float32" || full == "torch.float16" || full == "torch.bfloat16" ||
               full == "torch.float64") {
      v->global = Global::constant;
    } else {
      for (const StorageType& s : kStorages)
        if (full == std::string("torch.") + s.name) {
          v->global = Global::storage_type;
          v->dtype = s.dtype;
          return;
        }
      unsupported("the name " + quote_for_message(full));
    }
  }

  // ('storage', torch.FloatStorage, '0', 'cpu', 20480)
  void persistent(Value* id) {
    expect(id, Kind::tuple, "the tuple of a storage");
    if (id->items.size() < 5 || id->items[0]->text != "storage") fail("expected the tuple of a storage");
    Value* type = expect(id->items[1], Kind::global, "the type of a storage");
    if (type->global != Global::storage_type)
      fail("expected the type of a storage, found " + quote_for_message(type->text));
    Value* v = make(Kind::storage);
    v->dtype = type->dtype;
    v->text = expect(id->items[2], Kind::text, "the name of a storage")->text;
    v->elements = expect(id->items[4], Kind::integer, "the size of a storage")->number;
    if (v->elements < 0) fail("a storage with a negative size");
  }

  std::vector<int64_t> integers(Value* v) const {
    expect(v, Kind::tuple, "a tuple of whole numbers");
    if (v->items.size() > kMaxDims)
      fail(fmt::format("a tensor of {} dimensions: the limit is {}", v->items.size(), kMaxDims));
    std::vector<int64_t> out;
    for (Value* i : v->items) out.push_back(expect(i, Kind::integer, "a whole number")->number);
    return out;
  }

  void call(Value* function, Value* arguments) {
    expect(function, Kind::global, "a name to call");
    expect(arguments, Kind::tuple, "a tuple of arguments");
    const std::vector<Value*>& a = arguments->items;
    const auto need = [&](size_t n) {
      if (a.size() < n) fail(fmt::format("{} with {} arguments: expected {}", function->text, a.size(), n));
    };
    switch (function->global) {
      case Global::ordered_dict: {
        Value* dict = make(Kind::dict);
        if (a.empty()) return;
        for (Value* pair : expect(a[0], Kind::list, "a list of pairs")->items) {
          if ((pair->kind != Kind::tuple && pair->kind != Kind::list) || pair->items.size() != 2)
            fail("expected a list of pairs");
          dict->items.insert(dict->items.end(), pair->items.begin(), pair->items.end());
        }
        return;
      }
      case Global::rebuild_tensor:
      case Global::rebuild_tensor_v2: {
        need(4);
        Value* storage = expect(a[0], Kind::storage, "a storage");
        Value* v = make(Kind::tensor);
        v->text = storage->text;
        v->dtype = storage->dtype;
        v->elements = storage->elements;
        v->offset = expect(a[1], Kind::integer, "an offset")->number;
        v->shape = integers(a[2]);
        v->strides = integers(a[3]);
        return;
      }
      case Global::rebuild_parameter:
        need(1);
        push(expect(a[0], Kind::tensor, "a tensor"));
        return;
      case Global::size:
        need(1);
        push(expect(a[0], Kind::tuple, "a tuple"));
        return;
      default:
        unsupported("a call of " + quote_for_message(function->text));
    }
  }

  // State set on an object: the _metadata of an OrderedDict, which says nothing about tensors.
  void build() {
    pop();
    if (top()->kind != Kind::dict) unsupported("state on something else than a dict");
  }

  const std::string& bytes_;
  const std::string& file_;
  size_t at_ = 0;
  std::deque<Value> values_;  // addresses stay
  std::vector<Value*> stack_;
  std::vector<size_t> marks_;
  std::unordered_map<uint32_t, Value*> memo_;
};

bool holds_tensors(const Value& dict) {
  for (size_t i = 1; i < dict.items.size(); i += 2)
    if (dict.items[i]->kind == Kind::tensor) return true;
  return false;
}

// The state dict: the value itself, or what a training checkpoint keeps it under.
const Value* state_dict(const Value& value) {
  if (value.kind != Kind::dict || holds_tensors(value)) return &value;
  for (const char* key : {"state_dict", "model_state_dict", "model"})
    for (size_t i = 0; i < value.items.size(); i += 2)
      if (value.items[i]->kind == Kind::text && value.items[i]->text == key && value.items[i + 1]->kind == Kind::dict)
        return value.items[i + 1];
  return &value;
}

}  // namespace

PickleFile::PickleFile(const std::string& path) : name_(path), map_(path) {
  size_ = map_.size();
  parse();
}

PickleFile::PickleFile(std::string bytes, const std::string& name)
    : name_(name), memory_(std::move(bytes)), in_memory_(true) {
  size_ = memory_.size();
  parse();
}

void PickleFile::fail(const std::string& what) const { throw Error(ErrorCode::input, name_ + ": " + what, kDamaged); }

std::string PickleFile::bytes_at(uint64_t offset, uint64_t bytes) const {
  if (offset > size_ || bytes > size_ - offset)
    fail(fmt::format("{} bytes at {} are beyond the end of the file ({} bytes)", bytes, offset, size_));
  return in_memory_ ? memory_.substr(offset, bytes) : map_.read(offset, bytes);
}

void PickleFile::parse() {
  const std::string start = bytes_at(0, std::min<uint64_t>(4, size_));
  if (start != std::string("PK\x03\x04", 4)) {
    const bool old = !start.empty() && start[0] == '\x80';
    throw Error(old ? ErrorCode::unsupported : ErrorCode::input,
                name_ + (old ? ": is a torch file from before version 1.6 (no zip container)"
                             : ": expected a zip container as torch.save writes it"),
                old ? "load and save it again with a newer torch, or convert it to safetensors" : kDamaged);
  }
  read_directory();
  read_pickle();
}

// The zip container: what its central directory says, with the sizes of 64 bits.
void PickleFile::read_directory() {
  constexpr uint64_t kEnd = 22, kEntry = 46, kLocal = 30, kEnd64 = 56, kLocator = 20;
  if (size_ < kEnd) fail("is too short for a zip container");
  const uint64_t tail = std::min<uint64_t>(size_, kEnd + 65535);
  const std::string last = bytes_at(size_ - tail, tail);
  size_t at = last.size() - kEnd;
  while (last.compare(at, 4, "PK\x05\x06") != 0) {
    if (at == 0) fail("its zip directory is missing: the file is truncated");
    --at;
  }
  uint64_t count = load<uint16_t>(&last[at + 10]), bytes = load<uint32_t>(&last[at + 12]),
           offset = load<uint32_t>(&last[at + 16]);
  if (at >= kLocator && last.compare(at - kLocator, 4, "PK\x06\x07") == 0) {
    const std::string end = bytes_at(load<uint64_t>(&last[at - kLocator + 8]), kEnd64);
    if (end.compare(0, 4, "PK\x06\x06") != 0) fail("its zip directory is damaged");
    count = load<uint64_t>(&end[32]);
    bytes = load<uint64_t>(&end[40]);
    offset = load<uint64_t>(&end[48]);
  }
  if (bytes > kMaxPickle || count > bytes / kEntry)
    fail(fmt::format("its zip directory announces {} members in {} bytes", count, bytes));
  const std::string directory = bytes_at(offset, bytes);
  size_t p = 0;
  for (uint64_t i = 0; i < count; ++i) {
    if (directory.size() - p < kEntry || directory.compare(p, 4, "PK\x01\x02") != 0)
      fail("its zip directory is damaged");
    const auto flags = load<uint16_t>(&directory[p + 8]), method = load<uint16_t>(&directory[p + 10]);
    uint64_t packed = load<uint32_t>(&directory[p + 20]), plain = load<uint32_t>(&directory[p + 24]),
             local = load<uint32_t>(&directory[p + 42]);
    const size_t name_bytes = load<uint16_t>(&directory[p + 28]), extra_bytes = load<uint16_t>(&directory[p + 30]),
                 comment = load<uint16_t>(&directory[p + 32]);
    if (directory.size() - p - kEntry < name_bytes + extra_bytes + comment) fail("its zip directory is damaged");
    const std::string member = directory.substr(p + kEntry, name_bytes);
    for (size_t x = p + kEntry + name_bytes, end = x + extra_bytes; end - x >= 4 && x < end;) {
      const size_t id = load<uint16_t>(&directory[x]), n = load<uint16_t>(&directory[x + 2]);
      if (n > end - x - 4) break;
      size_t v = x + 4;
      if (id == 1)
        for (uint64_t* field : {&plain, &packed, &local})
          if (*field == 0xFFFFFFFFu && v + 8 <= x + 4 + n) {
            *field = load<uint64_t>(&directory[v]);
            v += 8;
          }
      x += 4 + n;
    }
    p += kEntry + name_bytes + extra_bytes + comment;
    if (!member.empty() && member.back() == '/') continue;
    if (method != 0 || (flags & 1) != 0)
      throw Error(ErrorCode::unsupported,
                  fmt::format("{}: member {} is {}", name_, quote_for_message(member),
                              (flags & 1) != 0 ? "encrypted" : "compressed"),
                  "torch stores members as they are; save the checkpoint again with torch.save");
    if (packed != plain) fail("member " + quote_for_message(member) + ": two different sizes");
    const std::string header = bytes_at(local, kLocal);
    if (header.compare(0, 4, "PK\x03\x04") != 0)
      fail("member " + quote_for_message(member) + ": its header is damaged");
    Member m;
    m.offset = local + kLocal + load<uint16_t>(&header[26]) + load<uint16_t>(&header[28]);
    m.bytes = plain;
    if (m.offset > size_ || m.bytes > size_ - m.offset)
      fail("member " + quote_for_message(member) + " reaches beyond the end of the file");
    if (!members_.emplace(member, m).second) fail("member " + quote_for_message(member) + " stands twice");
  }
}

void PickleFile::read_pickle() {
  const Member* pickle = nullptr;
  for (const auto& [name, member] : members_) {
    if (name.size() < 8 || name.compare(name.size() - 8, 8, "data.pkl") != 0) continue;
    if (name.size() > 8 && name[name.size() - 9] != '/') continue;
    if (pickle) fail("holds two files data.pkl");
    pickle = &member;
    root_ = name.substr(0, name.size() - 8);
  }
  if (!pickle) {
    for (const auto& [name, member] : members_)
      if (name.size() >= 13 && name.compare(name.size() - 13, 13, "constants.pkl") == 0)
        throw Error(ErrorCode::unsupported, name_ + ": is a TorchScript program", kConvert);
    fail("holds no data.pkl: expected a zip container as torch.save writes it");
  }
  if (const auto order = members_.find(root_ + "byteorder");
      order != members_.end() && bytes_at(order->second.offset, order->second.bytes) != "little")
    throw Error(ErrorCode::unsupported, name_ + ": was written on a big-endian machine",
                "save it again on a little-endian one");
  if (pickle->bytes > kMaxPickle)
    fail(fmt::format("data.pkl has {} bytes: the limit is {}", pickle->bytes, kMaxPickle));
  const std::string bytes = bytes_at(pickle->offset, pickle->bytes);
  Unpickler unpickler(bytes, name_);
  const Value* dict = state_dict(*unpickler.run());
  if (dict->kind != Kind::dict || !holds_tensors(*dict)) fail("holds no state dict: expected a dict of tensors");
  for (size_t i = 0; i < dict->items.size(); i += 2) {
    if (dict->items[i]->kind != Kind::text) fail("a key of the state dict is no text");
    const std::string& name = dict->items[i]->text;
    const Value& v = *dict->items[i + 1];
    const std::string subject = "tensor " + quote_for_message(name);
    if (v.kind != Kind::tensor) fail(subject + ": is no tensor");
    const auto storage = members_.find(root_ + "data/" + v.text);
    if (storage == members_.end()) fail(subject + ": its storage " + quote_for_message(v.text) + " is missing");
    const auto size = static_cast<uint64_t>(safetensors_dtype_bits(v.dtype) / 8);
    const uint64_t capacity = storage->second.bytes / size;
    if (static_cast<uint64_t>(v.elements) > capacity)
      fail(fmt::format("{}: its storage has {} bytes, expected {} elements of {}", subject, storage->second.bytes,
                       v.elements, size));
    if (v.shape.size() != v.strides.size()) fail(subject + ": has other dimensions than strides");
    Tensor t;
    t.info.name = name;
    t.info.dtype = v.dtype;
    t.info.shape = v.shape;
    t.strides = v.strides;
    uint64_t count = 1, last = 0;  // elements; the furthest one from the first
    for (size_t d = v.shape.size(); d-- > 0;) {
      if (v.shape[d] < 0 || v.strides[d] < 0) fail(subject + ": a negative size or stride");
      if (v.shape[d] > 1 && v.strides[d] != static_cast<int64_t>(count)) t.contiguous = false;
      const auto n = static_cast<uint64_t>(v.shape[d]);
      if (n == 0) {
        count = 0;
        break;
      }
      // Copies of one element (stride 0) could blow a few bytes up to any size.
      if (count > capacity / n) fail(fmt::format("{}: has more elements than its storage ({})", subject, capacity));
      count *= n;
      if (n == 1) continue;
      if (static_cast<uint64_t>(v.strides[d]) > capacity)
        fail(fmt::format("{}: a stride of {} in a storage of {} elements", subject, v.strides[d], capacity));
      const auto stride = static_cast<uint64_t>(v.strides[d]);
      last += stride > 0 && n - 1 > capacity / stride ? capacity : (n - 1) * stride;
      if (last > capacity) break;
    }
    if (v.offset < 0 || (count > 0 && (static_cast<uint64_t>(v.offset) >= capacity ||
                                       last >= capacity - static_cast<uint64_t>(v.offset))))
      fail(subject + ": reaches beyond the end of its storage");
    t.info.bytes = count * size;
    t.info.offset = storage->second.offset + (count > 0 ? static_cast<uint64_t>(v.offset) * size : 0);
    if (!tensors_.emplace(name, std::move(t)).second) fail(subject + " stands twice");
  }
}

TensorView PickleFile::find_view(const std::string& name) const {
  const auto it = tensors_.find(name);
  if (it == tensors_.end()) return {};
  const Tensor& t = it->second;
  if (!in_memory_) map_.check_not_truncated();
  const std::byte* from =
      (in_memory_ ? reinterpret_cast<const std::byte*>(memory_.data()) : map_.data()) + t.info.offset;
  if (t.contiguous || t.info.bytes == 0) return {&t.info, from, name_};
  Buffer& made = ordered_[name];
  if (made.bytes() == 0) {
    made = Buffer(t.info.bytes);
    const auto size = static_cast<size_t>(safetensors_dtype_bits(t.info.dtype) / 8);
    auto* to = static_cast<std::byte*>(made.data());
    std::vector<int64_t> at(t.info.shape.size());
    int64_t element = 0;
    for (uint64_t done = 0; done < t.info.bytes; done += size, to += size) {
      std::memcpy(to, from + static_cast<size_t>(element) * size, size);
      for (size_t d = at.size(); d-- > 0;) {
        element += t.strides[d];
        if (++at[d] < t.info.shape[d]) break;
        element -= at[d] * t.strides[d];
        at[d] = 0;
      }
    }
  }
  return {&t.info, static_cast<const std::byte*>(made.data()), name_};
}

bool PickleSet::present(const std::string& dir) {
  return file_exists(join_path(dir, "pytorch_model.bin")) ||
         file_exists(join_path(dir, "pytorch_model.bin.index.json"));
}

PickleSet::PickleSet(const std::string& dir) : path_(dir) {
  const std::string single = join_path(dir, "pytorch_model.bin"),
                    index = join_path(dir, "pytorch_model.bin.index.json");
  std::map<std::string, std::string> placed;
  if (file_exists(single)) {
    files_.push_back(std::make_unique<PickleFile>(single));
  } else {
    placed = read_shard_index(index, dir, ".bin");
    std::map<std::string, size_t> shards;
    for (const auto& [tensor, shard] : placed) shards.emplace(shard, 0);
    for (auto& [shard, i] : shards) {
      i = files_.size();
      files_.push_back(std::make_unique<PickleFile>(join_path(dir, shard)));
    }
  }
  for (size_t f = 0; f < files_.size(); ++f)
    for (const auto& [name, tensor] : files_[f]->tensors()) {
      const auto it = placed.find(name);
      const std::string file = files_[f]->path();
      if (!placed.empty() && (it == placed.end() || join_path(dir, it->second) != file))
        throw Error(ErrorCode::input,
                    file + ": tensor " + quote_for_message(name) + ": " + index +
                        (it == placed.end() ? " does not name it" : " places it elsewhere"),
                    kDamaged);
      where_.emplace(name, f);
      names_.push_back(name);
    }
  std::sort(names_.begin(), names_.end());
  for (const auto& [tensor, shard] : placed)
    if (!where_.count(tensor))
      throw Error(ErrorCode::input,
                  join_path(dir, shard) + ": tensor " + quote_for_message(tensor) + ": promised by " + index +
                      ", but not in the file",
                  kDamaged);
}

void PickleSet::release_pages() const {
  for (const auto& f : files_) f->release_pages();
}

void PickleSet::forget_views() const {
  for (const auto& f : files_) f->forget_views();
}

uint64_t PickleSet::file_bytes() const {
  uint64_t n = 0;
  for (const auto& f : files_) n += f->file_bytes();
  return n;
}

TensorView PickleSet::find_view(const std::string& name) const {
  const auto it = where_.find(name);
  return it == where_.end() ? TensorView{} : files_[it->second]->find_view(name);
}

}  // namespace thimble
