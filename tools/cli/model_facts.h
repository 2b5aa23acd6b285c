// What lies at a path, as far as files tell it without running anything: container, tokenizer, chat template, pooling, and
// adapters. thimble model info prints it.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "models/embed_recipe.h"
#include "models/static_embedding.h"

namespace thimble::cli {

// "safetensors", "safetensors, 3 shards", "pytorch pickle", "gguf v3", "llama2.c".
std::string container_name(const std::string& path);

// {kind, vocab_size, bos_id, eos_id}; {error} where there is none that loads.
nlohmann::ordered_json tokenizer_json(const std::string& model_path);

// Names of the chat templates beside the model: "default" for a single one; empty: there is none.
nlohmann::ordered_json chat_templates(const std::string& model_path);

// {pooling, dimensions, normalized, max_tokens, prompts, source}; width: of the hidden states.
nlohmann::ordered_json embedding_json(const EmbedRecipe& recipe, int64_t width);

bool is_adapter(const std::string& path);

// A PEFT directory or a GGUF adapter, without its base: {schema, path, container, kind, adapter: {...}, parameters, file_bytes, tensors?}.
// Errors: input, naming file and field.
nlohmann::ordered_json adapter_facts(const std::string& dir, bool tensors);

// The same of a static embedder.
nlohmann::ordered_json static_facts(const std::string& path, const EmbedRecipe& recipe, bool tensors);

// Lines "key  value" for people; nested objects in one line.
std::string facts_text(const nlohmann::ordered_json& facts);

}  // namespace thimble::cli
