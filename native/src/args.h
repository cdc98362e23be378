// Reading arguments from JavaScript.
//
// Holds always: every integer is checked to be a whole number within its range (RangeError; TypeError for another type).
// The first failure leaves its exception pending, ok() is false from then on, and every later read returns a harmless
// default without touching the engine: a function reads all its arguments, asks ok() once, and returns when it is false.
#pragma once

#include <napi.h>

#include <cstddef>
#include <cstdint>
#include <string>

namespace enforcer {

// Memory of a Uint8Array, valid until control returns to JavaScript.
struct Bytes {
  uint8_t* data = nullptr;
  size_t length = 0;
};

class Args {
 public:
  explicit Args(Napi::Env env) : env_(env) {}

  bool ok() const { return ok_; }
  Napi::Env env() const { return env_; }

  // |min|, |max| within ±2^53.
  int64_t Integer(const Napi::Value& value, const char* name, int64_t min, int64_t max);
  int64_t Integer(const Napi::Value& value, const char* name, int64_t min, int64_t max, int64_t fallback);
  uint32_t U32(const Napi::Value& value, const char* name) { return static_cast<uint32_t>(Integer(value, name, 0, UINT32_MAX)); }
  uint32_t U32(const Napi::Value& value, const char* name, uint32_t fallback) {
    return static_cast<uint32_t>(Integer(value, name, 0, UINT32_MAX, fallback));
  }
  int Descriptor(const Napi::Value& value, const char* name) { return static_cast<int>(Integer(value, name, 0, INT32_MAX)); }
  // 1..2^31-1
  int Ifindex(const Napi::Value& value, const char* name = "ifindex") { return static_cast<int>(Integer(value, name, 1, INT32_MAX)); }

  Bytes ByteArray(const Napi::Value& value, const char* name);
  // RangeError unless exactly so long.
  Bytes ByteArray(const Napi::Value& value, const char* name, size_t length);

  // Without NUL octets, at most limit octets of UTF-8, not empty.
  std::string Text(const Napi::Value& value, const char* name, size_t limit, bool mayBeEmpty = false);
  std::string Path(const Napi::Value& value, const char* name = "path") { return Text(value, name, 4095); }

  bool Boolean(const Napi::Value& value, const char* name, bool fallback);
  Napi::Object Object(const Napi::Value& value, const char* name);
  // An empty Napi::Object for undefined.
  Napi::Object OptionalObject(const Napi::Value& value, const char* name);
  Napi::Function Function(const Napi::Value& value, const char* name);
  // Property, or an empty value when object is empty or a read has failed.
  Napi::Value Get(const Napi::Object& object, const char* name);

  void FailType(const std::string& message);
  void FailRange(const std::string& message);

 private:
  static bool Missing(const Napi::Value& value) { return value.IsEmpty() || value.IsUndefined(); }

  Napi::Env env_;
  bool ok_ = true;
};

}  // namespace enforcer
