// A method is one row: what a person's history is used for. To add one, write tools/lab/methods/<name>.cpp with its row and
// list it in tools/lab/method.cpp.
#pragma once

#include <string_view>
#include <vector>

#include "models/adapter.h"
#include "tools/lab/cell.h"

namespace thimble::lab {

struct Method {
  const char* name;   // as a plan says it
  const char* title;  // for people
  bool learns;        // pairs of the history are trained on
  bool retrieves;     // items of the history stand in the prompt
  double lr;          // AdamW's rate where the cell names none; 0: learns nothing
  // A person's fresh adapter (its seed is filled in by the cell). null of a learning method: all weights train.
  AdapterOptions (*adapter)(const MethodSpec& spec);

  bool full() const { return learns && !adapter; }
};

// A LoRA of the rank, alpha, dropout and targets of the cell.
AdapterOptions lora_adapter(const MethodSpec& spec);

// All rows, cheapest first.
const std::vector<const Method*>& all_methods();
// Throws usage, listing the names.
const Method& find_method(std::string_view name);

}  // namespace thimble::lab
