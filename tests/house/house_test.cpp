// The rules of the house, read from the sources: who may include whom, which headers and functions have a single home,
// which macros exist, and that every folder explains itself. Each rule is a function of a list of files, so that it is
// first shown to notice what it forbids.
#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <map>
#include <set>
#include <string>
#include <vector>

namespace thimble {
namespace {

namespace fs = std::filesystem;
using Lines = std::vector<std::string>;

struct SourceFile {
  std::string path;  // from the root of the repository, with forward slashes
  std::string text;
};
using Files = std::vector<SourceFile>;

bool starts_with(const std::string& text, const std::string& start) {
  return text.compare(0, start.size(), start) == 0;
}
bool ends_with(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}
std::string top_folder(const std::string& path) { return path.substr(0, path.find('/')); }
bool is_source(const std::string& path) {
  for (const char* end : {".cpp", ".h", ".c", ".def"})
    if (ends_with(path, end)) return true;
  return false;
}

Lines lines_of(const std::string& text) {
  Lines lines;
  size_t at = 0;
  while (at < text.size()) {
    const size_t end = std::min(text.find('\n', at), text.size());
    lines.push_back(text.substr(at, end - at));
    at = end + 1;
  }
  return lines;
}

// The text without comments and without what stands inside quotation marks; line breaks stay. Of raw strings only the
// plain delimiter R"( )" is known.
std::string code_of(const std::string& text) {
  std::string code;
  for (size_t i = 0; i < text.size();) {
    if (text.compare(i, 2, "//") == 0) {
      i = std::min(text.find('\n', i), text.size());
    } else if (text.compare(i, 2, "/*") == 0) {
      const size_t end = std::min(text.find("*/", i), text.size());
      code.append(static_cast<size_t>(std::count(text.begin() + long(i), text.begin() + long(end), '\n')), '\n');
      i = std::min(end + 2, text.size());
    } else if (text.compare(i, 3, "R\"(") == 0) {
      const size_t end = std::min(text.find(")\"", i), text.size());
      code.append(static_cast<size_t>(std::count(text.begin() + long(i), text.begin() + long(end), '\n')), '\n');
      i = std::min(end + 2, text.size());
    } else if (text[i] == '\'' && i > 0 && std::isalnum(static_cast<unsigned char>(text[i - 1]))) {
      ++i;  // a digit separator
    } else if (text[i] == '"' || text[i] == '\'') {
      const char quote = text[i++];
      while (i < text.size() && text[i] != quote && text[i] != '\n') i += text[i] == '\\' ? 2 : 1;
      code += quote;
      code += quote;
      if (i < text.size() && text[i] == quote) ++i;
    } else {
      code += text[i++];
    }
  }
  return code;
}

bool word_char(char c) { return std::isalnum(static_cast<unsigned char>(c)) || c == '_'; }

// Whether `word` stands in the text with no word character on either side.
bool has_word(const std::string& text, const std::string& word) {
  for (size_t at = text.find(word); at != std::string::npos; at = text.find(word, at + 1)) {
    const size_t end = at + word.size();
    if ((at == 0 || !word_char(text[at - 1])) && (end == text.size() || !word_char(text[end]))) return true;
  }
  return false;
}

struct Directive {
  int line;          // from 1
  std::string name;  // include, define, pragma ...
  std::string rest;
};
std::vector<Directive> directives_of(const std::string& text) {
  std::vector<Directive> found;
  int number = 0;
  for (const std::string& line : lines_of(text)) {
    ++number;
    size_t i = line.find_first_not_of(" \t");
    if (i == std::string::npos || line[i] != '#') continue;
    i = std::min(line.find_first_not_of(" \t", i + 1), line.size());
    size_t end = i;
    while (end < line.size() && word_char(line[end])) ++end;
    const size_t rest = std::min(line.find_first_not_of(" \t", end), line.size());
    found.push_back({number, line.substr(i, end - i), line.substr(rest)});
  }
  return found;
}

std::string place(const SourceFile& file, int line) { return file.path + ":" + std::to_string(line) + ": "; }

// The layers, lowest first. bench and tests stand above all; bench borrows the kernels' problems from tests.
const std::map<std::string, std::set<std::string>>& may_include() {
  static const std::map<std::string, std::set<std::string>> rows = {
      {"kernels", {"kernels"}},
      {"tensor", {"kernels", "tensor"}},
      {"quant", {"kernels", "tensor", "quant"}},
      {"models", {"kernels", "tensor", "quant", "models"}},
      {"train", {"kernels", "tensor", "quant", "models", "train"}},
      {"rag", {"kernels", "tensor", "quant", "models", "rag"}},
      {"tools", {"kernels", "tensor", "quant", "models", "train", "rag", "tools"}},
      {"bench", {"kernels", "tensor", "quant", "models", "train", "rag", "tools", "tests", "bench"}},
      {"tests", {"kernels", "tensor", "quant", "models", "train", "rag", "tools", "tests"}},
  };
  return rows;
}

Lines layer_violations(const Files& files) {
  Lines found;
  std::set<std::string> paths;
  for (const SourceFile& file : files) paths.insert(file.path);
  for (const SourceFile& file : files) {
    if (!is_source(file.path)) continue;
    const auto row = may_include().find(top_folder(file.path));
    if (row == may_include().end()) {
      found.push_back(file.path + ": a source outside the layers");
      continue;
    }
    for (const Directive& d : directives_of(file.text)) {
      if (d.name != "include" || d.rest.empty() || d.rest[0] != '"') continue;
      const std::string target = d.rest.substr(1, d.rest.find('"', 1) - 1);
      if (paths.count(target) == 0)
        found.push_back(place(file, d.line) + target + " is not a path from the root of the repository");
      else if (row->second.count(top_folder(target)) == 0)
        found.push_back(place(file, d.line) + row->first + " may not include " + target);
    }
  }
  return found;
}

Lines home_violations(const Files& files) {
  // Loaded into other programs, it cannot use tensor/env.
  static const std::string kInjected = "tests/io/write_fault.c";
  struct Home {
    const char* word;
    bool header;  // a header's name, else a function or pragma in the code
    const char* path;
  };
  static const Home homes[] = {
      {"omp.h", true, "tensor/parallel.cpp"},        {"cblas.h", true, "tensor/blas.cpp"},
      {"lapack.h", true, "tensor/blas.cpp"},         {"lapacke.h", true, "tensor/blas.cpp"},
      {"xsimd.hpp", true, "kernels/simd/simd.h"},    {"xsimd", true, "kernels/simd/simd.h"},
      {"getenv", false, "tensor/env.cpp"},           {"secure_getenv", false, "tensor/env.cpp"},
      {"#pragma omp", false, "tensor/parallel.cpp"},
  };
  Lines found;
  for (const SourceFile& file : files) {
    if (!is_source(file.path)) continue;
    const std::string code = code_of(file.text);
    for (const Home& home : homes) {
      if (file.path == home.path || file.path == kInjected) continue;
      if (!home.header) {
        if (has_word(code, home.word)) found.push_back(file.path + ": " + home.word + " belongs in " + home.path);
        continue;
      }
      for (const Directive& d : directives_of(file.text))
        if (d.name == "include" && has_word(d.rest, home.word))
          found.push_back(place(file, d.line) + home.word + " belongs in " + home.path);
    }
  }
  return found;
}

// Sources that are compiled once per tier see nothing whose inline functions the linker could merge across tiers.
Lines tier_include_violations(const Files& files) {
  static const std::set<std::string> plain = {"<cstddef>", "<cstdint>", "<immintrin.h>"};
  Lines found;
  for (const SourceFile& file : files) {
    if (!starts_with(file.path, "kernels/simd/")) continue;
    for (const Directive& d : directives_of(file.text)) {
      if (d.name != "include" || d.rest[0] != '<') continue;
      if (plain.count(d.rest) == 0 && !(file.path == "kernels/simd/simd.h" && d.rest == "<xsimd/xsimd.hpp>"))
        found.push_back(place(file, d.line) + d.rest + " in a source that is compiled for several tiers");
    }
  }
  return found;
}

// The project's own macros. THIMBLE_HAS_… answers a question about compiler or machine inside one .cpp file; tests may
// define THIMBLE_TEST_… . (THIMBLE_ISA is defined by CMake.)
Lines macro_violations(const Files& files) {
  static const std::set<std::string> macros = {"THIMBLE_CHECK", "THIMBLE_DCHECK", "THIMBLE_ZONE", "THIMBLE_ISA"};
  Lines found;
  for (const SourceFile& file : files) {
    if (!is_source(file.path)) continue;
    for (const Directive& d : directives_of(file.text)) {
      if (d.name != "define" || !starts_with(d.rest, "THIMBLE_")) continue;
      size_t end = 0;
      while (end < d.rest.size() && word_char(d.rest[end])) ++end;
      const std::string name = d.rest.substr(0, end);
      const bool function_like = end < d.rest.size() && d.rest[end] == '(';
      const bool answer = starts_with(name, "THIMBLE_HAS_") && ends_with(file.path, ".cpp") && !function_like;
      const bool test = starts_with(name, "THIMBLE_TEST_") && top_folder(file.path) == "tests";
      if (macros.count(name) == 0 && !answer && !test)
        found.push_back(place(file, d.line) + name + " is one macro too many");
    }
  }
  return found;
}

Lines text_violations(const Files& files) {
  // In two halves, so that this file does not find itself.
  static const std::vector<std::string> folders = {
      "/wo"
      "rk",
      "/tm"
      "p",
      "/ho"
      "me",
      "/ro"
      "ot"};
  static const std::vector<std::string> later = {
      "TO"
      "DO",
      "FIX"
      "ME",
      "HA"
      "CK"};
  Lines found;
  for (const SourceFile& file : files) {
    int number = 0;
    for (const std::string& line : lines_of(file.text)) {
      ++number;
      for (const std::string& folder : folders)
        for (size_t at = line.find(folder); at != std::string::npos; at = line.find(folder, at + 1)) {
          const size_t end = at + folder.size();
          const bool inside =
              at > 0 && (word_char(line[at - 1]) || std::string("./-}$)").find(line[at - 1]) != std::string::npos);
          if (!inside && (end == line.size() || !word_char(line[end])))
            found.push_back(place(file, number) + "a path of one machine: " + folder);
        }
      for (const std::string& word : later)
        if (has_word(line, word))
          found.push_back(place(file, number) + word + ": do it, or write down the limit as a fact");
    }
  }
  return found;
}

Lines form_violations(const Files& files) {
  constexpr size_t kLinesMax = 1000;  // a file is read in one sitting
  Lines found;
  for (const SourceFile& file : files) {
    if (!is_source(file.path)) continue;
    const size_t count = lines_of(file.text).size();
    if (count > kLinesMax)
      found.push_back(file.path + ": " + std::to_string(count) + " lines; at most " + std::to_string(kLinesMax));
    if (!ends_with(file.path, ".h")) continue;
    if (!starts_with(file.text, "//")) found.push_back(file.path + ": a header opens with a comment on what it is for");
    if (file.text.find("\n#pragma once\n") == std::string::npos) found.push_back(file.path + ": no #pragma once");
  }
  return found;
}

// A folder of the first level has a README of its own; a deeper one has its own or is described by its parent's.
Lines readme_violations(const Files& files) {
  std::set<std::string> folders, described;
  for (const SourceFile& file : files) {
    const size_t slash = file.path.rfind('/');
    if (slash == std::string::npos) continue;
    const std::string folder = file.path.substr(0, slash);
    folders.insert(folder);
    if (file.path.substr(slash + 1) == "README.md") described.insert(folder);
  }
  Lines found;
  for (const std::string& folder : folders) {
    const size_t slash = folder.rfind('/');
    const bool own = described.count(folder) > 0;
    if (!own && (slash == std::string::npos || described.count(folder.substr(0, slash)) == 0))
      found.push_back(folder + ": no README.md says what may be included here, who calls it and how to add one more");
  }
  return found;
}

// Relative links of the documents lead somewhere.
Lines link_violations(const Files& files, const std::function<bool(const std::string&)>& exists) {
  Lines found;
  for (const SourceFile& file : files) {
    if (!ends_with(file.path, ".md")) continue;
    int number = 0;
    for (const std::string& line : lines_of(file.text)) {
      ++number;
      for (size_t at = line.find("]("); at != std::string::npos; at = line.find("](", at + 1)) {
        std::string target = line.substr(at + 2, line.find(')', at) - at - 2);
        target = target.substr(0, target.find('#'));
        if (target.empty() || target.find("://") != std::string::npos) continue;
        const std::string path = (fs::path(file.path).parent_path() / target).lexically_normal().generic_string();
        if (!exists(path)) found.push_back(place(file, number) + "the link to " + target + " leads nowhere");
      }
    }
  }
  return found;
}

// Everything that is written by hand: no build outputs, no recorded data.
const Files& house() {
  static const Files files = [] {
    static const std::set<std::string> kinds = {".cpp", ".h",  ".c",   ".def",   ".md",
                                                ".txt", ".sh", ".awk", ".cmake", ".yaml"};
    const fs::path root = THIMBLE_SOURCE_DIR;
    Files list;
    for (auto it = fs::recursive_directory_iterator(root); it != fs::recursive_directory_iterator(); ++it) {
      const std::string name = it->path().filename().string();
      if (it->is_directory() && (name[0] == '.' || name == "data" || (it.depth() == 0 && name == "build"))) {
        it.disable_recursion_pending();
        continue;
      }
      if (!it->is_regular_file() || kinds.count(it->path().extension().string()) == 0) continue;
      std::ifstream in(it->path(), std::ios::binary);
      list.push_back(
          {fs::relative(it->path(), root).generic_string(), std::string(std::istreambuf_iterator<char>(in), {})});
    }
    return list;
  }();
  return files;
}

std::string joined(const Lines& lines) {
  std::string text;
  for (const std::string& line : lines) text += "  " + line + "\n";
  return text;
}

TEST(House, IsRead) {
  std::set<std::string> folders;
  for (const SourceFile& file : house()) folders.insert(top_folder(file.path));
  for (const auto& row : may_include()) EXPECT_EQ(folders.count(row.first), 1u) << row.first;
  EXPECT_GT(house().size(), 100u);
}

TEST(House, Layers) { EXPECT_EQ(joined(layer_violations(house())), ""); }
TEST(House, SingleHomes) { EXPECT_EQ(joined(home_violations(house())), ""); }
TEST(House, TierSourcesIncludePlainHeaders) { EXPECT_EQ(joined(tier_include_violations(house())), ""); }
TEST(House, Macros) { EXPECT_EQ(joined(macro_violations(house())), ""); }
TEST(House, NoMachinePathsNoPromises) { EXPECT_EQ(joined(text_violations(house())), ""); }
TEST(House, Form) { EXPECT_EQ(joined(form_violations(house())), ""); }
TEST(House, FoldersExplainThemselves) { EXPECT_EQ(joined(readme_violations(house())), ""); }
TEST(House, Links) {
  EXPECT_EQ(joined(link_violations(house(),
                                   [](const std::string& p) { return fs::exists(fs::path(THIMBLE_SOURCE_DIR) / p); })),
            "");
}

// A folder of tests that CMake does not know would never run.
TEST(House, EveryTestFolderIsBuilt) {
  std::string cmake;
  std::set<std::string> folders;
  for (const SourceFile& file : house()) {
    if (file.path == "tests/CMakeLists.txt") cmake = file.text;
    if (starts_with(file.path, "tests/") && ends_with(file.path, "_test.cpp"))
      folders.insert(file.path.substr(6, file.path.find('/', 6) - 6));
  }
  EXPECT_EQ(folders.count("house"), 1u);
  for (const std::string& folder : folders)
    EXPECT_NE(cmake.find("thimble_test_folder(" + folder + " "), std::string::npos) << folder;
}

TEST(Rules, Code) {
  EXPECT_EQ(code_of("a // b\nc /* d\n */ e"), "a \nc \n e");
  EXPECT_EQ(code_of("f(\"x // \\\" y\", 'z', 1'000)"), "f(\"\", '', 1000)");
  EXPECT_EQ(code_of("R\"(a\nb)\" c"), "\n c");
  EXPECT_TRUE(has_word("a getenv(b)", "getenv"));
  EXPECT_FALSE(has_word("my_getenv(b)", "getenv"));
}

TEST(Rules, LayersAreNoticed) {
  const Files low = {{"kernels/a.h", "#include \"tensor/b.h\"\n"}, {"tensor/b.h", "#include \"kernels/a.h\"\n"}};
  EXPECT_EQ(layer_violations(low).size(), 1u);
  EXPECT_EQ(layer_violations({{"train/a.h", ""}, {"rag/b.cpp", "  #  include \"train/a.h\""}}).size(), 1u);
  EXPECT_EQ(layer_violations({{"tests/x/a.h", ""}, {"tools/b.cpp", "#include \"tests/x/a.h\""}}).size(), 1u);
  EXPECT_EQ(layer_violations({{"tensor/b.h", ""}, {"tensor/c.cpp", "#include \"b.h\""}}).size(), 1u);
  EXPECT_EQ(layer_violations({{"attic/c.cpp", ""}}).size(), 1u);
  EXPECT_EQ(layer_violations({{"tools/a.h", ""}, {"tools/b.cpp", "#include \"tools/a.h\"\n#include <a.h>"}}).size(),
            0u);
}

TEST(Rules, HomesAreNoticed) {
  EXPECT_EQ(home_violations({{"tools/a.cpp", "#include <omp.h>"}}).size(), 1u);
  EXPECT_EQ(home_violations({{"bench/a.cpp", "#include <openblas/cblas.h>"}}).size(), 1u);
  EXPECT_GE(home_violations({{"kernels/simd/a.cpp", "#include <xsimd/xsimd.hpp>"}}).size(), 1u);
  EXPECT_EQ(home_violations({{"tests/a.cpp", "x = std::getenv(\"A\");"}}).size(), 1u);
  EXPECT_EQ(home_violations({{"tensor/gemm.cpp", "#pragma omp parallel"}}).size(), 1u);
  EXPECT_EQ(home_violations({{"tensor/env.cpp", "getenv(name)"}, {"tensor/env.h", "// calls getenv"}}).size(), 0u);
}

TEST(Rules, TierIncludesAreNoticed) {
  EXPECT_EQ(tier_include_violations({{"kernels/simd/a.cpp", "#include <cmath>"}}).size(), 1u);
  EXPECT_EQ(
      tier_include_violations({{"kernels/simd/a.cpp", "#include <cstdint>"}, {"kernels/ref/b.cpp", "#include <cmath>"}})
          .size(),
      0u);
}

TEST(Rules, MacrosAreNoticed) {
  EXPECT_EQ(macro_violations({{"tensor/a.h", "#define THIMBLE_HELPER(x) x"}}).size(), 1u);
  EXPECT_EQ(macro_violations({{"tensor/a.h", "#define THIMBLE_HAS_ASAN 1"}}).size(), 1u);
  EXPECT_EQ(macro_violations({{"tensor/a.cpp", "#define THIMBLE_TEST_ASAN 1"}}).size(), 1u);
  EXPECT_EQ(
      macro_violations({{"tensor/a.cpp", "#define THIMBLE_HAS_ASAN 1"}, {"tests/t/a.h", "#define THIMBLE_TEST_ASAN"}})
          .size(),
      0u);
}

TEST(Rules, TextIsNoticed) {
  EXPECT_EQ(text_violations({{"a.md",
                              "in /tm"
                              "p/x and in /wo"
                              "rk"}})
                .size(),
            2u);
  EXPECT_EQ(text_violations({{"a.cpp",
                              "// TO"
                              "DO: later"}})
                .size(),
            1u);
  EXPECT_EQ(text_violations({{"a.md",
                              "net/wo"
                              "rk, frame/wo"
                              "rking, ${HOME}/wo"
                              "rk, TO"
                              "DOS"}})
                .size(),
            0u);
}

TEST(Rules, FormIsNoticed) {
  std::string text;
  for (int i = 0; i < 1000; ++i) text += "\n";
  EXPECT_EQ(form_violations({{"a.cpp", text}}).size(), 0u);
  EXPECT_EQ(form_violations({{"a.cpp", text + "x"}}).size(), 1u);
  EXPECT_EQ(form_violations({{"a.h", "// why\nint x;\n"}}).size(), 1u);
  EXPECT_EQ(form_violations({{"a.h", "\n#pragma once\n"}}).size(), 1u);
  EXPECT_EQ(form_violations({{"a.h", "// why\n#pragma once\n"}}).size(), 0u);
}

TEST(Rules, FoldersAndLinksAreNoticed) {
  EXPECT_EQ(readme_violations({{"README.md", ""}, {"tensor/a.cpp", ""}}).size(), 1u);
  EXPECT_EQ(readme_violations({{"models/README.md", ""}, {"models/io/a.cpp", ""}}).size(), 0u);
  EXPECT_EQ(readme_violations({{"a/README.md", ""}, {"a/b/c/d.cpp", ""}}).size(), 1u);
  const auto exists = [](const std::string& path) { return path == "tensor/README.md"; };
  EXPECT_EQ(link_violations({{"README.md", "[a](tensor/README.md) [b](tensor/none.md)"}}, exists).size(), 1u);
  EXPECT_EQ(link_violations({{"models/README.md", "[a](../tensor/README.md#x) [b](https://x.org/y)"}}, exists).size(),
            0u);
}

}  // namespace
}  // namespace thimble
