#include "sharding/manifest.h"

#include <algorithm>
#include <set>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/json.h"
#include "base/status.h"
#include "base/text.h"

namespace graft::sharding {
namespace {

constexpr char kFormat[] = "graft-checkpoint";
constexpr int64_t kVersion = 1;
constexpr int64_t kMaxManifestBytes = int64_t{64} << 20;
constexpr int64_t kMaxStep = 99'999'999;
constexpr size_t kHashDigits = 64;
// With the indent of the outermost object; line ends inside texts are escaped, so it occurs once.
constexpr char kSelfKey[] = "\n \"self_sha256\": \"";
constexpr char kStepPrefix[] = "step-";
constexpr size_t kStepDigits = 8;

bool IsHash(const std::string& text) {
  return text.size() == kHashDigits && std::all_of(text.begin(), text.end(), [](char c) {
           return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
         });
}

// sha256 of the text with the 64 characters of its own hash set to 0.
std::string SelfHash(std::string text, size_t at) {
  text.replace(at, kHashDigits, kHashDigits, '0');
  return Sha256Hex(text);
}

absl::Status CheckSelfHash(const std::string& text, const std::string& hash,
                           const std::string& origin) {
  const size_t key = text.find(kSelfKey);
  const size_t at = key + sizeof(kSelfKey) - 1;
  if (key == std::string::npos || text.compare(at, kHashDigits, hash) != 0 || !IsHash(hash) ||
      SelfHash(text, at) != hash) {
    return InputError(origin + ": self_sha256 does not fit the file's bytes");
  }
  return absl::OkStatus();
}

absl::StatusOr<TextMap> GetTextMap(const nlohmann::json& object, const std::string& key,
                                   const std::string& origin) {
  GRAFT_ASSIGN_OR_RETURN(const nlohmann::json* map, GetObject(object, key, origin));
  TextMap result;
  for (const auto& item : map->items()) {
    GRAFT_ASSIGN_OR_RETURN(result[item.key()],
                           GetString(*map, item.key(), absl::StrCat(origin, ": ", key)));
  }
  return result;
}

// "recipe.yaml" or "shards/BASENAME".
absl::Status CheckFileName(const std::string& name, const std::string& origin) {
  const std::string prefix = absl::StrCat(kShardFolder, "/");
  const bool shard = name.compare(0, prefix.size(), prefix) == 0;
  return CheckBasename(shard ? name.substr(prefix.size()) : name, origin + ": files: file");
}

absl::StatusOr<std::vector<CheckpointFile>> GetFiles(const nlohmann::json& object,
                                                     const std::string& origin) {
  GRAFT_ASSIGN_OR_RETURN(const nlohmann::json* list, GetArray(object, "files", origin));
  const std::string where = origin + ": files";
  std::vector<CheckpointFile> files;
  std::set<std::string> seen;
  for (const nlohmann::json& entry : *list) {
    GRAFT_RETURN_IF_ERROR(CheckKnownKeys(entry, {"file", "bytes", "sha256"}, where));
    CheckpointFile file;
    GRAFT_ASSIGN_OR_RETURN(file.file, GetString(entry, "file", where));
    GRAFT_ASSIGN_OR_RETURN(file.bytes, GetInt(entry, "bytes", 0, int64_t{1} << 50, where));
    GRAFT_ASSIGN_OR_RETURN(file.sha256, GetString(entry, "sha256", where));
    GRAFT_RETURN_IF_ERROR(CheckFileName(file.file, origin));
    if (!IsHash(file.sha256)) {
      return InputError(absl::StrCat(where, ": sha256: found `", Printable(file.sha256),
                                     "`, allowed are 64 lower-case hex digits"));
    }
    if (!seen.insert(file.file).second) {
      return InputError(absl::StrCat(where, ": `", file.file, "` occurs twice"));
    }
    files.push_back(std::move(file));
  }
  return files;
}

}  // namespace

std::string ManifestText(const Manifest& manifest) {
  nlohmann::json files = nlohmann::json::array();
  for (const CheckpointFile& file : manifest.files) {
    files.push_back({{"file", file.file}, {"bytes", file.bytes}, {"sha256", file.sha256}});
  }
  const nlohmann::json object = {{"format", kFormat},
                                 {"version", kVersion},
                                 {"step", manifest.step},
                                 {"updates", manifest.updates},
                                 {"skipped", manifest.skipped},
                                 {"start", manifest.start},
                                 {"fixed", manifest.fixed},
                                 {"layout", manifest.layout},
                                 {"state", manifest.state},
                                 {"files", files},
                                 {"self_sha256", std::string(kHashDigits, '0')}};
  std::string text = object.dump(1) + "\n";
  const size_t at = text.find(kSelfKey) + sizeof(kSelfKey) - 1;
  return text.replace(at, kHashDigits, SelfHash(text, at));
}

absl::StatusOr<Manifest> ParseManifest(const std::string& text, const std::string& origin) {
  JsonLimits limits;
  limits.max_bytes = kMaxManifestBytes;
  limits.max_depth = 4;
  GRAFT_ASSIGN_OR_RETURN(const nlohmann::json object, ParseJson(text, origin, limits));
  GRAFT_ASSIGN_OR_RETURN(const std::string format, GetString(object, "format", origin));
  if (format != kFormat) {
    return InputError(absl::StrCat(origin, ": format: found `", Printable(format),
                                   "`, allowed is `", kFormat, "`"));
  }
  GRAFT_ASSIGN_OR_RETURN(const int64_t version,
                         GetInt(object, "version", 0, int64_t{1} << 31, origin));
  if (version != kVersion) {
    return InputError(
        absl::StrCat(origin, ": version: found ", version, ", this program reads ", kVersion));
  }
  GRAFT_RETURN_IF_ERROR(CheckKnownKeys(object,
                                       {"format", "version", "step", "updates", "skipped", "start",
                                        "fixed", "layout", "state", "files", "self_sha256"},
                                       origin));
  GRAFT_ASSIGN_OR_RETURN(const std::string hash, GetString(object, "self_sha256", origin));
  GRAFT_RETURN_IF_ERROR(CheckSelfHash(text, hash, origin));
  Manifest manifest;
  GRAFT_ASSIGN_OR_RETURN(manifest.step, GetInt(object, "step", 0, kMaxStep, origin));
  GRAFT_ASSIGN_OR_RETURN(manifest.updates, GetInt(object, "updates", 0, kMaxStep, origin));
  GRAFT_ASSIGN_OR_RETURN(manifest.skipped, GetInt(object, "skipped", 0, kMaxStep, origin));
  if (manifest.step != manifest.updates + manifest.skipped) {
    return InputError(
        absl::StrCat(origin, ": step: found ", manifest.step,
                     ", but updates + skipped = ", manifest.updates + manifest.skipped));
  }
  GRAFT_ASSIGN_OR_RETURN(manifest.start, GetInt(object, "start", 1, int64_t{1} << 31, origin));
  GRAFT_ASSIGN_OR_RETURN(manifest.fixed, GetTextMap(object, "fixed", origin));
  GRAFT_ASSIGN_OR_RETURN(manifest.layout, GetTextMap(object, "layout", origin));
  GRAFT_ASSIGN_OR_RETURN(manifest.state, GetTextMap(object, "state", origin));
  GRAFT_ASSIGN_OR_RETURN(manifest.files, GetFiles(object, origin));
  return manifest;
}

absl::StatusOr<Manifest> ValidateCheckpoint(const std::string& folder) {
  const std::string path = JoinPath(folder, kManifestName);
  GRAFT_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxManifestBytes));
  GRAFT_ASSIGN_OR_RETURN(Manifest manifest, ParseManifest(text, path));
  for (const CheckpointFile& file : manifest.files) {
    const std::string file_path = JoinPath(folder, file.file);
    int64_t size = 0;
    GRAFT_RETURN_IF_ERROR(OpenForReading(file_path, {}, &size).status());
    if (size != file.bytes) {
      return InputError(
          absl::StrCat(file_path, ": found ", size, " bytes, the manifest says ", file.bytes));
    }
    GRAFT_ASSIGN_OR_RETURN(const std::string hash, Sha256File(file_path));
    if (hash != file.sha256) {
      return InputError(
          absl::StrCat(file_path, ": sha256 is ", hash, ", the manifest says ", file.sha256));
    }
  }
  return manifest;
}

std::string StepFolderName(int64_t step) { return absl::StrFormat("%s%08d", kStepPrefix, step); }

std::optional<int64_t> ParseStepFolderName(const std::string& name) {
  const size_t prefix = sizeof(kStepPrefix) - 1;
  if (name.size() != prefix + kStepDigits || name.compare(0, prefix, kStepPrefix) != 0) {
    return std::nullopt;
  }
  const std::string digits = name.substr(prefix);
  int64_t step = 0;
  if (digits.find_first_not_of("0123456789") != std::string::npos ||
      !absl::SimpleAtoi(digits, &step)) {
    return std::nullopt;
  }
  return step;
}

absl::StatusOr<std::vector<std::string>> ListStepFolders(const std::string& checkpoints) {
  std::vector<std::string> found;
  if (!IsFolder(checkpoints)) return found;
  GRAFT_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListFolder(checkpoints));
  for (const std::string& name : names) {
    if (ParseStepFolderName(name).has_value()) found.push_back(name);
  }
  // Eight digits each: the order of the names is the order of the steps.
  std::sort(found.rbegin(), found.rend());
  return found;
}

absl::Status CompareFixed(const TextMap& saved, const TextMap& current, const std::string& origin) {
  constexpr int kMaxNamed = 4;
  std::set<std::string> keys;
  for (const auto& [key, value] : saved) keys.insert(key);
  for (const auto& [key, value] : current) keys.insert(key);
  std::string differences;
  int count = 0;
  auto value_in = [](const TextMap& map, const std::string& key) {
    const auto found = map.find(key);
    return found == map.end() ? "absent" : absl::StrCat("`", Printable(found->second), "`");
  };
  for (const std::string& key : keys) {
    const std::string before = value_in(saved, key), now = value_in(current, key);
    if (before == now || ++count > kMaxNamed) continue;
    absl::StrAppend(&differences, count > 1 ? "; " : "", Printable(key), " is ", before,
                    " in the checkpoint and ", now, " now");
  }
  if (count == 0) return absl::OkStatus();
  return IoError(
      absl::StrCat(origin, ": cannot resume: ", differences,
                   count > kMaxNamed ? absl::StrCat("; and ", count - kMaxNamed, " more") : "",
                   ". Allowed are equal values; to continue with others start a new run with "
                   "adapter.init_from"));
}

}  // namespace graft::sharding
