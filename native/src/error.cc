// Making errors, and keeping libbpf's words for them. See error.h.
#include "error.h"

#include <bpf/libbpf.h>

#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <mutex>

namespace enforcer {

namespace {

thread_local std::string* current_log = nullptr;

// A verifier log may be megabytes; only its end is wanted, and the lines before it that name the program.
constexpr size_t kLogLimit = 32u << 20;

int Print(enum libbpf_print_level level, const char* format, va_list arguments) {
  if (current_log == nullptr || level == LIBBPF_DEBUG || current_log->size() > kLogLimit) return 0;
  char* text = nullptr;
  int length = vasprintf(&text, format, arguments);
  if (length < 0) return 0;
  current_log->append(text, static_cast<size_t>(length));
  free(text);
  return length;
}

std::string ErrnoName(int error) {
  if (error == 524) return "ENOTSUPP";  // kernel-internal, yet bpf(2) returns it
  const char* name = strerrorname_np(error);
  return name == nullptr ? "E" + std::to_string(error) : name;
}

bool StartsWith(const std::string& text, const char* start) { return text.rfind(start, 0) == 0; }

std::string Trim(const std::string& text) {
  size_t from = text.find_first_not_of(" \t\r");
  if (from == std::string::npos) return {};
  return text.substr(from, text.find_last_not_of(" \t\r") - from + 1);
}

constexpr char kBegin[] = "-- BEGIN PROG LOAD LOG --";
constexpr char kEnd[] = "-- END PROG LOAD LOG --";

// The last refused program's log, or empty.
std::string VerifierText(const std::string& all) {
  size_t begin = all.rfind(kBegin);
  if (begin == std::string::npos) return {};
  begin += sizeof kBegin - 1;
  size_t end = all.find(kEnd, begin);
  return all.substr(begin, end == std::string::npos ? std::string::npos : end - begin);
}

// Calls visit on the lines from the last to the first until it returns true.
template <typename Visit>
void LinesBackwards(const std::string& text, Visit visit) {
  size_t end = text.size();
  while (end > 0) {
    size_t newline = text.rfind('\n', end - 1);
    size_t begin = newline == std::string::npos ? 0 : newline + 1;
    if (visit(Trim(text.substr(begin, end - begin)), begin)) return;
    if (newline == std::string::npos) return;
    end = newline;
  }
}

bool IsStatistics(const std::string& line) {
  for (const char* start : {"processed ", "verification time", "stack depth", "peak_states", "mark_read", "libbpf:"}) {
    if (StartsWith(line, start)) return true;
  }
  return false;
}

}  // namespace

void SilenceLibbpf() {
  static std::once_flag once;
  std::call_once(once, [] { libbpf_set_print(Print); });
}

LibbpfLog::LibbpfLog() { current_log = &text_; }
LibbpfLog::~LibbpfLog() { current_log = nullptr; }

std::string LibbpfLog::LastLine() const {
  std::string found;
  std::string outside = text_;
  // The verifier's own text is not libbpf's.
  for (size_t begin; (begin = outside.find(kBegin)) != std::string::npos;) {
    size_t end = outside.find(kEnd, begin);
    outside.erase(begin, end == std::string::npos ? std::string::npos : end + sizeof kEnd - 1 - begin);
  }
  LinesBackwards(outside, [&](const std::string& line, size_t) {
    std::string said = StartsWith(line, "libbpf: ") ? line.substr(8) : line;
    if (said.empty() || StartsWith(said, "failed to load object") || said.find("failed to load: -") != std::string::npos ||
        said == "prog") {
      return false;
    }
    found = said;
    return true;
  });
  return found;
}

std::string LibbpfLog::VerifierLine() const {
  std::string found;
  LinesBackwards(VerifierText(text_), [&](const std::string& line, size_t) {
    if (line.empty() || IsStatistics(line)) return false;
    found = line;
    return true;
  });
  return found;
}

std::string LibbpfLog::VerifierPlace() const {
  size_t begin = text_.rfind(kBegin);
  if (begin == std::string::npos) return {};
  std::string place;
  size_t name = text_.rfind("prog '", begin);
  if (name != std::string::npos) {
    size_t end = text_.find('\'', name + 6);
    if (end != std::string::npos && end < begin) place = text_.substr(name, end + 1 - name);
  }
  LinesBackwards(VerifierText(text_), [&](const std::string& line, size_t) {
    if (!StartsWith(line, "; ")) return false;
    place += (place.empty() ? "" : " ") + ("at `" + line.substr(2) + "`");
    return true;
  });
  return place;
}

void ThrowErrno(Napi::Env env, int error, const ErrorFacts& facts) {
  if (env.IsExceptionPending()) return;
  if (error < 0) error = -error;
  std::string code = facts.code != nullptr ? facts.code : ErrnoName(error);
  std::string message = code + ": " + (error == 524 ? "operation not supported by this kernel" : strerror(error)) + ", " + facts.syscall;
  if (!facts.path.empty()) message += " '" + facts.path + "'";
  if (facts.ifindex > 0) message += " (ifindex " + std::to_string(facts.ifindex) + ")";
  if (!facts.detail.empty()) message += ": " + facts.detail;
  if (!facts.verifier.empty()) message += ": " + facts.verifier;

  Napi::Error thrown = Napi::Error::New(env, message);
  Napi::Object value = thrown.Value();
  value.Set("code", code);
  value.Set("syscall", facts.syscall);
  if (!facts.path.empty()) value.Set("path", facts.path);
  if (facts.ifindex > 0) value.Set("ifindex", facts.ifindex);
  if (!facts.verifier.empty()) value.Set("verifier", facts.verifier);
  thrown.ThrowAsJavaScriptException();
}

void ThrowClosed(Napi::Env env, const char* what) {
  ErrorFacts facts;
  facts.syscall = what;
  facts.detail = "it has been closed";
  ThrowErrno(env, EBADF, facts);
}

}  // namespace enforcer
