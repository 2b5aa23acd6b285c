// The machine code of a function of this program, by its address: which symbol it is, and what objdump (binutils) says.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace thimble::cli {

struct CodeRange {
  std::string symbol;               // demangled
  uint64_t address = 0, bytes = 0;  // in the file's own addresses
};

// The symbol that holds this address. Throws unsupported when the program was stripped.
CodeRange find_code(const void* function);
// Functions of this program that the code calls or jumps to, in the order of their first use.
std::vector<CodeRange> called_code(const std::string& disassembly, const CodeRange& from);
// Lines of objdump -d. Throws unsupported when there is no objdump, input when it fails.
std::string disassemble(const CodeRange& range);

}  // namespace thimble::cli
