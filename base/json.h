// Strict reading of JSON files, which are all untrusted: duplicate keys, depth, size and number of
// values are refused before they cost memory, and typed getters say file, key, what was found and
// what is allowed (reliability.md 6). Used by everyone who reads config.json, safetensors headers,
// dataset.json, adapter_config.json, manifests. All errors are of kind input.
//
// It does not write JSON: nlohmann's dump does.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace graft {

struct JsonLimits {
  int64_t max_bytes = int64_t{1} << 20;
  int max_depth = 64;              // containers inside one another; 1 = one flat object
  int64_t max_values = 1'000'000;  // scalars and containers together
};

// `origin` (a path, or a path with a part) opens every message. Invalid UTF-8, NaN, comments, a
// byte-order mark, numbers that overflow a double and text after the value are refused.
absl::StatusOr<nlohmann::json> ParseJson(const char* data, std::size_t size,
                                         const std::string& origin, const JsonLimits& limits = {});
absl::StatusOr<nlohmann::json> ParseJson(const std::string& text, const std::string& origin,
                                         const JsonLimits& limits = {});
// Reads the file by the rules of base/file.h.
absl::StatusOr<nlohmann::json> ReadJsonFile(const std::string& path, const JsonLimits& limits = {},
                                            bool follow_links = false);

// "a string \"x\"", "an object", "the number 1e+18": what a message says was found.
std::string DescribeJson(const nlohmann::json& value);

// Getters: `object` must be a JSON object, else an error. Absent keys are an error in GetX and give
// `fallback` in GetXOr; null counts as absent there. `origin` is the file, with a leading part for
// nested objects ("config.json: rope_scaling").
bool HasValue(const nlohmann::json& object, const std::string& key);
absl::StatusOr<bool> GetBool(const nlohmann::json& object, const std::string& key,
                             const std::string& origin);
absl::StatusOr<bool> GetBoolOr(const nlohmann::json& object, const std::string& key, bool fallback,
                               const std::string& origin);
// An integer literal with min <= value <= max; 8.0 and "8" are refused.
absl::StatusOr<int64_t> GetInt(const nlohmann::json& object, const std::string& key, int64_t min,
                               int64_t max, const std::string& origin);
absl::StatusOr<int64_t> GetIntOr(const nlohmann::json& object, const std::string& key,
                                 int64_t fallback, int64_t min, int64_t max,
                                 const std::string& origin);
// Any finite number with min <= value <= max.
absl::StatusOr<double> GetReal(const nlohmann::json& object, const std::string& key, double min,
                               double max, const std::string& origin);
absl::StatusOr<double> GetRealOr(const nlohmann::json& object, const std::string& key,
                                 double fallback, double min, double max,
                                 const std::string& origin);
absl::StatusOr<std::string> GetString(const nlohmann::json& object, const std::string& key,
                                      const std::string& origin);
absl::StatusOr<std::string> GetStringOr(const nlohmann::json& object, const std::string& key,
                                        const std::string& fallback, const std::string& origin);
absl::StatusOr<std::vector<int64_t>> GetIntList(const nlohmann::json& object,
                                                const std::string& key, int64_t min, int64_t max,
                                                const std::string& origin);
absl::StatusOr<std::vector<std::string>> GetStringList(const nlohmann::json& object,
                                                       const std::string& key,
                                                       const std::string& origin);
// The pointers live as long as `object`.
absl::StatusOr<const nlohmann::json*> GetObject(const nlohmann::json& object,
                                                const std::string& key, const std::string& origin);
absl::StatusOr<const nlohmann::json*> GetArray(const nlohmann::json& object, const std::string& key,
                                               const std::string& origin);
// Refuses keys that are not in `known`, with the nearest known one.
absl::Status CheckKnownKeys(const nlohmann::json& object, const std::vector<std::string>& known,
                            const std::string& origin);

}  // namespace graft
