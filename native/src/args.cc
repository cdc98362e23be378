// Reading arguments from JavaScript. See args.h.
#include "args.h"

#include <cmath>

namespace enforcer {

void Args::FailType(const std::string& message) {
  if (!ok_) return;
  ok_ = false;
  if (!env_.IsExceptionPending()) Napi::TypeError::New(env_, message).ThrowAsJavaScriptException();
}

void Args::FailRange(const std::string& message) {
  if (!ok_) return;
  ok_ = false;
  if (!env_.IsExceptionPending()) Napi::RangeError::New(env_, message).ThrowAsJavaScriptException();
}

int64_t Args::Integer(const Napi::Value& value, const char* name, int64_t min, int64_t max) {
  if (!ok_) return min;
  double number = 0;
  if (Missing(value) || napi_get_value_double(env_, value, &number) != napi_ok) {
    FailType(std::string(name) + " must be a number");
    return min;
  }
  if (!(number >= static_cast<double>(min) && number <= static_cast<double>(max)) || number != std::trunc(number)) {
    FailRange(std::string(name) + " must be a whole number from " + std::to_string(min) + " to " + std::to_string(max));
    return min;
  }
  return static_cast<int64_t>(number);
}

int64_t Args::Integer(const Napi::Value& value, const char* name, int64_t min, int64_t max, int64_t fallback) {
  return Missing(value) ? fallback : Integer(value, name, min, max);
}

Bytes Args::ByteArray(const Napi::Value& value, const char* name) {
  Bytes bytes;
  if (!ok_) return bytes;
  napi_typedarray_type type;
  void* data = nullptr;
  size_t length = 0;
  if (Missing(value) || napi_get_typedarray_info(env_, value, &type, &length, &data, nullptr, nullptr) != napi_ok ||
      type != napi_uint8_array) {
    FailType(std::string(name) + " must be a Uint8Array");
    return bytes;
  }
  bytes.data = static_cast<uint8_t*>(data);
  bytes.length = data == nullptr ? 0 : length;
  return bytes;
}

Bytes Args::ByteArray(const Napi::Value& value, const char* name, size_t length) {
  Bytes bytes = ByteArray(value, name);
  if (ok_ && bytes.length != length) {
    FailRange(std::string(name) + " must have " + std::to_string(length) + " octets, not " + std::to_string(bytes.length));
  }
  return bytes;
}

std::string Args::Text(const Napi::Value& value, const char* name, size_t limit, bool mayBeEmpty) {
  if (!ok_) return {};
  if (Missing(value) || !value.IsString()) {
    FailType(std::string(name) + " must be a string");
    return {};
  }
  std::string text = value.As<Napi::String>().Utf8Value();
  if ((text.empty() && !mayBeEmpty) || text.size() > limit || text.find('\0') != std::string::npos) {
    FailRange(std::string(name) + " must have " + (mayBeEmpty ? "0" : "1") + " to " + std::to_string(limit) + " octets and no NUL");
    return {};
  }
  return text;
}

bool Args::Boolean(const Napi::Value& value, const char* name, bool fallback) {
  if (!ok_ || Missing(value)) return fallback;
  if (!value.IsBoolean()) {
    FailType(std::string(name) + " must be true or false");
    return fallback;
  }
  return value.As<Napi::Boolean>().Value();
}

Napi::Object Args::Object(const Napi::Value& value, const char* name) {
  if (ok_ && (Missing(value) || !value.IsObject())) FailType(std::string(name) + " must be an object");
  return ok_ ? value.As<Napi::Object>() : Napi::Object();
}

Napi::Object Args::OptionalObject(const Napi::Value& value, const char* name) {
  return Missing(value) ? Napi::Object() : Object(value, name);
}

Napi::Function Args::Function(const Napi::Value& value, const char* name) {
  if (ok_ && (Missing(value) || !value.IsFunction())) FailType(std::string(name) + " must be a function");
  return ok_ ? value.As<Napi::Function>() : Napi::Function();
}

Napi::Value Args::Get(const Napi::Object& object, const char* name) {
  if (!ok_ || object.IsEmpty()) return Napi::Value();
  napi_value property = nullptr;
  if (napi_get_named_property(env_, object, name, &property) != napi_ok) {
    ok_ = false;  // a getter threw; its exception is pending
    return Napi::Value();
  }
  return Napi::Value(env_, property);
}

}  // namespace enforcer
