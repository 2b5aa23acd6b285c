// thimble completion bash|zsh|fish: a script that completes verbs and options, made from the parser itself.
#include <fmt/format.h>

#include "models/shapes.h"
#include "tools/cli/cli.h"

namespace thimble::cli {
namespace {

std::string options_of(const CLI::App& command) {
  std::string words;
  for (const CLI::Option* option : command.get_options())
    for (const std::string& name : option->get_lnames()) words += (words.empty() ? "--" : " --") + name;
  return words;
}

// "doctor model tokenize", and one case per verb ("model info" is two words).
std::string script(const CLI::App& app, const std::string& shell) {
  std::string verbs, cases, fish;
  for (const CLI::App* verb : app.get_subcommands([](const CLI::App*) { return true; })) {
    std::string words = options_of(*verb);
    for (const CLI::App* sub : verb->get_subcommands([](const CLI::App*) { return true; }))
      words += " " + sub->get_name() + " " + options_of(*sub);
    if (verb->get_name() == "profile") {
      words += " prefill decode train";
      for (const ModelShape& shape : model_shapes()) words += std::string(" ") + shape.name;
    }
    verbs += (verbs.empty() ? "" : " ") + verb->get_name();
    cases += fmt::format("    {}) words=\"{}\" ;;\n", verb->get_name(), words);
    fish += fmt::format("complete -c thimble -n __fish_use_subcommand -a {}\n", verb->get_name());
    fish += fmt::format("complete -c thimble -n '__fish_seen_subcommand_from {}' -a '{}'\n", verb->get_name(), words);
  }
  if (shell == "fish") return fish;
  const std::string body = fmt::format(
      "_thimble() {{\n"
      "  local words cur=\"${{COMP_WORDS[COMP_CWORD]}}\"\n"
      "  case \"${{COMP_WORDS[1]}}\" in\n{}    *) words=\"{}\" ;;\n  esac\n"
      "  if [ \"$COMP_CWORD\" -eq 1 ]; then words=\"{} --help --version\"; fi\n"
      "  COMPREPLY=($(compgen -W \"$words\" -- \"$cur\"))\n"
      "  if [ ${{#COMPREPLY[@]}} -eq 0 ]; then COMPREPLY=($(compgen -f -- \"$cur\")); fi\n"
      "}}\n"
      "complete -o filenames -F _thimble thimble\n",
      cases, verbs, verbs);
  return shell == "zsh" ? "autoload -U +X bashcompinit && bashcompinit\n" + body : body;
}

}  // namespace

void add_completion(CLI::App& app, Run* run) {
  CLI::App* command = app.add_subcommand("completion", "print a shell completion script");
  command->footer("Example: thimble completion bash > ~/.local/share/bash-completion/completions/thimble");
  auto shell = std::make_shared<std::string>();
  command->add_option("SHELL", *shell, "bash, zsh or fish")->required()->check(CLI::IsMember({"bash", "zsh", "fish"}));
  command->callback([&app, shell, run] {
    *run = [&app, shell] {
      write_stdout(script(app, *shell));
      return 0;
    };
  });
}

}  // namespace thimble::cli
