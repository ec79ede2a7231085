#include "models/weights/folder_fingerprint.h"

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/status.h"
#include "base/text.h"
#include "models/weights/safetensors.h"

namespace graft::models {
namespace {

constexpr int64_t kMaxConfigBytes = int64_t{1} << 20;

}  // namespace

absl::StatusOr<std::string> FolderFingerprint(const std::string& folder, bool follow_links) {
  GRAFT_ASSIGN_OR_RETURN(
      std::string text,
      ReadFile(JoinPath(folder, "config.json"), kMaxConfigBytes, {.follow_links = follow_links}));
  GRAFT_ASSIGN_OR_RETURN(const auto weights,
                         WeightFolder::Open(folder, {.follow_links = follow_links}));
  for (const std::string& name : weights->names()) {
    GRAFT_ASSIGN_OR_RETURN(const TensorView view, weights->Find(name));
    absl::StrAppend(&text, name, " ", Hex64(Hash64(view.data, static_cast<size_t>(view.bytes))),
                    "\n");
  }
  return Sha256Hex(text);
}

}  // namespace graft::models
