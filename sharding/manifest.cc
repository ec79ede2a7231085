#include "sharding/manifest.h"

#include <algorithm>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/json.h"
#include "base/status.h"
#include "base/text.h"
#include "sharding/manifest_fields.h"

namespace graft::sharding {
namespace {

using nlohmann::json;

constexpr char kFormat[] = "graft-checkpoint";
constexpr int64_t kMaxNumber = int64_t{1} << 53;
constexpr int64_t kMaxStep = 99'999'999;  // eight digits of a folder's name
constexpr size_t kHashDigits = 64;
constexpr size_t kRunIdDigits = 32;
// With the indent of the outermost object; line ends inside texts are escaped, so it occurs once.
constexpr char kSelfKey[] = "\n \"self_sha256\": \"";
// Of the outermost object, besides its scalars and sections.
constexpr char kLossScale[] = "loss_scale";
constexpr char kEval[] = "eval";

bool IsHex(const std::string& text, size_t digits) {
  return text.size() == digits && text.find_first_not_of("0123456789abcdef") == std::string::npos;
}

class Writer : public ManifestVisitor {
 public:
  void Text(const char* key, std::string* value) override { object_[key] = *value; }
  void Sha256(const char* key, std::string* value) override { object_[key] = *value; }
  void OptionalSha256(const char* key, std::optional<std::string>* value) override {
    object_[key] = value->has_value() ? json(**value) : json(nullptr);
  }
  void Int(const char* key, int64_t* value, int64_t) override { object_[key] = *value; }
  void Flag(const char* key, bool* value) override { object_[key] = *value; }
  void Real(const char* key, double* value) override { object_[key] = HexFloat(*value); }
  void OptionalReal(const char* key, std::optional<double>* value) override {
    object_[key] = value->has_value() ? json(HexFloat(**value)) : json(nullptr);
  }
  void Reals(const char* key, std::vector<double>* values) override {
    object_[key] = json::array();
    for (const double value : *values) object_[key].push_back(HexFloat(value));
  }
  void Ints(const char* key, std::vector<int64_t>* values) override { object_[key] = *values; }
  void Word(const char* key, uint64_t* value) override { object_[key] = Hex64(*value); }
  void Texts(const char* key, TextMap* values) override { object_[key] = *values; }
  json Take() { return std::move(object_); }

 private:
  json object_ = json::object();
};

// Fills one section from an object and keeps the first error; knows which keys were asked for.
class Reader : public ManifestVisitor {
 public:
  Reader(const json& object, std::string origin) : object_(object), origin_(std::move(origin)) {}

  void Text(const char* key, std::string* value) override {
    Take(key, GetString(object_, key, origin_), value);
  }
  void Sha256(const char* key, std::string* value) override {
    Text(key, value);
    if (status_.ok() && !IsHex(*value, kHashDigits)) {
      Fail(key, absl::StrCat("found `", Printable(*value), "`, allowed are 64 hex digits"));
    }
  }
  void OptionalSha256(const char* key, std::optional<std::string>* value) override {
    if (IsNull(key)) return;
    std::string text;
    Sha256(key, &text);
    *value = text;
  }
  void Int(const char* key, int64_t* value, int64_t min) override {
    Take(key, GetInt(object_, key, min, kMaxNumber, origin_), value);
  }
  void Flag(const char* key, bool* value) override {
    Take(key, GetBool(object_, key, origin_), value);
  }
  void Real(const char* key, double* value) override {
    std::string text;
    Text(key, &text);
    ParseHex(key, text, value);
  }
  void OptionalReal(const char* key, std::optional<double>* value) override {
    if (IsNull(key)) return;
    double number = 0;
    Real(key, &number);
    *value = number;
  }
  void Reals(const char* key, std::vector<double>* values) override {
    std::vector<std::string> texts;
    Take(key, GetStringList(object_, key, origin_), &texts);
    for (const std::string& text : texts) ParseHex(key, text, &values->emplace_back());
  }
  void Ints(const char* key, std::vector<int64_t>* values) override {
    Take(key, GetIntList(object_, key, 0, kMaxNumber, origin_), values);
  }
  void Word(const char* key, uint64_t* value) override {
    std::string text;
    Text(key, &text);
    if (status_.ok() && !ParseHex64(text, value)) {
      Fail(key, absl::StrCat("found `", Printable(text), "`, allowed are 16 hex digits"));
    }
  }
  void Texts(const char* key, TextMap* values) override {
    const json* map = nullptr;
    Take(key, GetObject(object_, key, origin_), &map);
    if (map == nullptr) return;
    for (const auto& item : map->items()) {
      Take(key, GetString(*map, item.key(), absl::StrCat(origin_, ": ", key)),
           &(*values)[item.key()]);
    }
  }
  void Known(const char* key) { known_.emplace_back(key); }
  absl::Status Finish() {
    return status_.ok() ? CheckKnownKeys(object_, known_, origin_) : status_;
  }

 private:
  template <typename T>
  void Take(const char* key, absl::StatusOr<T> found, T* value) {
    Known(key);
    if (status_.ok()) status_ = found.status();
    if (found.ok()) *value = *std::move(found);
  }
  bool IsNull(const char* key) {
    Known(key);
    const auto found = object_.find(key);
    return found != object_.end() && found->is_null();
  }
  void ParseHex(const char* key, const std::string& text, double* value) {
    if (status_.ok() && !ParseReal(text, value)) {
      Fail(key, absl::StrCat("found `", Printable(text), "`, allowed is a number as C99 hex text"));
    }
  }
  void Fail(const char* key, const std::string& what) {
    if (status_.ok()) status_ = InputError(absl::StrCat(origin_, ": ", key, ": ", what));
  }

  const json& object_;
  const std::string origin_;
  std::vector<std::string> known_;
  absl::Status status_;
};

template <typename T>
json ToJson(const T& section) {
  Writer writer;
  VisitFields(writer, const_cast<T&>(section));  // a writer only reads
  return writer.Take();
}

template <typename T>
absl::Status FromJson(const json& object, const std::string& origin, T* section) {
  if (!object.is_object()) {
    return InputError(
        absl::StrCat(origin, ": found ", DescribeJson(object), ", must be an object"));
  }
  Reader reader(object, origin);
  VisitFields(reader, *section);
  return reader.Finish();
}

// The sections, each with its key: `visit(key, section)`.
template <typename M, typename F>
void VisitSections(M& manifest, const F& visit) {
  visit("base", manifest.base);
  visit("adapter", manifest.adapter);
  visit("optimizer", manifest.optimizer);
  visit("schedule", manifest.schedule);
  visit("non_finite", manifest.non_finite);
  visit("data", manifest.data);
  visit("rng", manifest.rng);
  visit("layout", manifest.layout);
  visit("recipe", manifest.recipe);
}

// The lists, likewise.
template <typename M, typename F>
void VisitLists(M& manifest, const F& visit) {
  visit("files", manifest.files);
  visit("tensors", manifest.tensors);
}

// sha256 of the text with the 64 characters of its own hash set to 0.
std::string SelfHash(std::string text, size_t at) {
  text.replace(at, kHashDigits, kHashDigits, '0');
  return graft::Sha256Hex(text);
}

absl::Status CheckSelfHash(const std::string& text, const std::string& hash,
                           const std::string& origin) {
  const size_t key = text.find(kSelfKey);
  const size_t at = key + sizeof(kSelfKey) - 1;
  if (key == std::string::npos || !IsHex(hash, kHashDigits) ||
      text.compare(at, kHashDigits, hash) != 0 || SelfHash(text, at) != hash) {
    return InputError(origin + ": self_sha256 does not fit the file's bytes");
  }
  return absl::OkStatus();
}

absl::Status CheckFormat(const json& object, const std::string& origin) {
  GRAFT_ASSIGN_OR_RETURN(const std::string format, GetString(object, "format", origin));
  if (format != kFormat) {
    return InputError(absl::StrCat(origin, ": format: found `", Printable(format),
                                   "`, allowed is `", kFormat, "`"));
  }
  GRAFT_ASSIGN_OR_RETURN(const int64_t version, GetInt(object, "version", 0, kMaxNumber, origin));
  if (version != kManifestVersion) {
    return InputError(absl::StrCat(origin, ": version: found ", version, ", this program reads ",
                                   kManifestVersion));
  }
  return absl::OkStatus();
}

// "recipe.yaml" or "shards/BASENAME.safetensors", each once, sorted.
absl::Status CheckFiles(const Manifest& manifest, const std::string& origin) {
  const std::string where = origin + ": files: file", folder = absl::StrCat(kShardFolder, "/");
  std::string previous;
  for (const CheckpointFile& file : manifest.files) {
    const bool shard = absl::StartsWith(file.file, folder);
    GRAFT_RETURN_IF_ERROR(
        CheckBasename(shard ? file.file.substr(folder.size()) : file.file, where));
    if (shard ? !absl::EndsWith(file.file, ".safetensors") : file.file != manifest.recipe.file) {
      return InputError(absl::StrCat(where, ": found `", file.file, "`, allowed are ",
                                     Printable(manifest.recipe.file), " and ", folder,
                                     "NAME.safetensors"));
    }
    if (file.file <= previous) {
      return InputError(absl::StrCat(where, ": `", file.file, "` occurs twice or out of order"));
    }
    previous = file.file;
  }
  return absl::OkStatus();
}

constexpr char kKindsAllowed[] =
    "allowed are param/, exp_avg/, exp_avg_sq/, sensitivity/ and uncertainty/ with a name";

bool IsKind(const std::string& kind) {
  return kind == "param" || kind == "exp_avg" || kind == "exp_avg_sq" || kind == "sensitivity" ||
         kind == "uncertainty";
}

// Each tensor once, in a listed file; parameters and what belongs to them alike: the two moments,
// and the two averages of adapter.track_sensitivity for all of them or for none.
absl::Status CheckTensors(const Manifest& manifest, const std::string& origin) {
  const std::string where = origin + ": tensors";
  std::set<std::string> shards, used;
  for (const CheckpointFile& file : manifest.files) {
    if (file.file != manifest.recipe.file) shards.insert(file.file);
  }
  std::map<std::string, const TensorEntry*> entries;
  const auto bad = [&where](const TensorEntry& tensor, const std::string& what) {
    return InputError(absl::StrCat(where, ": `", Printable(tensor.key), "`: ", what));
  };
  int64_t parameters = 0;
  for (const TensorEntry& tensor : manifest.tensors) {
    if (!entries.emplace(tensor.key, &tensor).second) return bad(tensor, "occurs twice");
    if (tensor.key != entries.rbegin()->first) return bad(tensor, "is out of order");
    if (tensor.dtype != "F32") return bad(tensor, "dtype must be F32");
    if (shards.count(tensor.file) == 0) return bad(tensor, "its file is not listed");
    used.insert(tensor.file);
  }
  const auto first_tracked = entries.lower_bound("sensitivity/");
  const size_t tracked =
      first_tracked != entries.end() && absl::StartsWith(first_tracked->first, "sensitivity/");
  for (const auto& [key, tensor] : entries) {
    const size_t slash = key.find('/');
    const std::string kind = key.substr(0, slash), name = key.substr(std::min(slash, key.size()));
    if (!IsKind(kind) || name.size() < 2) return bad(*tensor, kKindsAllowed);
    const auto parameter = entries.find("param" + name);
    if (parameter == entries.end() || parameter->second->shape != tensor->shape ||
        parameter->second->file != tensor->file || entries.count("exp_avg" + name) == 0 ||
        entries.count("exp_avg_sq" + name) == 0) {
      return bad(*tensor, "a parameter and its moments must be in one file with one shape");
    }
    if (entries.count("sensitivity" + name) != tracked ||
        entries.count("uncertainty" + name) != tracked) {
      return bad(*tensor,
                 "sensitivity/ and uncertainty/ must be there for every parameter or none");
    }
    int64_t count = kind == "param" ? 1 : 0;
    for (const int64_t size : tensor->shape) {
      if (__builtin_mul_overflow(count, size, &count)) return bad(*tensor, "is too large");
    }
    if (__builtin_add_overflow(parameters, count, &parameters)) return bad(*tensor, "is too large");
  }
  if (parameters != manifest.adapter.parameters) {
    return InputError(absl::StrCat(where, ": found ", parameters, " parameters, adapter says ",
                                   manifest.adapter.parameters));
  }
  if (used.size() != shards.size()) return InputError(where + ": a listed shard has no tensor");
  return absl::OkStatus();
}

absl::Status CheckNumbers(const Manifest& manifest, const std::string& origin) {
  if (manifest.step > kMaxStep || manifest.updates > kMaxStep ||
      manifest.step != manifest.updates + manifest.skipped) {
    return InputError(absl::StrCat(origin, ": step: found ", manifest.step, ", updates ",
                                   manifest.updates, ", skipped ", manifest.skipped,
                                   "; must be their sum and at most ", kMaxStep));
  }
  if (!IsHex(manifest.run_id, kRunIdDigits)) {
    return InputError(absl::StrCat(origin, ": run_id: found `", Printable(manifest.run_id),
                                   "`, allowed are 32 hex digits"));
  }
  return absl::OkStatus();
}

absl::Status ReadSections(const json& object, const std::string& origin, Manifest* manifest) {
  Reader top(object, origin);
  VisitFields(top, *manifest);
  for (const char* const key : {"format", "version", "self_sha256", kLossScale, kEval}) {
    top.Known(key);
  }
  absl::Status status;
  VisitSections(*manifest, [&](const char* key, auto& section) {
    top.Known(key);
    const absl::StatusOr<const json*> found = GetObject(object, key, origin);
    if (status.ok()) status = found.status();
    if (status.ok()) status = FromJson(**found, absl::StrCat(origin, ": ", key), &section);
  });
  VisitLists(*manifest, [&](const char* key, auto& list) {
    top.Known(key);
    const absl::StatusOr<const json*> found = GetArray(object, key, origin);
    if (status.ok()) status = found.status();
    if (!status.ok()) return;
    for (const json& entry : **found) {
      status = FromJson(entry, absl::StrCat(origin, ": ", key), &list.emplace_back());
      if (!status.ok()) return;
    }
  });
  GRAFT_RETURN_IF_ERROR(status);
  GRAFT_RETURN_IF_ERROR(top.Finish());
  const auto scale = object.find(kLossScale), eval = object.find(kEval);
  if (scale == object.end() || !scale->is_null()) {
    return InputError(absl::StrCat(origin, ": ", kLossScale, ": must be null"));
  }
  if (eval == object.end()) return InputError(absl::StrCat(origin, ": ", kEval, ": is missing"));
  if (eval->is_null()) return absl::OkStatus();
  return FromJson(*eval, absl::StrCat(origin, ": ", kEval), &manifest->eval.emplace());
}

}  // namespace

std::string ManifestText(const Manifest& manifest) {
  json object = ToJson(manifest);
  object["format"] = kFormat;
  object["version"] = kManifestVersion;
  object[kLossScale] = nullptr;  // no fp16 in version 1
  object[kEval] = manifest.eval.has_value() ? ToJson(*manifest.eval) : json(nullptr);
  VisitSections(manifest,
                [&](const char* key, const auto& section) { object[key] = ToJson(section); });
  VisitLists(manifest, [&](const char* key, const auto& list) {
    object[key] = json::array();
    for (const auto& entry : list) object[key].push_back(ToJson(entry));
  });
  object["self_sha256"] = std::string(kHashDigits, '0');
  std::string text = object.dump(1) + "\n";
  const size_t at = text.find(kSelfKey) + sizeof(kSelfKey) - 1;
  return text.replace(at, kHashDigits, SelfHash(text, at));
}

absl::StatusOr<Manifest> ParseManifest(const std::string& text, const std::string& origin) {
  JsonLimits limits;
  limits.max_bytes = kMaxManifestBytes;
  limits.max_depth = 4;
  limits.max_values = 10'000'000;
  GRAFT_ASSIGN_OR_RETURN(const json object, ParseJson(text, origin, limits));
  GRAFT_RETURN_IF_ERROR(CheckFormat(object, origin));
  GRAFT_ASSIGN_OR_RETURN(const std::string hash, GetString(object, "self_sha256", origin));
  GRAFT_RETURN_IF_ERROR(CheckSelfHash(text, hash, origin));
  Manifest manifest;
  GRAFT_RETURN_IF_ERROR(ReadSections(object, origin, &manifest));
  GRAFT_RETURN_IF_ERROR(CheckNumbers(manifest, origin));
  GRAFT_RETURN_IF_ERROR(CheckFiles(manifest, origin));
  GRAFT_RETURN_IF_ERROR(CheckTensors(manifest, origin));
  return manifest;
}

}  // namespace graft::sharding
