#include "tools/cli/disassemble.h"

#include <cxxabi.h>
#include <elf.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <link.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <sstream>

#include "tensor/error.h"
#include "tensor/file.h"

namespace thimble::cli {
namespace {

std::string own_path() {
  char path[4096];
  const ssize_t n = ::readlink("/proc/self/exe", path, sizeof path);
  if (n <= 0 || n == static_cast<ssize_t>(sizeof path))
    throw Error(ErrorCode::unsupported, "cannot find this program's own file", "/proc must be mounted");
  return std::string(path, static_cast<size_t>(n));
}

// Where the program was loaded: the first object that the loader lists is the program itself.
uint64_t load_offset() {
  uint64_t offset = 0;
  ::dl_iterate_phdr(
      [](struct dl_phdr_info* info, size_t, void* out) {
        *static_cast<uint64_t*>(out) = info->dlpi_addr;
        return 1;
      },
      &offset);
  return offset;
}

std::string demangled(const char* name) {
  int status = 0;
  char* text = abi::__cxa_demangle(name, nullptr, nullptr, &status);
  std::string result = status == 0 && text ? text : name;
  std::free(text);
  return result;
}

// All functions of the file, by address.
std::vector<CodeRange> read_functions() {
  const MappedFile file(own_path());
  const std::byte* base = file.data();
  const auto inside = [&](uint64_t offset, uint64_t bytes) {
    return offset <= file.size() && bytes <= file.size() - offset;
  };
  std::vector<CodeRange> functions;
  if (!inside(0, sizeof(Elf64_Ehdr)) || std::memcmp(base, ELFMAG, SELFMAG) != 0) return functions;
  Elf64_Ehdr header;
  std::memcpy(&header, base, sizeof header);
  if (!inside(header.e_shoff, uint64_t{header.e_shnum} * sizeof(Elf64_Shdr))) return functions;
  std::vector<Elf64_Shdr> sections(header.e_shnum);
  std::memcpy(sections.data(), base + header.e_shoff, sections.size() * sizeof(Elf64_Shdr));
  for (const Elf64_Shdr& section : sections) {
    if (section.sh_type != SHT_SYMTAB || section.sh_link >= sections.size()) continue;
    const Elf64_Shdr& names = sections[section.sh_link];
    if (!inside(section.sh_offset, section.sh_size) || !inside(names.sh_offset, names.sh_size)) continue;
    for (uint64_t i = 0; i < section.sh_size / sizeof(Elf64_Sym); ++i) {
      Elf64_Sym symbol;
      std::memcpy(&symbol, base + section.sh_offset + i * sizeof symbol, sizeof symbol);
      if (ELF64_ST_TYPE(symbol.st_info) != STT_FUNC || symbol.st_size == 0 || symbol.st_name >= names.sh_size) continue;
      const char* name = reinterpret_cast<const char*>(base + names.sh_offset + symbol.st_name);
      const size_t length = ::strnlen(name, names.sh_size - symbol.st_name);
      functions.push_back({std::string(name, length), symbol.st_value, symbol.st_size});
    }
  }
  std::sort(functions.begin(), functions.end(),
            [](const CodeRange& a, const CodeRange& b) { return a.address < b.address; });
  return functions;
}

const std::vector<CodeRange>& functions_of_program() {
  static const std::vector<CodeRange> functions = read_functions();
  return functions;
}

// The function at `address`, with its name made readable; bytes 0 when there is none.
CodeRange function_at(uint64_t address) {
  for (const CodeRange& f : functions_of_program())
    if (address >= f.address && address < f.address + f.bytes) return {demangled(f.symbol.c_str()), f.address, f.bytes};
  return {};
}

std::string run_objdump(const std::vector<std::string>& arguments) {
  std::vector<char*> argv;
  for (const std::string& a : arguments) argv.push_back(const_cast<char*>(a.c_str()));
  argv.push_back(nullptr);
  int pipe_ends[2];
  if (::pipe2(pipe_ends, O_CLOEXEC) != 0)
    throw Error(ErrorCode::internal, fmt::format("pipe: {}", std::strerror(errno)), "");
  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawn_file_actions_adddup2(&actions, pipe_ends[1], 1);
  pid_t child = 0;
  const int failed = ::posix_spawnp(&child, argv[0], &actions, nullptr, argv.data(), environ);
  ::posix_spawn_file_actions_destroy(&actions);
  ::close(pipe_ends[1]);
  std::string text;
  if (failed == 0) {
    char piece[1 << 14];
    for (;;) {
      const ssize_t n = ::read(pipe_ends[0], piece, sizeof piece);
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) break;
      text.append(piece, static_cast<size_t>(n));
    }
  }
  ::close(pipe_ends[0]);
  int status = 0;
  while (failed == 0 && ::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  if (failed != 0 || (WIFEXITED(status) && WEXITSTATUS(status) == 127))
    throw Error(ErrorCode::unsupported,
                fmt::format("cannot run objdump: {}", std::strerror(failed != 0 ? failed : ENOENT)),
                "install binutils: apt-get install binutils");
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
    throw Error(ErrorCode::input, "objdump cannot read " + arguments.back(),
                "is the program's file still the one that runs?");
  return text;
}

}  // namespace

CodeRange find_code(const void* function) {
  const CodeRange found = function_at(reinterpret_cast<uint64_t>(function) - load_offset());
  if (found.bytes == 0)
    throw Error(ErrorCode::unsupported, "this program has no symbol for that kernel",
                "it was stripped; build it with --preset release");
  return found;
}

std::string disassemble(const CodeRange& range) {
  const std::string text =
      run_objdump({"objdump", "-d", "-C", "--no-show-raw-insn", fmt::format("--start-address={:#x}", range.address),
                   fmt::format("--stop-address={:#x}", range.address + range.bytes), own_path()});
  // The lines in front of the first symbol name the file and the section.
  const size_t begin = text.find("\n\n", text.find("Disassembly of section"));
  return begin == std::string::npos ? text : text.substr(begin + 2);
}

std::vector<CodeRange> called_code(const std::string& disassembly, const CodeRange& from) {
  std::vector<CodeRange> found;
  std::istringstream lines(disassembly);
  std::string line;
  while (std::getline(lines, line)) {
    const size_t tab = line.find('\t');
    if (tab == std::string::npos) continue;
    const std::string instruction = line.substr(tab + 1);
    if (instruction.rfind("call", 0) != 0 && instruction.rfind("jmp", 0) != 0) continue;
    const size_t operand = instruction.find_first_not_of(' ', instruction.find(' '));
    if (operand == std::string::npos || instruction[operand] == '*') continue;
    const CodeRange callee = function_at(std::strtoull(instruction.c_str() + operand, nullptr, 16));
    if (callee.bytes == 0 || callee.address == from.address) continue;
    if (std::none_of(found.begin(), found.end(), [&](const CodeRange& c) { return c.address == callee.address; }))
      found.push_back(callee);
  }
  return found;
}

}  // namespace thimble::cli
