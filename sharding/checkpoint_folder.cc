#include "sharding/checkpoint_folder.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/status.h"
#include "base/text.h"

namespace graft::sharding {
namespace {

constexpr char kStepPrefix[] = "step-";
constexpr size_t kStepDigits = 8;

// The data of a tensor may be unaligned: each number is copied out.
absl::Status CheckNumbers(const models::TensorView& view, bool may_be_negative,
                          const std::string& where) {
  for (int64_t at = 0; at < view.bytes; at += 4) {
    float number = 0;
    std::memcpy(&number, view.data + at, sizeof(number));
    if (!std::isfinite(number) || (number < 0 && !may_be_negative)) {
      return InputError(absl::StrCat(where, ": number ", at / 4, " is ", number, ", must be ",
                                     may_be_negative ? "finite" : "finite and not negative"));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckTensor(const models::SafetensorsFile& file, const TensorEntry& entry) {
  const std::string where = absl::StrCat(file.path(), ": tensor `", Printable(entry.key), "`");
  GRAFT_ASSIGN_OR_RETURN(const models::TensorView view, file.Find(entry.key));
  if (view.type != models::TensorType::kFloat32 || view.shape != entry.shape) {
    return InputError(where + ": has another type or shape than the manifest says");
  }
  const uint64_t hash = Hash64(view.data, static_cast<size_t>(view.bytes));
  if (hash != entry.hash64) {
    return InputError(absl::StrCat(where, ": hash64 is ", Hex64(hash), ", the manifest says ",
                                   Hex64(entry.hash64)));
  }
  const bool signed_kind =
      absl::StartsWith(entry.key, "param/") || absl::StartsWith(entry.key, "exp_avg/");
  return CheckNumbers(view, signed_kind, where);
}

}  // namespace

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

absl::StatusOr<Manifest> ReadManifest(const std::string& folder) {
  const std::string path = JoinPath(folder, kManifestName);
  GRAFT_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxManifestBytes));
  GRAFT_ASSIGN_OR_RETURN(Manifest manifest, ParseManifest(text, path));
  const std::optional<int64_t> step = ParseStepFolderName(Basename(folder));
  if (step.has_value() && *step != manifest.step) {
    return InputError(
        absl::StrCat(path, ": step: found ", manifest.step, ", the folder's name says ", *step));
  }
  return manifest;
}

absl::Status CheckFile(const std::string& folder, const CheckpointFile& file) {
  const std::string path = JoinPath(folder, file.file);
  int64_t size = 0;
  GRAFT_RETURN_IF_ERROR(OpenForReading(path, {}, &size).status());
  if (size != file.bytes) {
    return InputError(
        absl::StrCat(path, ": found ", size, " bytes, the manifest says ", file.bytes));
  }
  GRAFT_ASSIGN_OR_RETURN(const std::string hash, Sha256File(path));
  if (hash != file.sha256) {
    return InputError(
        absl::StrCat(path, ": sha256 is ", hash, ", the manifest says ", file.sha256));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<const models::SafetensorsFile>> CheckShard(
    const std::string& folder, const Manifest& manifest, const CheckpointFile& file) {
  GRAFT_RETURN_IF_ERROR(CheckFile(folder, file));
  const std::string path = JoinPath(folder, file.file);
  GRAFT_ASSIGN_OR_RETURN(const std::shared_ptr<const models::SafetensorsFile> shard,
                         models::SafetensorsFile::Open(path));
  size_t count = 0;
  for (const TensorEntry& entry : manifest.tensors) {
    if (entry.file != file.file) continue;
    ++count;
    GRAFT_RETURN_IF_ERROR(CheckTensor(*shard, entry));
  }
  if (count != shard->tensors().size()) {
    return InputError(absl::StrCat(path, ": found ", shard->tensors().size(),
                                   " tensors, the manifest says ", count));
  }
  return shard;
}

absl::StatusOr<Manifest> ValidateCheckpoint(const std::string& folder) {
  GRAFT_ASSIGN_OR_RETURN(Manifest manifest, ReadManifest(folder));
  for (const CheckpointFile& file : manifest.files) {
    GRAFT_RETURN_IF_ERROR(file.file == manifest.recipe.file
                              ? CheckFile(folder, file)
                              : CheckShard(folder, manifest, file).status());
    if (file.file == manifest.recipe.file && file.sha256 != manifest.recipe.sha256) {
      return InputError(absl::StrCat(folder, ": recipe: sha256 differs from files: ", file.file));
    }
  }
  return manifest;
}

absl::StatusOr<std::string> Quarantine(const std::string& checkpoints, const std::string& name) {
  int number = 1;
  const auto bad = [&] { return absl::StrCat(name, kBadMark, number); };
  while (PathExists(JoinPath(checkpoints, bad()))) ++number;
  GRAFT_RETURN_IF_ERROR(RenamePath(JoinPath(checkpoints, name), JoinPath(checkpoints, bad())));
  GRAFT_RETURN_IF_ERROR(SyncFolder(checkpoints));
  return bad();
}

}  // namespace graft::sharding
