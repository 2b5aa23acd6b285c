// Reads plans. The YAML is walked by its schema: whatever is not expected at its place is refused there, so neither deep
// nesting nor aliases can lead anywhere.
#include "tools/lab/plan.h"

#include <fmt/format.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstdlib>
#include <functional>
#include <map>
#include <set>

#include "rag/retriever.h"
#include "tensor/error.h"
#include "tensor/file.h"
#include "tools/lab/compression.h"
#include "tools/lab/method.h"
#include "tools/lab/metrics.h"
#include "tools/lab/task.h"

namespace thimble::lab {
namespace {

using Names = std::vector<std::string>;

std::string joined(const Names& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

// Where a node stands: in the file, and as a path of keys. Constant, because assigning to a YAML::Node changes the tree
// that it belongs to.
struct Value {
  const YAML::Node node;
  const std::string where;
};

// A setting of something: one function per value that it takes.
template <class T>
using Settings = std::vector<std::function<void(T&)>>;

template <class T>
void multiply(std::vector<T>& items, const Settings<T>& settings, const std::function<void(size_t)>& check) {
  if (settings.empty()) return;
  check(items.size() * settings.size());
  std::vector<T> product;
  for (const T& item : items)
    for (const auto& set : settings) {
      product.push_back(item);
      set(product.back());
    }
  items = std::move(product);
}

class PlanReader {
 public:
  PlanReader(const std::string& path, const PlanOverrides& overrides) : path_(path), overrides_(overrides) {}

  Plan read(const YAML::Node& root, const std::string& text);

 private:
  // One combination while a grid is multiplied out.
  struct Draft {
    CellConfig config;
    double seconds = 0;
    std::vector<int64_t> curve;
    bool has_budget = false;
    PlanMark model_at, task_at;
  };
  // Values of the plan's first level and of "defaults", which grids fall back on.
  struct Common {
    std::vector<int64_t> seeds = {0};
    int64_t people = 0, queries = 0;  // 0: not given
    std::map<std::string, Value> defaults;
  };

  static PlanMark mark_of(const YAML::Node& node) {
    const YAML::Mark m = node.Mark();
    return m.is_null() ? PlanMark{} : PlanMark{m.line + 1, m.column + 1};
  }
  [[noreturn]] void fail(ErrorCode code, const Value& at, const std::string& what, const std::string& hint = {}) const {
    throw Error(code, plan_place(path_, mark_of(at.node)) + (at.where.empty() ? "" : at.where + ": ") + what, hint);
  }
  [[noreturn]] void wrong_type(const Value& at, const std::string& expected) const {
    fail(ErrorCode::input, at, fmt::format("expected {}, found {}", expected, found(at.node)));
  }
  static std::string found(const YAML::Node& node) {
    if (node.IsSequence()) return "a list";
    if (node.IsMap()) return "a map";
    if (!node.IsScalar()) return "nothing";
    return "\"" + (node.Scalar().size() > 40 ? node.Scalar().substr(0, 40) + "..." : node.Scalar()) + "\"";
  }
  // Runs something that may throw an Error without a place, and gives it one.
  template <class F>
  auto placed(const Value& at, F&& f) const {
    try {
      return f();
    } catch (const Error& e) {
      fail(e.code(), at, e.what(), e.hint());
    }
  }

  // The entries of a map, whose keys must be among these and different.
  std::map<std::string, Value> entries(const Value& at, const Names& valid, const std::string& of) const;
  // A list's elements, or the value itself.
  std::vector<Value> each(const Value& at) const;
  std::vector<Value> elements(const Value& at) const;
  // {choose: [..]} -> its elements; anything else is one itself.
  std::vector<Value> levels(const Value& at) const;

  std::string text(const Value& at, const std::string& expected = "a text") const;
  int64_t integer(const Value& at, int64_t min, int64_t max = int64_t{1} << 40) const;
  double number(const Value& at, double min, double max, bool open_min = false) const;
  std::string one_of(const Value& at, const Names& valid) const;
  int64_t ram(const Value& at) const;

  template <class Entry, class T>
  Settings<T> setting(const Value& at, Entry T::*member, const std::function<Entry(const Value&)>& parse) const {
    Settings<T> list;
    for (const Value& v : each(at)) {
      const Entry value = parse(v);
      list.push_back([member, value](T& item) { item.*member = value; });
    }
    return list;
  }
  // A list of candidates: each value is a factor's level with one candidate, {choose: [..]} one level with several.
  template <class Entry>
  Settings<MethodSpec> choice(const Value& at, std::vector<Entry> MethodSpec::*member,
                              const std::function<Entry(const Value&)>& parse) const;

  Device device(const Value& at) const;
  std::vector<int64_t> seeds(const Value& at) const;
  std::vector<MethodSpec> methods(const Value& at) const;
  std::function<void(MethodSpec&)> alpha(const Value& at) const;
  Settings<Draft> budgets(const Value& at) const;
  Settings<Draft> tasks(const Value& at, const Common& common) const;
  std::vector<WorldDials> worlds(const Value& at, const Common& common) const;
  PlanGrid grid(const Value& at, const Common& common, const Plan& plan);
  void count(const Value& at, size_t cells) const {
    if (cells_ + cells > kMaxPlanCells)
      fail(ErrorCode::usage, at, fmt::format("the plan has more than {} cells", kMaxPlanCells), "leave out values of some factor");
  }

  std::string path_;
  PlanOverrides overrides_;
  size_t cells_ = 0;
};

std::map<std::string, Value> PlanReader::entries(const Value& at, const Names& valid, const std::string& of) const {
  if (!at.node.IsMap()) wrong_type(at, "a map with keys among " + joined(valid));
  std::map<std::string, Value> map;
  for (const auto& pair : at.node) {
    const Value key{pair.first, at.where};
    if (!pair.first.IsScalar()) fail(ErrorCode::input, key, "a key must be a word");
    const std::string name = pair.first.Scalar();
    if (std::find(valid.begin(), valid.end(), name) == valid.end())
      fail(ErrorCode::usage, key, fmt::format("unknown key \"{}\"", name),
           valid.empty() ? of + " has no keys" : fmt::format("valid keys of {}: {}", of, joined(valid)));
    const std::string where = at.where.empty() ? name : at.where + "." + name;
    if (!map.emplace(name, Value{pair.second, where}).second)
      fail(ErrorCode::input, key, fmt::format("key \"{}\" stands here twice", name), "keep one of them");
    if (pair.second.IsNull()) fail(ErrorCode::input, key, fmt::format("key \"{}\" has no value", name), "give it one or leave it out");
  }
  return map;
}

std::vector<Value> PlanReader::elements(const Value& at) const {
  if (!at.node.IsSequence()) wrong_type(at, "a list");
  if (at.node.size() == 0) fail(ErrorCode::input, at, "the list is empty", "give at least one value");
  std::vector<Value> list;
  for (size_t i = 0; i < at.node.size(); ++i) list.push_back({at.node[i], fmt::format("{}[{}]", at.where, i)});
  return list;
}

std::vector<Value> PlanReader::each(const Value& at) const {
  return at.node.IsSequence() ? elements(at) : std::vector<Value>{at};
}

std::vector<Value> PlanReader::levels(const Value& at) const {
  if (!at.node.IsMap()) return {at};
  const auto map = entries(at, {"choose"}, at.where);
  const auto choose = map.find("choose");
  if (choose == map.end()) fail(ErrorCode::input, at, "expected {choose: [..]}, found an empty map");
  return elements(choose->second);
}

std::string PlanReader::text(const Value& at, const std::string& expected) const {
  if (!at.node.IsScalar() || at.node.Scalar().empty()) wrong_type(at, expected);
  return at.node.Scalar();
}

int64_t PlanReader::integer(const Value& at, int64_t min, int64_t max) const {
  if (!at.node.IsScalar()) wrong_type(at, "an integer");
  const std::string& s = at.node.Scalar();
  char* end = nullptr;
  errno = 0;
  const long long value = std::strtoll(s.c_str(), &end, 10);
  const bool digits = !s.empty() && !std::isspace(static_cast<unsigned char>(s[0])) && *end == '\0';
  if (!digits) wrong_type(at, "an integer");
  if (errno != 0 || value < min || value > max)
    fail(ErrorCode::usage, at, fmt::format("{} is out of range: expected an integer from {} to {}", s, min, max));
  return value;
}

double PlanReader::number(const Value& at, double min, double max, bool open_min) const {
  if (!at.node.IsScalar()) wrong_type(at, "a number");
  const std::string& s = at.node.Scalar();
  char* end = nullptr;
  const double value = std::strtod(s.c_str(), &end);
  const bool digits = !s.empty() && !std::isspace(static_cast<unsigned char>(s[0])) && *end == '\0';
  if (!digits) wrong_type(at, "a number");
  if (!std::isfinite(value) || value < min || value > max || (open_min && value == min))
    fail(ErrorCode::usage, at, fmt::format("{} is out of range: expected a number {} {} to {}", s, open_min ? "above" : "from", min, max));
  return value;
}

std::string PlanReader::one_of(const Value& at, const Names& valid) const {
  const std::string value = text(at, "one of " + joined(valid));
  if (std::find(valid.begin(), valid.end(), value) == valid.end())
    fail(ErrorCode::usage, at, fmt::format("unknown value \"{}\"", value), "valid values: " + joined(valid));
  return value;
}

int64_t PlanReader::ram(const Value& at) const {
  const std::string value = text(at, "an amount of memory or a profile");
  // "8GB" is a profile and the same amount; only a slash needs the profile's rule.
  return placed(at, [&] { return value.find('/') != std::string::npos ? profile_ram(value) : parse_memory(value); });
}

template <class Entry>
Settings<MethodSpec> PlanReader::choice(const Value& at, std::vector<Entry> MethodSpec::*member,
                                        const std::function<Entry(const Value&)>& parse) const {
  Settings<MethodSpec> settings;
  for (const Value& level : each(at)) {
    std::vector<Entry> values;
    for (const Value& v : levels(level)) values.push_back(parse(v));
    std::sort(values.begin(), values.end());
    values.erase(std::unique(values.begin(), values.end()), values.end());
    settings.push_back([member, values](MethodSpec& m) { m.*member = values; });
  }
  return settings;
}

Device PlanReader::device(const Value& at) const {
  Device d;
  const auto map = entries(at, {"ram", "threads", "profile", "over"}, "device");
  for (const auto& [key, value] : map) {
    if (key == "ram") d.ram = ram(value);
    if (key == "threads") d.threads = static_cast<int>(integer(value, 1, 4096));
    if (key == "over") d.skip_over = one_of(value, {"refuse", "skip"}) == "skip";
    if (key != "profile") continue;
    if (map.count("ram")) fail(ErrorCode::input, value, "device has both ram and profile", "give one of them");
    d.profile = text(value, "a profile");
    d.ram = placed(value, [&] { return profile_ram(d.profile); });
  }
  return d;
}

std::vector<int64_t> PlanReader::seeds(const Value& at) const {
  std::vector<int64_t> list;
  if (at.node.IsSequence()) {
    for (const Value& v : elements(at)) {
      list.push_back(integer(v, 0));
      if (std::count(list.begin(), list.end(), list.back()) > 1) fail(ErrorCode::input, v, fmt::format("seed {} stands here twice", list.back()));
    }
  } else {
    const int64_t n = integer(at, 1, 10000);
    for (int64_t i = 0; i < n; ++i) list.push_back(i);
  }
  return list;
}

// A number, or a multiple of the rank: r, 2r, r/2, 1.5r.
std::function<void(MethodSpec&)> PlanReader::alpha(const Value& at) const {
  static const std::string kAlpha = "a number or a multiple of the rank such as 2r or r/2";
  const std::string s = text(at, kAlpha);
  const size_t r = s.find('r');
  if (r == std::string::npos) {
    const char last = s.back();
    if (last != '.' && !std::isdigit(static_cast<unsigned char>(last))) wrong_type(at, kAlpha);
    const double value = number(at, 0, 1e6, true);
    return [value](MethodSpec& m) { m.alpha = value; };
  }
  const std::string before = s.substr(0, r), after = s.substr(r + 1);
  char* end = nullptr;
  const double times = before.empty() ? 1 : std::strtod(before.c_str(), &end);
  const bool good_times = before.empty() || *end == '\0';
  const bool divides = after.size() > 1 && after[0] == '/';
  const double over = divides ? std::strtod(after.c_str() + 1, &end) : 1;
  const bool good_over = after.empty() || (divides && *end == '\0');
  const double factor = times / over;
  if (!good_times || !good_over || !(factor > 0) || !std::isfinite(factor)) wrong_type(at, kAlpha);
  return [factor](MethodSpec& m) { m.alpha = factor * static_cast<double>(m.rank); };
}

std::vector<MethodSpec> PlanReader::methods(const Value& at) const {
  std::vector<MethodSpec> all;
  for (const Value& v : each(at)) {
    const bool is_map = v.node.IsMap();
    if (is_map && !v.node["name"]) fail(ErrorCode::input, v, "a method needs a name", "for example {name: lora, rank: 4}");
    const Value name_at = is_map ? Value{v.node["name"], v.where + ".name"} : v;
    const std::string name = text(name_at, "the name of a method");
    const Method& method = placed(name_at, [&]() -> const Method& { return find_method(name); });
    Names valid = {"name"};
    if (method.retrieves) valid.insert(valid.end(), {"retriever", "embedder", "k", "prompt_tokens"});
    if (method.learns) valid.insert(valid.end(), {"lr", "batch"});
    if (method.adapter) {
      const AdapterKind kind = method.adapter(MethodSpec{}).kind;
      if (kind == AdapterKind::lora) valid.insert(valid.end(), {"rank", "alpha", "dropout", "targets"});
      if (kind == AdapterKind::prompt || kind == AdapterKind::prefix) valid.push_back("n_virtual");
    }
    const std::map<std::string, Value> map = is_map ? entries(v, valid, "method " + name) : std::map<std::string, Value>();

    MethodSpec base;
    base.name = name;
    if (method.learns) base.lr = {method.lr};
    std::vector<MethodSpec> variants = {base};
    const auto apply = [&](const char* key, const std::function<Settings<MethodSpec>(const Value&)>& parse) {
      const auto found_at = map.find(key);
      if (found_at != map.end()) multiply<MethodSpec>(variants, parse(found_at->second), [&](size_t n) { count(v, n); });
    };
    using Int = std::function<int64_t(const Value&)>;
    using Number = std::function<double(const Value&)>;
    using Text = std::function<std::string(const Value&)>;
    const auto integers = [&](int64_t MethodSpec::*member, int64_t max) {
      return [this, member, max](const Value& x) {
        return setting<int64_t, MethodSpec>(x, member, Int([this, max](const Value& y) { return integer(y, 1, max); }));
      };
    };
    apply("rank", integers(&MethodSpec::rank, 65536));
    apply("alpha", [&](const Value& x) {
      Settings<MethodSpec> list;
      for (const Value& y : each(x)) list.push_back(alpha(y));
      return list;
    });
    apply("dropout", [&](const Value& x) {
      return setting<double, MethodSpec>(x, &MethodSpec::dropout, Number([&](const Value& y) {
        const double p = number(y, 0, 1);
        if (p >= 1) fail(ErrorCode::usage, y, "dropout must be below 1");
        return p;
      }));
    });
    apply("targets", [&](const Value& x) {
      return setting<std::string, MethodSpec>(x, &MethodSpec::targets, Text([&](const Value& y) { return text(y, "all-linear or a regular expression"); }));
    });
    apply("n_virtual", integers(&MethodSpec::n_virtual, 4096));
    apply("batch", integers(&MethodSpec::batch, 65536));
    apply("prompt_tokens", integers(&MethodSpec::prompt_tokens, 1 << 20));
    apply("retriever", [&](const Value& x) {
      return setting<std::string, MethodSpec>(x, &MethodSpec::retriever, Text([&](const Value& y) { return one_of(y, retriever_names()); }));
    });
    apply("embedder", [&](const Value& x) {
      return setting<std::string, MethodSpec>(x, &MethodSpec::embedder, Text([&](const Value& y) { return text(y, "the path of a model"); }));
    });
    // It belongs to dense alone, so that a list of retrievers may name it once.
    bool dense = false;
    for (MethodSpec& m : variants) {
      dense = dense || m.retriever == "dense";
      if (m.retriever != "dense") m.embedder.clear();
    }
    if (map.count("embedder") && !dense) fail(ErrorCode::usage, map.at("embedder"), "only the retriever dense uses an embedder", "give retriever: dense");
    apply("k", [&](const Value& x) { return choice<int64_t>(x, &MethodSpec::k, [&](const Value& y) { return integer(y, 1, 65536); }); });
    apply("lr", [&](const Value& x) { return choice<double>(x, &MethodSpec::lr, [&](const Value& y) { return number(y, 0, 10, true); }); });
    all.insert(all.end(), variants.begin(), variants.end());
  }
  return all;
}

Settings<PlanReader::Draft> PlanReader::budgets(const Value& at) const {
  constexpr int64_t kMaxSteps = 100000000;
  Settings<Draft> settings;
  for (const Value& v : each(at)) {
    const auto map = entries(v, {"steps", "seconds", "curve"}, "budget");
    const auto steps = map.find("steps"), seconds_at = map.find("seconds"), curve_at = map.find("curve");
    if ((steps == map.end()) == (seconds_at == map.end())) fail(ErrorCode::input, v, "a budget needs either steps or seconds");
    std::vector<int64_t> curve;
    if (curve_at != map.end())
      for (const Value& y : each(curve_at->second)) curve.push_back(integer(y, 0, kMaxSteps));
    std::sort(curve.begin(), curve.end());
    curve.erase(std::unique(curve.begin(), curve.end()), curve.end());
    if (seconds_at != map.end()) {
      for (const Value& y : each(seconds_at->second)) {
        const double seconds = number(y, 0, 1e7, true);
        settings.push_back([seconds, curve](Draft& d) {
          d.seconds = seconds;
          d.curve = curve;
          d.has_budget = true;
        });
      }
      continue;
    }
    for (const Value& level : each(steps->second)) {
      std::vector<int64_t> values;
      for (const Value& y : levels(level)) values.push_back(integer(y, 1, kMaxSteps));
      std::sort(values.begin(), values.end());
      values.erase(std::unique(values.begin(), values.end()), values.end());
      settings.push_back([values, curve](Draft& d) {
        d.config.steps = values;
        d.curve = curve;
        d.has_budget = true;
      });
    }
  }
  return settings;
}

std::vector<WorldDials> PlanReader::worlds(const Value& at, const Common& common) const {
  const auto map = entries(at, {"task", "people", "queries", "history", "keys", "key", "classes", "noise", "person", "overlap", "drift", "seed"}, "world");
  WorldDials base;
  if (common.people > 0) base.people = common.people;
  if (common.queries > 0) base.queries = common.queries;
  std::vector<WorldDials> all = {base};
  using Int = std::function<int64_t(const Value&)>;
  using Number = std::function<double(const Value&)>;
  using Text = std::function<std::string(const Value&)>;
  const auto integers = [&](int64_t WorldDials::*member, int64_t min, int64_t max) {
    return [this, member, min, max](const Value& x) {
      return setting<int64_t, WorldDials>(x, member, Int([this, min, max](const Value& y) { return integer(y, min, max); }));
    };
  };
  const auto shares = [&](double WorldDials::*member) {
    return [this, member](const Value& x) {
      return setting<double, WorldDials>(x, member, Number([this](const Value& y) { return number(y, 0, 1); }));
    };
  };
  const auto words = [&](std::string WorldDials::*member, const Names& valid) {
    return [this, member, valid](const Value& x) {
      return setting<std::string, WorldDials>(x, member, Text([this, valid](const Value& y) { return one_of(y, valid); }));
    };
  };
  const auto apply = [&](const char* key, const std::function<Settings<WorldDials>(const Value&)>& parse) {
    const auto found_at = map.find(key);
    if (found_at != map.end()) multiply<WorldDials>(all, parse(found_at->second), [&](size_t n) { count(at, n); });
  };
  apply("task", [&](const Value& x) {
    return setting<std::string, WorldDials>(x, &WorldDials::task, Text([&](const Value& y) {
      const std::string name = text(y, "the name of a task");
      return placed(y, [&] { return std::string(find_task(name).name); });
    }));
  });
  apply("people", integers(&WorldDials::people, 1, 1000000));
  apply("queries", integers(&WorldDials::queries, 1, 1000000));
  apply("history", integers(&WorldDials::history, 1, 1000000));
  apply("keys", integers(&WorldDials::keys, 0, 1000000));
  apply("key", words(&WorldDials::key, {"topic", "name"}));
  apply("classes", integers(&WorldDials::classes, 2, 1000));
  apply("noise", shares(&WorldDials::noise));
  apply("person", shares(&WorldDials::person));
  apply("overlap", words(&WorldDials::overlap, {"lexical", "latent"}));
  apply("drift", shares(&WorldDials::drift));
  apply("seed", [&](const Value& x) {
    Settings<WorldDials> list;
    for (const Value& y : each(x)) {
      const auto seed = static_cast<uint64_t>(integer(y, 0));
      list.push_back([seed](WorldDials& w) { w.seed = seed; });
    }
    return list;
  });
  return all;
}

Settings<PlanReader::Draft> PlanReader::tasks(const Value& at, const Common& common) const {
  Settings<Draft> settings;
  for (const Value& v : each(at)) {
    const PlanMark mark = mark_of(v.node);
    const auto map = entries(v, {"world", "lamp", "k", "split", "part", "people", "queries"}, "task");
    if (map.count("world")) {
      for (const auto& [key, value] : map)
        if (key != "world") fail(ErrorCode::usage, value, "unknown key \"" + key + "\" beside world", "dials stand inside world: {..}");
      for (const WorldDials& w : worlds(map.at("world"), common))
        settings.push_back([w, mark](Draft& d) {
          d.config.task = {};
          d.config.task.world = w;
          d.task_at = mark;
        });
      continue;
    }
    for (const char* key : {"lamp", "k"})
      if (!map.count(key)) fail(ErrorCode::input, v, fmt::format("a task needs world, or lamp and k; \"{}\" is missing", key),
                                "for example {world: {task: LaMP_3}} or {lamp: DIR, k: LaMP_3, split: time}");
    TaskSpec base;
    base.is_world = false;
    base.lamp_dir = text(map.at("lamp"), "a folder");
    base.people = map.count("people") ? integer(map.at("people"), 1) : common.people;
    base.queries = map.count("queries") ? integer(map.at("queries"), 1) : common.queries;
    if (map.count("part")) base.part = one_of(map.at("part"), {"train", "dev"});
    const std::vector<Value> splits = map.count("split") ? each(map.at("split")) : std::vector<Value>();
    for (const Value& k : each(map.at("k"))) {
      const std::string name = text(k, "the name of a task");
      base.lamp_task = placed(k, [&] { return std::string(find_task(name).name); });
      for (size_t i = 0; i < std::max<size_t>(1, splits.size()); ++i) {
        if (!splits.empty()) base.split = one_of(splits[i], {"user", "time"});
        settings.push_back([base, mark](Draft& d) {
          d.config.task = base;
          d.task_at = mark;
        });
      }
    }
  }
  return settings;
}

const Names kGridKeys = {"name", "model", "compression", "method", "history", "budget", "task", "precision", "ram", "seeds"};

PlanGrid PlanReader::grid(const Value& at, const Common& common, const Plan& plan) {
  auto map = entries(at, kGridKeys, "a grid");
  PlanGrid grid;
  grid.at = mark_of(at.node);
  if (!map.count("name")) fail(ErrorCode::input, at, "a grid needs a name");
  grid.name = text(map.at("name"), "a name");
  for (const PlanGrid& other : plan.grids)
    if (other.name == grid.name) fail(ErrorCode::input, map.at("name"), fmt::format("there is another grid \"{}\"", grid.name), "give each a name of its own");
  for (const auto& [key, value] : common.defaults) map.emplace(key, value);
  for (const char* key : {"model", "method", "task"})
    if (!map.count(key)) fail(ErrorCode::input, at, fmt::format("grid \"{}\" needs \"{}\", and defaults have none", grid.name, key));

  Draft base;
  base.config.ram = plan.device.ram;
  std::vector<Draft> drafts = {base};
  const auto apply = [&](const char* key, const std::function<Settings<Draft>(const Value&)>& parse) {
    const auto found_at = map.find(key);
    if (found_at != map.end()) multiply<Draft>(drafts, parse(found_at->second), [&](size_t n) { count(at, n); });
  };
  apply("model", [&](const Value& x) {
    Settings<Draft> list;
    for (const Value& y : each(x)) {
      const std::string name = text(y, "zoo:NAME or a path");
      const PlanMark mark = mark_of(y.node);
      list.push_back([name, mark](Draft& d) {
        d.config.model = name;
        d.model_at = mark;
      });
    }
    return list;
  });
  apply("compression", [&](const Value& x) {
    Settings<Draft> list;
    for (const Value& y : each(x)) {
      const std::string name = text(y, "none or METHOD:SPEC");
      const std::string full = placed(y, [&] { return find_compression(name).name(); });
      list.push_back([full](Draft& d) { d.config.compression = full; });
    }
    return list;
  });
  apply("method", [&](const Value& x) {
    Settings<Draft> list;
    for (const MethodSpec& m : methods(x)) list.push_back([m](Draft& d) { d.config.method = m; });
    return list;
  });
  apply("history", [&](const Value& x) {
    Settings<Draft> list;
    for (const Value& y : each(x)) {
      const int64_t n = y.node.IsScalar() && y.node.Scalar() == "all" ? 0 : integer(y, 1);
      list.push_back([n](Draft& d) { d.config.history = n; });
    }
    return list;
  });
  apply("budget", [&](const Value& x) { return budgets(x); });
  apply("task", [&](const Value& x) { return tasks(x, common); });
  apply("precision", [&](const Value& x) {
    Settings<Draft> list;
    for (const Value& y : each(x)) {
      const std::string precision = one_of(y, {"f32", "bf16", "int8_act"});
      list.push_back([precision](Draft& d) { d.config.precision = precision; });
    }
    return list;
  });
  apply("ram", [&](const Value& x) {
    Settings<Draft> list;
    for (const Value& y : each(x)) {
      const int64_t bytes = ram(y);
      list.push_back([bytes](Draft& d) { d.config.ram = bytes; });
    }
    return list;
  });
  const std::vector<int64_t> seed_list = map.count("seeds") ? seeds(map.at("seeds")) : common.seeds;
  count(at, drafts.size() * seed_list.size());
  for (Draft& d : drafts) {
    CellConfig& c = d.config;
    if (find_method(c.method.name).learns) {
      if (!d.has_budget)
        fail(ErrorCode::input, at, fmt::format("grid \"{}\": method {} learns and has no budget", grid.name, c.method.name), "for example budget: {steps: 80}");
      c.curve = d.curve;
    } else {
      c.steps.clear();
      d.seconds = 0;
    }
    if (overrides_.precision) c.precision = *overrides_.precision;
    if (overrides_.ram) c.ram = *overrides_.ram;
    for (const int64_t s : seed_list) {
      PlanCell cell{c, d.seconds, d.model_at, d.task_at, grid.at};
      cell.config.seed = static_cast<uint64_t>(s) + overrides_.seed;
      if (c.task.is_world) cell.config.task.world.seed = c.task.world.seed + cell.config.seed;
      if (!cell.config.steps.empty()) {
        const int64_t last = cell.config.steps.back();
        auto& curve = cell.config.curve;
        curve.erase(std::upper_bound(curve.begin(), curve.end(), last), curve.end());
      }
      grid.cells.push_back(cell);
    }
  }
  cells_ += grid.cells.size();
  return grid;
}

Plan PlanReader::read(const YAML::Node& node, const std::string& text_of_plan) {
  const Value root{node, ""};
  const auto map = entries(root, {"name", "device", "seeds", "people", "queries", "precision", "metrics", "defaults", "grids"}, "a plan");
  Plan plan;
  plan.path = path_;
  plan.text = text_of_plan;
  Common common;
  for (const char* key : {"name", "grids"})
    if (!map.count(key)) fail(ErrorCode::input, root, fmt::format("a plan needs \"{}\"", key));
  plan.name = text(map.at("name"), "a name");
  for (const unsigned char c : plan.name)
    if (c < 32) fail(ErrorCode::input, map.at("name"), "a name has no control characters");
  if (map.count("device")) plan.device = device(map.at("device"));
  if (overrides_.ram) plan.device.ram = *overrides_.ram;
  if (overrides_.threads) plan.device.threads = *overrides_.threads;
  if (map.count("seeds")) common.seeds = seeds(map.at("seeds"));
  if (map.count("people")) common.people = integer(map.at("people"), 1, 1000000);
  if (map.count("queries")) common.queries = integer(map.at("queries"), 1, 1000000);
  if (map.count("metrics")) {
    std::set<std::string> names;
    for (const Task* task : all_tasks())
      for (const std::string& name : metric_names(*task)) names.insert(name);
    for (const Value& v : each(map.at("metrics"))) plan.metrics.push_back(one_of(v, Names(names.begin(), names.end())));
  }
  if (map.count("defaults")) {
    Names valid(kGridKeys.begin() + 1, kGridKeys.end());
    common.defaults = entries(map.at("defaults"), valid, "defaults");
  }
  if (map.count("precision")) common.defaults.emplace("precision", map.at("precision"));
  for (const Value& v : elements(map.at("grids"))) plan.grids.push_back(grid(v, common, plan));
  return plan;
}

}  // namespace

std::string plan_place(const std::string& path, PlanMark mark) { return fmt::format("{}:{}:{}: ", path, mark.line, mark.column); }

nlohmann::ordered_json PlanOverrides::to_json() const {
  nlohmann::ordered_json json = nlohmann::ordered_json::object();
  if (ram) json["ram"] = *ram;
  if (precision) json["precision"] = *precision;
  if (seed) json["seed"] = seed;
  return json;
}

Plan parse_plan(const std::string& text, const std::string& path, const PlanOverrides& overrides) {
  YAML::Node root;
  try {
    root = YAML::Load(text);
  } catch (const YAML::Exception& e) {
    const PlanMark mark = e.mark.is_null() ? PlanMark{} : PlanMark{e.mark.line + 1, e.mark.column + 1};
    throw Error(ErrorCode::input, plan_place(path, mark) + "is not YAML: " + e.msg, "check indentation, colons and brackets");
  }
  try {
    return PlanReader(path, overrides).read(root, text);
  } catch (const YAML::Exception& e) {
    throw Error(ErrorCode::input, plan_place(path, {e.mark.line + 1, e.mark.column + 1}) + e.msg, {});
  }
}

Plan read_plan(const std::string& path, const PlanOverrides& overrides) {
  return parse_plan(read_file(path, size_t{1} << 20), path, overrides);
}

std::vector<std::string> varying_factors(const std::vector<const CellConfig*>& cells) {
  // In the order of first appearance, so that reports read like the configuration. group: cells among which the setting
  // is compared; the defaults of two methods differ without being a factor.
  std::vector<std::pair<std::string, std::map<std::string, std::set<std::string>>>> values;
  const auto note = [&](const std::string& name, const nlohmann::ordered_json& value, const std::string& group = {}) {
    auto it = std::find_if(values.begin(), values.end(), [&](const auto& v) { return v.first == name; });
    if (it == values.end()) it = values.insert(values.end(), {name, {}});
    it->second[group].insert(value.dump());
  };
  for (const CellConfig* c : cells) {
    const nlohmann::ordered_json json = c->to_json();
    const Method& method = find_method(c->method.name);
    const bool adapter = method.adapter != nullptr;
    const AdapterKind kind = adapter ? method.adapter(c->method).kind : AdapterKind::ia3;
    for (const char* key : {"model", "compression", "history", "seed", "precision", "ram"}) note(key, json[key]);
    if (method.learns) note("steps", json["steps"]);
    for (const auto& item : json["method"].items()) {
      const std::string& key = item.key();
      bool applies = key == "name";
      if (key == "rank" || key == "alpha" || key == "dropout" || key == "targets") applies = adapter && kind == AdapterKind::lora;
      if (key == "n_virtual") applies = adapter && (kind == AdapterKind::prompt || kind == AdapterKind::prefix);
      if (key == "lr" || key == "batch") applies = method.learns;
      if (key == "retriever" || key == "k" || key == "prompt_tokens") applies = method.retrieves;
      if (applies) note("method." + key, item.value(), key == "name" ? "" : c->method.name);
    }
    const bool world = c->task.is_world;
    const nlohmann::ordered_json& task = world ? json["task"]["world"] : json["task"];
    for (const auto& item : task.items())
      if (!world || item.key() != "seed") note((world ? "task.world." : "task.") + item.key(), item.value());
  }
  std::vector<std::string> names;
  for (const auto& entry : values)
    if (std::any_of(entry.second.begin(), entry.second.end(), [](const auto& group) { return group.second.size() > 1; }))
      names.push_back(entry.first);
  return names;
}

}  // namespace thimble::lab
