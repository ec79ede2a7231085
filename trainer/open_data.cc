#include "trainer/open_data.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/logging.h"
#include "base/status.h"
#include "comm/agree.h"

namespace graft::trainer {

absl::StatusOr<std::shared_ptr<const Dataset>> OpenData(const Recipe& recipe,
                                                        const std::string& folder,
                                                        const std::string& key,
                                                        comm::Communicator& all) {
  const auto open = [&]() -> absl::StatusOr<std::shared_ptr<const Dataset>> {
    GRAFT_ASSIGN_OR_RETURN(auto data,
                           Dataset::Open(folder, {.follow_links = recipe.model.follow_links,
                                                  .verify_hashes = all.rank() == 0}));
    const std::string kind = DataKindName(data->info().kind);
    if (kind != recipe.task.type) {
      return RecipeError(
          absl::StrCat(key, ": ", folder, " has kind ", kind, ", task.type is ", recipe.task.type));
    }
    if (data->size() == 0)
      return InputError(
          absl::StrCat(folder, "/dataset.json: num_samples: found 0, must be at least 1"));
    return data;
  };
  absl::StatusOr<std::shared_ptr<const Dataset>> data = open();
  GRAFT_RETURN_IF_ERROR(comm::AgreeOnStatus(all, data.status()));
  if (all.rank() == 0 && (*data)->ignored_first_targets() > 0) {
    LOG(WARNING) << folder << ": " << (*data)->ignored_first_targets()
                 << " first tokens have loss_mask 1 and are no targets";
  }
  return data;
}

namespace {

// What a separate prompt encoder reads.
absl::Status CheckEncoderIds(const Dataset& data, const adapters::PromptEncoderChoice& encoder,
                             const std::string& key) {
  const std::string where = absl::StrCat(key, ": ", data.folder());
  if (!data.has_encoder_ids()) {
    return InputError(absl::StrCat(where,
                                   ": encoder_ids: absent, adapter.encoder reads them; prepare the "
                                   "data with --encoder ",
                                   encoder.path));
  }
  const adapters::EncoderFacts& facts = encoder.facts;
  for (int64_t i = 0; i < data.size(); ++i) {
    const Sample sample = data.at(i);
    const auto length = static_cast<int64_t>(sample.encoder_ids.size());
    if (length > facts.max_positions) {
      return InputError(absl::StrCat(where, ": encoder_ids: sample ", sample.sample_id, " has ",
                                     length, ", the encoder has positions for ",
                                     facts.max_positions));
    }
    for (const int32_t id : sample.encoder_ids) {
      if (id < facts.vocab_size) continue;
      return InputError(absl::StrCat(where, ": encoder_ids: sample ", sample.sample_id, " has ", id,
                                     ", the encoder's vocab_size is ", facts.vocab_size));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckFitsModel(const Dataset& data, const LoadedModel& model, const std::string& key) {
  const models::ModelConfig& config = model.config();
  if (const auto* encoder = model.method().prompt_encoder(); encoder != nullptr) {
    GRAFT_RETURN_IF_ERROR(CheckEncoderIds(data, *encoder, key));
  }
  GRAFT_RETURN_IF_ERROR(
      Annotate(data.CheckFitsModel(config.vocab_size, config.longest_sequence()), key));
  const int64_t virtual_rows = model.method().virtual_rows();
  bool any_prompt = !model.method().reads_prompt();
  for (int64_t i = 0; i < data.size() && (virtual_rows > 0 || !any_prompt); ++i) {
    any_prompt = any_prompt || data.at(i).prompt_length > 0;
    if (virtual_rows + data.length(i) <= config.longest_sequence()) continue;
    return InputError(absl::StrCat(
        key, ": ", data.folder(), ": sample ", data.at(i).sample_id, " has ", data.length(i),
        " tokens; behind the ", virtual_rows, " rows of method ", model.method().name(),
        " the model has positions for ", config.longest_sequence() - virtual_rows));
  }
  if (any_prompt) return absl::OkStatus();
  return InputError(absl::StrCat(key, ": ", data.folder(),
                                 ": prompt_lengths: found 0 for every sample, the first is sample ",
                                 data.at(0).sample_id, "; adapter.method ", model.method().name(),
                                 " reads the prompt and needs at least 1 token of it"));
}

int64_t CountPromptTargets(const Dataset& data) {
  int64_t count = 0;
  for (int64_t i = 0; i < data.size(); ++i) {
    const Sample sample = data.at(i);
    const auto mask = sample.loss_mask.first(std::min<std::size_t>(
        static_cast<std::size_t>(sample.prompt_length), sample.loss_mask.size()));
    if (mask.size() > 1)
      count += std::count_if(mask.begin() + 1, mask.end(), [](uint8_t m) { return m != 0; });
  }
  return count;
}

absl::Status CheckOutputs(const Dataset& data, const LoadedModel& model, const std::string& key) {
  const int64_t outputs = WorkShapeOf(data, 0).outputs;
  if (outputs == model.outputs()) return absl::OkStatus();
  return InputError(absl::StrCat(key, ": ", data.folder(), " has ", outputs,
                                 " labels, the head has outputs for ", model.outputs()));
}

WorkShape WorkShapeOf(const Dataset& data, int64_t row_length) {
  const DatasetInfo& info = data.info();
  WorkShape work;
  work.sequence_length = row_length > 0 ? row_length : data.longest();
  int64_t tokens = info.num_tokens;
  if (info.kind == DataKind::kSeq2Seq) {
    tokens += info.num_trained_tokens;
    for (int64_t i = 0; i < data.size(); ++i)
      work.sequence_length = std::max(work.sequence_length, data.total_tokens(i));
  }
  work.head_share = static_cast<double>(info.num_trained_tokens) /
                    static_cast<double>(std::max<int64_t>(1, tokens));
  for (int64_t i = 0; data.has_encoder_ids() && i < data.size(); ++i) {
    work.encoder_length =
        std::max(work.encoder_length, static_cast<int64_t>(data.at(i).encoder_ids.size()));
  }
  if (info.kind == DataKind::kClassification)
    work.outputs = static_cast<int64_t>(info.labels.size());
  if (info.kind == DataKind::kRegression) work.outputs = 1;
  return work;
}

int64_t LimitedSize(const Dataset& data, int64_t max_samples) {
  return max_samples > 0 ? std::min(max_samples, data.size()) : data.size();
}

}  // namespace graft::trainer
