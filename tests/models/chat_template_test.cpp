// Chat templates: golden texts made with Jinja 3 (data/chat), the language piece by piece, limits, and where templates
// are found.
#include "models/chat_template.h"

#include <gtest/gtest.h>

#include <fstream>
#include <set>

#include "models/tokenizer/bpe_trainer.h"
#include "tensor/error.h"
#include "tensor/file.h"
#include "tests/scratch_dir.h"

namespace thimble {
namespace {

using Json = nlohmann::ordered_json;
using testing::ScratchDir;

std::string data(const std::string& name) { return std::string(THIMBLE_SOURCE_DIR) + "/tests/data/chat/" + name; }

std::string render(const std::string& source, const Json& context = Json::object(), const jinja::Limits& limits = {}) {
  jinja::RenderOptions options;
  options.now = 1700000000;  // 14 November 2023, 22:13:20
  return jinja::Template(source, "t.jinja", limits).render(context, options).text;
}

void refused(const std::string& source, ErrorCode code, const std::vector<std::string>& words, const jinja::Limits& limits = {}) {
  try {
    ADD_FAILURE() << source.substr(0, 200) << " gave " << render(source, {{"d", {{"a", 1}}}, {"l", {1, 2}}}, limits).substr(0, 200);
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), code) << e.what();
    EXPECT_EQ(std::string(e.what()).compare(0, 8, "t.jinja:"), 0) << e.what();
    for (const std::string& word : words)
      EXPECT_NE(std::string(e.what()).find(word), std::string::npos) << "missing \"" << word << "\" in: " << e.what();
  }
}

TEST(ChatTemplate, GoldenTexts) {
  const Json cases = Json::parse(read_file(data("golden.json")));
  std::set<std::string> templates;
  int refusals = 0;
  for (const Json& c : cases) {
    const std::string file = c["template"];
    SCOPED_TRACE(file + ", " + c["case"].get<std::string>());
    templates.insert(file);
    const ChatTemplate chat = ChatTemplate::read(data(file));
    ChatInputs inputs;
    for (const auto& item : c["context"].items())
      if (item.key() == "messages")
        inputs.messages = item.value();
      else if (item.key() == "tools")
        inputs.tools = item.value();
      else if (item.key() == "add_generation_prompt")
        inputs.add_generation_prompt = item.value();
      else
        inputs.extra[item.key()] = item.value();
    inputs.now = 1700000000;
    if (c.contains("refused")) {
      EXPECT_THROW(chat.render(inputs), Error);
      ++refusals;
    } else {
      EXPECT_EQ(chat.render(inputs).text, c["text"].get<std::string>());
    }
  }
  EXPECT_GE(templates.size(), 8u);
  EXPECT_GE(cases.size(), 100u);
  EXPECT_GE(refusals, 5);
}

// Rows of language.json: a template, and what Jinja 3 made of it over one context, or that it refused it.
TEST(ChatTemplate, LanguageAsJinjaHasIt) {
  const Json file = Json::parse(read_file(data("language.json")));
  int rows = 0;
  for (const Json& row : file["rows"]) {
    const std::string source = row["template"];
    SCOPED_TRACE(source);
    ++rows;
    if (row.contains("refused")) {
      EXPECT_THROW(render(source, file["context"]), Error);
      continue;
    }
    std::string text;
    EXPECT_NO_THROW(text = render(source, file["context"]));
    EXPECT_EQ(text, row["text"].get<std::string>());
  }
  EXPECT_GE(rows, 100);
}

TEST(ChatTemplate, ErrorsNameFileAndLine) {
  refused("a\n{{ x.y }}", ErrorCode::input, {"t.jinja:2", "'x' is undefined"});
  refused("{% if 1 %}\n\n{{ d.zz.y }}{% endif %}", ErrorCode::input, {"t.jinja:3", "'zz'"});
  refused("\n\n{{ raise_exception('not this way') }}", ErrorCode::input, {"t.jinja:3", "not this way"});
  refused("{% macro m() %}\n{{ 1 / 0 }}\n{% endmacro %}\n\n{{ m() }}", ErrorCode::input, {"t.jinja:2", "division"});
  refused("\n{% for i in l %}", ErrorCode::input, {"t.jinja:2", "endfor"});
  refused("{{ 1 + }}", ErrorCode::input, {"t.jinja:1", "an expression"});
  refused("a\n{# b", ErrorCode::input, {"t.jinja:2", "comment"});
  refused("\n{{ 'abc }}", ErrorCode::input, {"t.jinja:2", "string"});
  refused("{{ l.append(3) }}", ErrorCode::input, {"append", "change"});
  refused("a\n\xff", ErrorCode::input, {"t.jinja:2", "UTF-8"});
  refused("{% include 'x' %}", ErrorCode::unsupported, {"include"});
  refused("{{ l | nope }}", ErrorCode::unsupported, {"filter", "nope"});
  refused("{{ l is nope }}", ErrorCode::unsupported, {"test", "nope"});
  refused("{{ 9223372036854775807 + 1 }}", ErrorCode::input, {"64 bits"});
}

// Each would take forever, all memory, or the stack.
TEST(ChatTemplate, LimitsHold) {
  jinja::Limits limits;
  limits.steps = 300'000;
  limits.bytes = int64_t{16} << 20;
  limits.output_bytes = size_t{1} << 20;
  const auto bounded = [&](const std::string& source, const std::string& word) {
    refused(source, ErrorCode::input, {word}, limits);
  };
  bounded("{% set r = range(999) %}{% for a in r %}{% for b in r %}{% endfor %}{% endfor %}", "the template takes more than");
  bounded("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "nesting");
  bounded("{% set ns = namespace(x='a') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}", "bytes");
  bounded("{{ 'a' * 9223372036854775807 }}", "bytes");
  bounded("{{ [1, 2] * 9223372036854775807 }}", "bytes");
  bounded("{% set ns = namespace(x=[]) %}{% for i in range(9999) %}{% set ns.x = [ns.x] %}{% endfor %}", "nested values");
  bounded("{% set ns = namespace(x=['a']) %}{% for i in range(90) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}", "the template takes more than");
  bounded("{% set ns = namespace(x=['a']) %}{% for i in range(90) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x | tojson }}", "the template takes more than");
  bounded("{% set ns = namespace(x=['a'], y=['a']) %}{% for i in range(90) %}{% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}"
          "{% endfor %}{{ ns.x == ns.y }}", "the template takes more than");
  bounded("{% for i in range(20000) %}" + std::string(100, 'a') + "{% endfor %}", "output");
  bounded("{{ range(999999999999) }}", "range()");
  bounded("{{ range(-9223372036854775807, 9223372036854775807) }}", "range()");
  bounded("{{ '%9999999999d' % 1 }}", "width");
  bounded("{{ 'a'.center(9223372036854775807) }}", "bytes");
  bounded("{{ strftime_now('%99999999d') }}", "strftime_now");
  bounded("{% for x in [[]] recursive %}{{ loop([x]) }}{% endfor %}", "nest");
  std::string deep, chain = "{{ 1";
  for (int i = 0; i < 100000; ++i) {
    deep += "(";
    chain += " + 1";
  }
  bounded("{{ " + deep + std::string(deep.size(), ')') + " }}", "nesting");
  bounded(chain + " }}", "nesting");
  std::string filters = "{{ 1", ifs;
  for (int i = 0; i < 50000; ++i) {
    filters += "|abs";
    ifs += "{% if 1 %}";
  }
  bounded(filters + " }}", "nesting");
  bounded(ifs, "nesting");
  limits.template_bytes = 100;
  bounded(std::string(101, 'a'), "bytes");
}

// What refers to itself is freed (LeakSanitizer looks), and printing it ends.
TEST(ChatTemplate, CyclesAreFreed) {
  EXPECT_EQ(render("{% set ns = namespace() %}{% set ns.me = [ns] %}{{ ns.me }}"), "[<Namespace>]");
  render("{% set ns = namespace() %}{% macro m() %}{% set ns.m = m %}{% endmacro %}{{ m() }}{% set ns.n = m %}");
  render("{% set ns = namespace() %}{% for i in [1] recursive %}{% set ns.l = loop %}{{ loop.changed([loop]) }}{% endfor %}");
  render("{% set ns = namespace(p=none) %}{% for i in range(20000) %}{% set ns.p = namespace(p=ns.p) %}{% endfor %}");
}

TEST(ChatTemplate, GenerationBlocksAreLocated) {
  const jinja::Template t("a{% generation %}bc{% endgeneration %}d{% for i in range(2) %}{% generation %}{{ i }}{% endgeneration %}{% endfor %}", "t");
  const jinja::Rendered r = t.render(Json::object());
  EXPECT_EQ(r.text, "abcd01");
  const std::vector<std::pair<size_t, size_t>> want = {{1, 3}, {4, 5}, {5, 6}};
  EXPECT_EQ(r.generated, want);
}

TEST(ChatTemplate, IsFoundInAModelDirectory) {
  const ScratchDir dir;
  ChatInputs inputs;
  inputs.messages = {{{"role", "user"}, {"content", "x"}}};
  const auto text = [&](const std::string& which = {}, bool tools = false) {
    const auto found = ChatTemplate::find(dir.path(), which, tools);
    return found ? found->render(inputs).text : std::string("none");
  };
  const auto put = [&](const std::string& name, const std::string& content) {
    std::ofstream(dir / name, std::ios::binary) << content;
  };
  EXPECT_EQ(text(), "none");
  EXPECT_FALSE(ChatTemplate::find(dir / "missing"));
  put("tokenizer_config.json", "{\"bos_token\": \"<s>\"}");
  EXPECT_EQ(text(), "none");
  put("tokenizer_config.json", R"({"chat_template": [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"},
                                   {"name": "rag", "template": "R"}]})");
  EXPECT_EQ(text(), "D");
  EXPECT_EQ(text("", true), "T");
  EXPECT_EQ(text("rag"), "R");
  EXPECT_THROW(text("other"), Error);
  put("tokenizer_config.json", "{\"chat_template\": \"S{{ messages[0].content }}\"}");
  EXPECT_EQ(text(), "Sx");
  put("chat_template.jinja", "J{{ messages | length }}\n");
  EXPECT_EQ(text(), "J1");
  std::filesystem::remove(dir / "chat_template.jinja");
  for (const char* bad : {"{\"chat_template\": 5}", "{\"chat_template\": [5]}", "{\"chat_template\": [{\"name\": \"x\"}]}", "[]",
                          "{\"chat_template\": []}", "{\"chat_template\": \"{{\"}"}) {
    put("tokenizer_config.json", bad);
    try {
      text();
      ADD_FAILURE() << "accepted: " << bad;
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ErrorCode::input) << e.what();
      EXPECT_NE(std::string(e.what()).find("tokenizer_config.json"), std::string::npos) << e.what();
    }
  }
}

TEST(ChatTemplate, IsFoundInAGgufFile) {
  const ScratchDir dir;
  const auto number = [](uint64_t v, int bytes) {
    std::string out;
    for (int i = 0; i < bytes; ++i) out += static_cast<char>(v >> (8 * i) & 0xFF);
    return out;
  };
  const auto text = [&](const std::string& s) { return number(s.size(), 8) + s; };
  const auto file = [&](const std::string& key, const std::string& value) {
    std::ofstream(dir / "m.gguf", std::ios::binary)
        << "GGUF" << number(3, 4) << number(0, 8) << number(1, 8) << text(key) << number(8, 4) << text(value);
    return ChatTemplate::find(dir / "m.gguf");
  };
  EXPECT_FALSE(file("general.name", "x"));
  const auto found = file("tokenizer.chat_template", "G{{ messages | length }}");
  ASSERT_TRUE(found);
  EXPECT_EQ(found->render({}).text, "G0");
  EXPECT_NE(found->name().find("m.gguf"), std::string::npos);
}

TEST(ChatTemplate, MessagesAreChecked) {
  const ChatTemplate plain = ChatTemplate::plain();
  ChatInputs inputs;
  for (const Json& bad : {Json("text"), Json::array({5}), Json::array({{{"content", "x"}}}), Json::array({{{"role", 5}}})}) {
    inputs.messages = bad;
    EXPECT_THROW(plain.render(inputs), Error) << bad;
  }
  inputs.messages = {{{"role", "system"}, {"content", "Be brief."}}, {{"role", "user"}, {"content", " Hi "}}};
  EXPECT_EQ(plain.render(inputs).text, "System: Be brief.\n\nUser: Hi\n\nAssistant:");
  inputs.messages[1]["content"] = "\xff";
  EXPECT_THROW(plain.render(inputs), Error);
}

TEST(ChatTemplate, SpecialTokensAndStops) {
  const ScratchDir dir;
  std::ofstream(dir / "tokenizer_config.json") << R"({"bos_token": {"content": "<b>"}, "unk_token": null, "pad_token": "<p>"})";
  std::ofstream(dir / "special_tokens_map.json") << R"({"bos_token": "other", "sep_token": "<q>"})";
  std::ofstream(dir / "generation_config.json") << R"({"eos_token_id": [7, 9]})";
  BpeTrainerOptions options;
  options.vocab_size = 300;
  const Tokenizer tokenizer = train_bpe("a small text for a small tokenizer", options);
  const Json tokens = chat_special_tokens(dir.path(), tokenizer);
  EXPECT_EQ(tokens["bos_token"], "<b>");
  EXPECT_EQ(tokens["pad_token"], "<p>");
  EXPECT_EQ(tokens["sep_token"], "<q>");
  EXPECT_EQ(tokens["eos_token"], tokenizer.token(tokenizer.eos_id()));
  const std::vector<int32_t> stops = chat_stop_ids({5, 7}, dir.path(), tokenizer, "");
  const std::vector<int32_t> want = {5, 7, 9, tokenizer.eos_id()};
  EXPECT_EQ(stops, want);
  std::ofstream(dir / "generation_config.json") << R"({"eos_token_id": "x"})";
  EXPECT_THROW(chat_stop_ids({}, dir.path(), tokenizer, ""), Error);
}

// A template that writes BOS itself gets no second one, and special strings are one token each.
TEST(ChatTemplate, BosStandsOnce) {
  BpeTrainerOptions options;
  options.vocab_size = 300;
  const Tokenizer tokenizer = train_bpe("a small text for a small tokenizer", options);
  ASSERT_GE(tokenizer.bos_id(), 0);
  const std::string bos = tokenizer.token(tokenizer.bos_id());
  const ChatTemplate chat("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}", "t");
  ChatInputs inputs;
  inputs.special_tokens = chat_special_tokens("", tokenizer);
  inputs.messages = {{{"role", "user"}, {"content", "a text"}}};
  const std::vector<int32_t> ids = chat.encode(tokenizer, chat.render(inputs).text);
  EXPECT_EQ(std::count(ids.begin(), ids.end(), tokenizer.bos_id()), 1);
  EXPECT_EQ(ids.front(), tokenizer.bos_id());
  EXPECT_EQ(ids.back(), tokenizer.eos_id());
}

}  // namespace
}  // namespace thimble
