#include "trainer/fingerprint.h"

#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "base/hash.h"
#include "base/status.h"
#include "base/text.h"
#include "comm/agree.h"
#include "models/weights/safetensors.h"

namespace graft::trainer {
namespace {

absl::StatusOr<std::string> LinesOf(const Recipe& recipe, const std::vector<std::string>& names) {
  if (names.empty()) return std::string();
  models::SafetensorsFile::Options options;
  options.follow_links = recipe.model.follow_links;
  GRAFT_ASSIGN_OR_RETURN(const auto weights,
                         models::WeightFolder::Open(recipe.model.path, options));
  std::string lines;
  for (const std::string& name : names) {
    GRAFT_ASSIGN_OR_RETURN(const models::TensorView view, weights->Find(name));
    absl::StrAppend(&lines, name, " ", models::TensorTypeName(view.type), " ",
                    absl::StrJoin(view.shape, ","), " ",
                    Hex64(Hash64(view.data, static_cast<size_t>(view.bytes))), "\n");
  }
  return lines;
}

}  // namespace

absl::StatusOr<torch::Tensor> RecordingWeights::Load(const std::string& name,
                                                     const std::vector<int64_t>& shape,
                                                     torch::Dtype dtype) {
  names_.push_back(name);
  return source_.Load(name, shape, dtype);
}

absl::StatusOr<std::string> ModelFingerprint(const Recipe& recipe,
                                             const std::vector<std::string>& names,
                                             comm::Communicator& world) {
  if (recipe.model.path.empty())
    return Sha256Hex(absl::StrCat("shape ", recipe.model.shape, " seed ", recipe.run.seed));
  const absl::StatusOr<std::string> mine = LinesOf(recipe, names);
  GRAFT_RETURN_IF_ERROR(comm::AgreeOnStatus(world, mine.status()));
  std::set<std::string> lines;  // two stages may load one tensor (a tied head)
  for (const std::string& text : comm::AllGatherStrings(world, *mine)) {
    for (const auto& line : absl::StrSplit(text, '\n', absl::SkipEmpty())) {
      lines.insert(std::string(line));
    }
  }
  return Sha256Hex(absl::StrCat(absl::StrJoin(lines, "\n"), "\n"));
}

}  // namespace graft::trainer
