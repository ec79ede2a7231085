#include "trainer/fingerprint.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/status.h"
#include "models/weights/safetensors.h"

namespace graft::trainer {
namespace {

constexpr int64_t kMaxConfigBytes = 1 << 20;

}  // namespace

absl::StatusOr<std::string> ModelFingerprint(const Recipe& recipe) {
  if (recipe.model.path.empty())
    return Sha256Hex(absl::StrCat("shape ", recipe.model.shape, " seed ", recipe.run.seed));
  models::SafetensorsFile::Options options;
  options.follow_links = recipe.model.follow_links;
  GRAFT_ASSIGN_OR_RETURN(const auto weights,
                         models::WeightFolder::Open(recipe.model.path, options));
  GRAFT_ASSIGN_OR_RETURN(const std::string config,
                         ReadFile(JoinPath(recipe.model.path, "config.json"), kMaxConfigBytes,
                                  {.follow_links = recipe.model.follow_links}));
  std::string text = absl::StrCat(Sha256Hex(config), "\n");
  for (const std::string& name : weights->names()) {
    GRAFT_ASSIGN_OR_RETURN(const models::TensorView view, weights->Find(name));
    absl::StrAppend(&text, name, " ", models::TensorTypeName(view.type), " ",
                    absl::StrJoin(view.shape, ","), "\n");
  }
  return Sha256Hex(text);
}

}  // namespace graft::trainer
