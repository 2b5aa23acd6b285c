// The names and expressions are facts of the format: each name is that of the model whose tokenizer came first.
#include "models/tokenizer/gguf_pre.h"

#include "models/io/json.h"
#include "models/tokenizer/scanner.h"
#include "tensor/error.h"

namespace thimble {
namespace {

struct Row {
  const char* names;  // separated by spaces
  std::vector<std::string> regexes;
  bool ignore_merges = false, add_bos = false, add_separator = false, spells_bytes = true;
};

std::string known(const char* name) {
  for (size_t i = 0; i < kKnownPatternCount; ++i) {
    if (std::string(kKnownPatterns[i].name) == name) return kKnownPatterns[i].regex;
  }
  return {};
}

const std::string kContractions = R"((?i:'s|'t|'re|'ve|'m|'ll|'d))";
const std::string kSpaces = R"(|\s*[\r\n]+|\s+(?!\S)|\s+)";

const std::vector<Row>& rows() {
  static const std::string gpt2 = known("gpt-2"), llama3 = known("llama-3"), qwen2 = known("qwen2"),
                           gpt4o = known("gpt-4o"), tekken = known("tekken");
  // gpt-4o's, but digits one by one
  static const std::string one_digit = [] {
    std::string regex = gpt4o;
    return regex.replace(regex.find("{1,3}"), 5, "");
  }();
  static const std::string bloom = " ?[^(\\s|.,!?\\x{2026}\\x{3002}\\x{FF0C}\\x{3001}\\x{964}\\x{6D4}\\x{60C})]+";
  static const std::string east_asian = "[\\x{4E00}-\\x{9FA5}\\x{800}-\\x{4E00}\\x{AC00}-\\x{D7FF}]+";
  static const std::vector<Row> table = {
      {"gpt-2 phi-2 jina-es jina-de gigachat jina-v2-es jina-v2-de a.x-4.0 mellum modern-bert mpt olmo jais trillion "
       "granite-docling exaone4",
       {gpt2}},
      {"jina-v1-en jina-v2-code roberta-bpe", {gpt2}, false, false, true},
      {"llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano", {llama3}, true, true},
      {"dbrx smaug-bpe chatglm-bpe glm4", {llama3}},
      {"qwen2 stablelm2 deepseek-r1-qwen kormo f2llmv2 megrez hunyuan solar-open grok-2 openpangu", {qwen2}},
      {"qwen35",
       {kContractions + "|[^\\r\\n\\p{L}\\p{N}]?[\\p{L}\\p{M}]+|\\p{N}| ?[^\\s\\p{L}\\p{M}\\p{N}]+[\\r\\n]*" +
        kSpaces}},
      {"starcoder refact command-r smollm codeshell exaone minerva-7b mellum2", {"\\p{N}", gpt2}},
      {"falcon", {"[\\p{P}\\$\\+<=>\\^~\\|`]+", gpt2, "[0-9][0-9][0-9]"}},
      {"default", {"[\\p{P}\\$\\+<=>\\^~\\|]+", gpt2, "\\p{N}+", "[0-9][0-9][0-9]"}},
      {"deepseek-llm",
       {"[\\r\\n]",
        "\\s?["
        "A-Za-z\\x{B5}\\x{C0}-\\x{D6}\\x{D8}-\\x{F6}\\x{F8}-\\x{1BA}\\x{1BC}-\\x{1BF}\\x{1C4}-\\x{293}"
        "\\x{295}-\\x{2AF}\\x{370}-\\x{373}\\x{376}\\x{377}\\x{37B}-\\x{37D}\\x{37F}\\x{386}\\x{388}-\\x{38A}"
        "\\x{38C}\\x{38E}-\\x{3A1}\\x{3A3}-\\x{3F5}\\x{3F7}-\\x{481}\\x{48A}-\\x{52F}\\x{531}-\\x{556}"
        "\\x{10A0}-\\x{10C5}\\x{13A0}-\\x{13F5}\\x{13F8}-\\x{13FD}\\x{1C90}-\\x{1CBA}\\x{1CBD}-\\x{1CBF}"
        "\\x{1D00}-\\x{1D2B}\\x{1D6B}-\\x{1D77}\\x{1D79}-\\x{1D9A}\\x{1E00}-\\x{1F15}\\x{1F18}-\\x{1F1D}"
        "\\x{1F20}-\\x{1F45}\\x{1F48}-\\x{1F4D}\\x{1F50}-\\x{1F57}\\x{1F59}\\x{1F5B}\\x{1F5D}\\x{1F5F}-\\x{1F7D}"
        "\\x{1F80}-\\x{1FB4}\\x{1FB6}-\\x{1FBC}\\x{1FBE}\\x{1FC2}-\\x{1FC4}\\x{1FC6}-\\x{1FCC}\\x{1FD0}-\\x{1FD3}"
        "\\x{1FD6}-\\x{1FDB}\\x{1FE0}-\\x{1FEC}\\x{1FF2}-\\x{1FF4}\\x{1FF6}-\\x{1FFC}\\x{2102}\\x{2107}"
        "\\x{210A}-\\x{2113}\\x{2115}\\x{2119}-\\x{211D}\\x{2124}\\x{2126}\\x{2128}\\x{212A}-\\x{212D}"
        "\\x{212F}-\\x{2134}\\x{2139}\\x{213C}-\\x{213F}\\x{2145}-\\x{2149}\\x{214E}\\x{2183}\\x{2184}"
        "\\x{2C00}-\\x{2C7B}\\x{2C7E}-\\x{2CE4}\\x{2CEB}-\\x{2CEE}\\x{2CF2}\\x{2CF3}\\x{A640}-\\x{A66D}"
        "\\x{A680}-\\x{A69B}\\x{A722}-\\x{A76F}\\x{A771}-\\x{A787}\\x{A78B}-\\x{A78E}\\x{AB70}-\\x{ABBF}"
        "\\x{FB00}-\\x{FB06}\\x{FB13}-\\x{FB17}\\x{FF21}-\\x{FF3A}\\x{FF41}-\\x{FF5A}\\x{10400}-\\x{1044F}"
        "\\x{104B0}-\\x{104D3}\\x{104D8}-\\x{104FB}\\x{10C80}-\\x{10CB2}\\x{10CC0}-\\x{10CF2}"
        "\\x{118A0}-\\x{118DF}\\x{1E900}-\\x{1E943}"
        "]+",
        "\\s?[!-/:-~\\x{FF01}-\\x{FF0F}\\x{FF1A}-\\x{FF5E}\\x{2018}-\\x{201F}\\x{3000}-\\x{3002}]+", "\\s+$",
        east_asian, "\\p{N}+"}},
      {"deepseek-coder", {"[\\r\\n]", "\\s?\\p{L}+", "\\s?\\p{P}+", east_asian, "\\p{N}"}},
      {"deepseek-v3 hunyuan-dense joyai-llm hy_v4",
       {"\\p{N}{1,3}", "[\\x{4E00}-\\x{9FA5}\\x{3040}-\\x{309F}\\x{30A0}-\\x{30FF}]+",
        "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| "
        "?[\\p{P}\\p{S}]+[\\r\\n]*" +
            kSpaces}},
      {"gpt-4o llama4 kanana2 talkie minimax-m2", {gpt4o}},
      {"tiny_aya cohere2moe", {"\\d{1,3}(?=(?:\\d{3})*\\b)", gpt4o}},
      {"youtu",
       {"[\\x{AC00}-\\x{D7A3}\\x{3131}-\\x{318E}]+|[\\x{FF01}\\x{2026}\\x{201C}\\x{201D}\\x{2018}\\x{2019}\\x{2014}\\x{FF1A}"
        "\\x{FF1B}\\x{FF0C}\\x{3001}-\\x{303F}\\x{FE30}-\\x{FE4F}]+|[\\x{3105}-\\x{312F}]+|"
        "[\\x{4E00}-\\x{9FA5}\\x{3040}-\\x{309F}\\x{30A0}-\\x{30FF}]+",
        one_digit},
       true},
      {"jais-2",
       {kContractions + "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|"
        "\\s{512}(?!\\S)|\\s{256}(?!\\S)|\\s{128}(?!\\S)|\\s{64}(?!\\S)|\\s{32}(?!\\S)|\\s{16}(?!\\S)|\\s{8}(?!\\S)|"
        "\\s{4}(?!\\S)|\\s{1,2}(?!\\S)|\\s{1}"}},
      {"exaone-moe",
       {kContractions + "|[^\\r\\n\\p{L}\\p{N}]?(?:\\p{L}\\p{M}*(?: \\p{L}\\p{M}*)*)+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]?|"
        "\\s*[\\r\\n]|\\s+(?!\\S)|\\s+"}},
      {"tekken", {tekken}, true, true},
      {"bloom gpt3-finnish poro-chat", {bloom}},
      {"viking", {bloom, "\\p{N}"}},
      {"bailingmoe bailingmoe2 llada-moe",
       {"'(?i:[sdmt]|ll|ve|re)|[^\\r\\n\\p{L}\\p{N}]?+\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]++[\\r\\n]*|\\s*[\\r\\n]|"
        "\\s+(?!\\S)|\\s+"}},
      {"seed-coder",
       {kContractions + "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1}| ?[^\\s\\p{L}\\p{N}\\r\\n]+" + kSpaces}},
      {"chameleon",
       {"<sentinel:[0-9]+>", "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z", "([\\t\\n]|    |  )", "\\p{N}",
        "[\\p{P}!-/:-@\\[-`{-~]", gpt2},
       false,
       true},
      {"minicpm5",
       {"\\p{N}{1,3}",
        kContractions + "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}+| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*" + kSpaces},
       true},
      {"gemma4 granite-embed-multi-311m", {"[^\\n]+|[\\n]+"}, false, true, false, false},
      {"sarvam-moe", {"[^\\n]+|[\\n]+"}, false, false, false, false},
  };
  return table;
}

}  // namespace

GgufPreTokenizer gguf_pre_tokenizer(const std::string& name, const std::string& file) {
  const std::string wanted = name.empty() ? "default" : name;
  for (const Row& row : rows()) {
    const bool one_word = wanted.find(' ') == std::string::npos;
    if (!one_word || (" " + std::string(row.names) + " ").find(" " + wanted + " ") == std::string::npos) continue;
    return {row.regexes, row.ignore_merges, row.add_bos, row.add_separator, row.spells_bytes};
  }
  throw Error(ErrorCode::unsupported,
              file + ": field \"tokenizer.ggml.pre\": the pre-tokenizer " + quote_for_message(name) + " is not offered",
              "put the model's tokenizer.json beside the file and name that");
}

}  // namespace thimble
