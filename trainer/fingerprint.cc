#include "trainer/fingerprint.h"

#include <exception>
#include <optional>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "base/hash.h"
#include "base/mapped_file.h"
#include "base/status.h"
#include "base/text.h"
#include "comm/agree.h"
#include "models/weights/safetensors.h"

namespace graft::trainer {
namespace {

absl::StatusOr<std::string> LinesOf(const Recipe& recipe,
                                    const std::vector<WatchedTensor>& loaded) {
  if (loaded.empty()) return std::string();
  models::SafetensorsFile::Options options;
  options.follow_links = recipe.model.follow_links;
  GRAFT_ASSIGN_OR_RETURN(const auto weights,
                         models::WeightFolder::Open(recipe.model.path, options));
  std::string lines;
  for (const WatchedTensor& tensor : loaded) {
    GRAFT_ASSIGN_OR_RETURN(const models::TensorView view, weights->Find(tensor.name()));
    absl::StrAppend(&lines, tensor.name(), " ", models::TensorTypeName(view.type), " ",
                    absl::StrJoin(view.shape, ","), " ",
                    Hex64(Hash64(view.data, static_cast<size_t>(view.bytes))), "\n");
    DropPages(view.data, static_cast<size_t>(view.bytes));  // a mapping beside the one in use
  }
  return lines;
}

}  // namespace

absl::StatusOr<torch::Tensor> RecordingWeights::Load(const std::string& name,
                                                     const std::vector<int64_t>& shape,
                                                     torch::Dtype dtype) {
  try {
    GRAFT_ASSIGN_OR_RETURN(torch::Tensor tensor, source_.Load(name, shape, dtype));
    loaded_.emplace_back(prefix_ + name, tensor);
    return tensor;
  } catch (const std::exception& error) {
    // LibTorch throws when memory is short, with a stack trace from the second line on.
    const std::string text = error.what();
    return BugError(absl::StrCat("loading tensor `", name, "` (", absl::StrJoin(shape, ", "),
                                 "): ", text.substr(0, text.find('\n'))));
  }
}

void RecordingWeights::NoteMove(const std::string& name, const torch::Tensor& from,
                                const torch::Tensor& to) {
  std::optional<uint64_t> hash;
  if (hash_moves_ && from.is_cpu() && from.is_non_overlapping_and_dense() &&
      from.strides() == to.strides() && from.scalar_type() == to.scalar_type())
    hash = Hash64(from.const_data_ptr(), from.nbytes());
  derived_.copies.emplace_back(prefix_ + name, to, hash);
}

absl::StatusOr<std::string> ModelFingerprint(const Recipe& recipe,
                                             const std::vector<WatchedTensor>& loaded,
                                             comm::Communicator& world) {
  if (recipe.model.path.empty())
    return Sha256Hex(absl::StrCat("shape ", recipe.model.shape, " seed ", recipe.run.seed));
  const absl::StatusOr<std::string> mine = LinesOf(recipe, loaded);
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
