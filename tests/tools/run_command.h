// Runs a program as a child process and keeps what it printed, its exit status, or the signal that ended it.
#pragma once

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace thimble::tools_test {

struct RunOptions {
  std::string input;                       // standard input
  std::map<std::string, std::string> env;  // added; inherited THIMBLE_* variables are taken away
  std::string stdout_path;                 // standard output goes to this file instead (/dev/full)
  bool close_stdout_reader = false;        // nobody reads standard output: writes fail with EPIPE
  double timeout_s = 60;
};

struct RunResult {
  int status = -1;  // exit status; -1 when a signal ended the child
  int signal = 0;   // also SIGKILL after a time-out
  bool timed_out = false;
  std::string out, err;
};

// This process's, without THIMBLE_*.
inline std::vector<std::string> plain_environment() {
  std::vector<std::string> env;
  for (char** e = environ; e && *e; ++e)
    if (std::strncmp(*e, "THIMBLE_", 8) != 0) env.emplace_back(*e);
  return env;
}

// What exec wants: valid as long as the texts.
inline std::vector<char*> pointers(const std::vector<std::string>& texts) {
  std::vector<char*> out;
  for (const std::string& t : texts) out.push_back(const_cast<char*>(t.c_str()));
  out.push_back(nullptr);
  return out;
}

inline RunResult run_command(const std::vector<std::string>& args, const RunOptions& options = {}) {
  // Everything that allocates happens before fork.
  const std::vector<char*> argv = pointers(args);
  std::vector<std::string> env = plain_environment();
  for (const auto& [name, value] : options.env) env.push_back(name + "=" + value);
  const std::vector<char*> envp = pointers(env);

  std::FILE* input = std::tmpfile();
  if (!input) throw std::runtime_error("tmpfile failed");
  std::fwrite(options.input.data(), 1, options.input.size(), input);
  std::fflush(input);
  std::rewind(input);
  int out[2], err[2];
  if (::pipe2(out, O_CLOEXEC) != 0 || ::pipe2(err, O_CLOEXEC) != 0) throw std::runtime_error("pipe failed");
  const int target = options.stdout_path.empty() ? out[1] : ::open(options.stdout_path.c_str(), O_WRONLY | O_CLOEXEC);
  if (target < 0) throw std::runtime_error("cannot open " + options.stdout_path);
  if (options.close_stdout_reader) ::close(out[0]);

  const pid_t child = ::fork();
  if (child < 0) throw std::runtime_error("fork failed");
  if (child == 0) {
    ::signal(SIGPIPE, SIG_DFL);
    ::dup2(::fileno(input), 0);
    ::dup2(target, 1);
    ::dup2(err[1], 2);
    ::execve(argv[0], argv.data(), envp.data());
    ::_exit(127);
  }
  std::fclose(input);
  if (target != out[1]) ::close(target);
  ::close(out[1]);
  ::close(err[1]);

  RunResult result;
  struct pollfd fds[2] = {{options.close_stdout_reader ? -1 : out[0], POLLIN, 0}, {err[0], POLLIN, 0}};
  const auto start = std::chrono::steady_clock::now();
  while (fds[0].fd >= 0 || fds[1].fd >= 0) {
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    if (seconds > options.timeout_s && !result.timed_out) {
      result.timed_out = true;
      ::kill(child, SIGKILL);
    }
    if (::poll(fds, 2, 200) <= 0) continue;
    for (int i = 0; i < 2; ++i) {
      if (fds[i].fd < 0 || fds[i].revents == 0) continue;
      char piece[1 << 14];
      const ssize_t n = ::read(fds[i].fd, piece, sizeof piece);
      if (n > 0) {
        (i == 0 ? result.out : result.err).append(piece, static_cast<size_t>(n));
      } else {
        ::close(fds[i].fd);
        fds[i].fd = -1;
      }
    }
  }
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  if (WIFEXITED(status)) result.status = WEXITSTATUS(status);
  if (WIFSIGNALED(status)) result.signal = WTERMSIG(status);
  return result;
}

// The built thimble with these arguments.
inline RunResult thimble(std::vector<std::string> args, const RunOptions& options = {}) {
  args.insert(args.begin(), std::string(THIMBLE_BINARY_DIR) + "/bin/thimble");
  return run_command(args, options);
}

}  // namespace thimble::tools_test
