// The strict parser against what it must refuse, and the typed field reads.
#include "models/io/json.h"

#include <gtest/gtest.h>

#include "tests/io/support.h"

namespace thimble {
namespace {

using namespace io_test;
using nlohmann::json;

TEST(Json, BuildsWhatNlohmannBuilds) {
  for (const char* text :
       {"null", "true", "-3", "18446744073709551615", "1e3", "\"a\\u00e9\\n\"", "[]", "{}",
        " [1, [2, {\"a\": []}], 3] ", R"({"a":{"b":[1,2,{"c":null}]},"d":"x","e":{"a":1},"":0})", "[[[[[[]]]]],{}]"})
    EXPECT_EQ(parse_json(text, "t.json"), json::parse(text)) << text;
}

TEST(Json, RefusesWithLineAndColumn) {
  const auto refused = [](const std::string& text, std::initializer_list<std::string> parts) {
    SCOPED_TRACE(text.substr(0, 100));
    expect_error(ErrorCode::input, parts, [&] { parse_json(text, "dir/t.json"); });
  };
  refused("{\n  \"a\": 1,\n  \"b\": 2,\n  \"a\": 3\n}",
          {"dir/t.json: line 4, column 3:", "the key \"a\" stands twice"});
  refused("{\"x\":{\"q\\\"\":1,\"q\\\"\":1}}", {"line 1, column 15:", "twice"});
  refused("{\"a\":1,\"\\u0061\":2}", {"column 8", "\"a\" stands twice"});
  EXPECT_NO_THROW(parse_json("{\"a\":{\"a\":1},\"b\":{\"a\":1}}", "t"));
  refused("", {"line 1, column 1"});
  refused("{\"a\":1,}", {"line 1, column 8"});
  refused("[1,\n 2,\n x]", {"line 3, column 2"});
  refused("[1] 2", {"column 5"});
  refused("{} // c", {"line 1"});
  refused("[\"\xff\"]", {"UTF-8"});
  refused("[\"\xc3\"]", {"UTF-8"});
  refused("[\"\xed\xa0\x80\"]", {"UTF-8"});
  refused("[\"\\ud800\"]", {"line 1"});
  refused("[\"a\nb\"]", {"line"});
  refused("[1e999]", {"1e999"});
  refused("[01]", {"line 1"});
  refused("[NaN]", {"line 1"});
  refused(std::string("[1]\0", 4), {"column 4", "NUL"});
  refused(std::string("[1\0]", 4), {"column 3", "NUL"});
  refused(std::string(100'000, '['), {"nested deeper than 128"});
  std::string objects;
  for (int i = 0; i < 100'000; ++i) objects += "{\"a\":";
  refused(objects, {"nested deeper than 128"});
  EXPECT_NO_THROW(parse_json(std::string(128, '[') + std::string(128, ']'), "t"));
  expect_error(ErrorCode::input, {"missing.json", "cannot open"}, [] { parse_json_file("missing.json"); });
}

TEST(Json, MessagesStayOnOneLine) {
  EXPECT_EQ(quote_for_message("a\nb\x1b[31m"), "\"a\\x0ab\\x1b[31m\"");
  const std::string cut = quote_for_message(std::string(119, 'x') + "\xc3\xa9" + std::string(500, 'y'));
  EXPECT_EQ(cut, "\"" + std::string(119, 'x') + "\xc3\xa9...\"");
}

TEST(Json, TypedFields) {
  const json value = parse_json(R"({"i":7,"f":2.0,"h":2.5,"big":18446744073709551615,"huge":1e300,"b":true,)"
                                R"("s":"text","n":null,"o":{"k":-1},"a":[1]})",
                                "c");
  const JsonObject o(value, "config.json");
  EXPECT_TRUE(o.has("i"));
  EXPECT_FALSE(o.has("n"));
  EXPECT_FALSE(o.has("missing"));
  EXPECT_EQ(o.require_int("i", 7, 7), 7);
  EXPECT_EQ(o.require_int("f", 1, 9), 2);
  EXPECT_EQ(o.get_int("n", 5, 1, 9), 5);
  EXPECT_EQ(o.get_int("missing", -5, 1, 9), -5);
  EXPECT_EQ(o.get_double("h", 0), 2.5);
  EXPECT_EQ(o.get_double("i", 0), 7.0);
  EXPECT_EQ(o.get_double("n", 1.5), 1.5);
  EXPECT_TRUE(o.get_bool("b", false));
  EXPECT_TRUE(o.get_bool("n", true));
  EXPECT_EQ(o.get_string("s", ""), "text");
  EXPECT_EQ(o.require_string("s"), "text");
  EXPECT_EQ(o.get_string("n", "d"), "d");
  EXPECT_EQ(o.object("o")->require_int("k", -1, 0), -1);
  EXPECT_FALSE(o.object("n"));

  const auto refused = [](std::initializer_list<std::string> parts, auto f) {
    expect_error(ErrorCode::input, parts, f);
  };
  refused({"config.json: field \"s\": expected an integer between 1 and 64, found \"text\""},
          [&] { o.require_int("s", 1, 64); });
  refused({"field \"i\": expected an integer between 8 and 9, found 7"}, [&] { o.get_int("i", 8, 8, 9); });
  refused({"field \"h\"", "found 2.5"}, [&] { o.get_int("h", 0, 0, 9); });
  refused({"field \"b\"", "found true"}, [&] { o.get_int("b", 0, 0, 9); });
  refused({"field \"big\""}, [&] { o.get_int("big", 0, INT64_MIN, INT64_MAX); });
  refused({"field \"huge\""}, [&] { o.get_int("huge", 0, INT64_MIN, INT64_MAX); });
  refused({"field \"missing\"", "found nothing"}, [&] { o.require_int("missing", 0, 9); });
  refused({"field \"n\"", "found null"}, [&] { o.require_int("n", 0, 9); });
  refused({"field \"s\": expected a number"}, [&] { o.get_double("s", 0); });
  refused({"field \"h\": expected a number between 0 and 1"}, [&] { o.get_double("h", 0, 0, 1); });
  refused({"field \"i\": expected true or false, found 7"}, [&] { o.get_bool("i", false); });
  refused({"field \"a\": expected a string, found an array of 1"}, [&] { o.get_string("a", ""); });
  refused({"field \"a\": expected an object"}, [&] { o.object("a"); });
  refused({"field \"o.k\"", "found -1"}, [&] { o.object("o")->require_int("k", 0, 9); });
  refused({"config.json: the file: expected an object, found an array of 1"},
          [&] { JsonObject x(value["a"], "config.json"); });
}

TEST(Json, RandomDamage) {
  const std::string valid =
      R"({"model_type":"llama","n":[1,2.5,-3e2,{"x":"\u00e9\n"}],"deep":{"a":{"b":{"c":[true,null]}}},"s":"é"})";
  Random random{3};
  int accepted = 0;
  for (int i = 0; i < 40'000; ++i) {
    const std::string text = mutate(valid, random, valid.size());
    try {
      const json ours = parse_json(text, "t");
      ASSERT_EQ(ours, json::parse(text)) << text;
      ++accepted;
    } catch (const Error& e) {
      ASSERT_EQ(e.code(), ErrorCode::input);
      // Whoever refuses alone must have a reason: duplicate keys and NUL bytes are ours.
      if (json::accept(text) && text.find('\0') == std::string::npos) {
        ASSERT_NE(std::string(e.what()).find("twice"), std::string::npos) << text;
      }
    }
  }
  EXPECT_GT(accepted, 1000);
}

}  // namespace
}  // namespace thimble
