#include "trainer/inspect.h"

#include <algorithm>
#include <map>
#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/file.h"
#include "base/status.h"
#include "base/text.h"
#include "comm/flight_report.h"
#include "models/model_config.h"
#include "models/weights/expected_tensors.h"
#include "models/weights/safetensors.h"
#include "trainer/data/dataset.h"
#include "trainer/inspect_adapter.h"
#include "trainer/inspect_checkpoint.h"
#include "trainer/inspect_lines.h"

namespace graft::trainer {
namespace {

std::string DescribeRope(const models::RopeConfig& rope) {
  std::string text = absl::StrCat(rope.type, ", theta ", FormatReal(rope.theta));
  if (rope.type != "default") absl::StrAppend(&text, ", factor ", FormatReal(rope.factor));
  return text;
}

std::string DescribeWindow(const std::vector<int64_t>& windows) {
  const auto sliding =
      std::count_if(windows.begin(), windows.end(), [](int64_t w) { return w > 0; });
  if (sliding == 0) return "none";
  return absl::StrCat(*std::max_element(windows.begin(), windows.end()), " tokens in ", sliding,
                      " of ", windows.size(), " layers");
}

void AddShape(const models::ModelConfig& config, std::string* text) {
  AddLine("model type", config.model_type, text);
  if (!config.architecture.empty()) AddLine("architecture", Printable(config.architecture), text);
  AddLine("layers", config.num_layers, text);
  if (config.has_encoder()) {
    AddLine("encoder layers", absl::StrCat(config.encoder_layers, ", the first"), text);
  }
  AddLine("hidden size", config.hidden_size, text);
  AddLine("attention heads",
          absl::StrCat(config.num_heads, " of width ", config.head_dim, ", ", config.num_kv_heads,
                       " for keys and values"),
          text);
  AddLine("inner size", config.intermediate_size, text);
  AddLine("vocabulary", config.vocab_size, text);
  if (config.has_encoder()) {
    AddLine("positions",
            absl::StrCat("without limit, relative: ", config.relative_buckets,
                         " buckets up to a distance of ", config.relative_max_distance),
            text);
  } else {
    AddLine("positions", config.max_positions, text);
  }
  if (config.has_encoder()) {
    AddLine("decoder start token", config.decoder_start_token_id, text);
  } else if (config.position_rows > 0) {
    AddLine("position table", absl::StrCat(config.position_rows, " learned rows"), text);
  } else {
    AddLine("rotary embedding", DescribeRope(config.rope), text);
    AddLine("sliding window", DescribeWindow(config.sliding_window), text);
  }
  if (config.causal) {
    AddLine("head", config.tie_word_embeddings ? "tied to the embedding" : "untied", text);
  }
}

absl::StatusOr<std::string> DescribeModel(const std::string& folder) {
  GRAFT_ASSIGN_OR_RETURN(const models::ModelConfig config, models::ReadModelConfig(folder));
  GRAFT_ASSIGN_OR_RETURN(const auto weights,
                         models::WeightFolder::Open(folder, models::SafetensorsFile::Options()));
  GRAFT_RETURN_IF_ERROR(models::CheckWeights(config, *weights));
  int64_t parameters = 0;
  std::map<std::string, int64_t> bytes_of_type;
  for (const auto& [name, shape] : models::ExpectedTensors(config)) {
    GRAFT_ASSIGN_OR_RETURN(const models::TensorView view, weights->Find(name));
    parameters += view.num_elements();
    bytes_of_type[models::TensorTypeName(view.type)] += view.bytes;
  }
  std::vector<std::string> sizes;
  for (const auto& [type, bytes] : bytes_of_type) {
    sizes.push_back(absl::StrCat(type, " ", FormatBytes(bytes)));
  }
  std::string text;
  AddLine("model folder", Printable(folder, 512), &text);
  AddShape(config, &text);
  AddLine("parameters", parameters, &text);
  AddLine("weights", absl::StrJoin(sizes, ", "), &text);
  AddLine("tensors", absl::StrCat(weights->names().size(), ", shapes as config.json says"), &text);
  return text;
}

absl::StatusOr<std::string> DescribeDataset(const std::string& folder) {
  GRAFT_ASSIGN_OR_RETURN(const std::shared_ptr<const Dataset> data, Dataset::Open(folder));
  const DatasetInfo& info = data->info();
  std::string text;
  AddLine("data set", Printable(folder, 512), &text);
  AddLine("kind", DataKindName(info.kind), &text);
  AddLine("samples", info.num_samples, &text);
  AddLine("tokens", info.num_tokens, &text);
  AddLine("trained tokens", info.num_trained_tokens, &text);
  if (data->ignored_first_targets() > 0) {
    AddLine("ignored targets",
            absl::StrCat(data->ignored_first_targets(), " first tokens with loss_mask 1"), &text);
  }
  AddLine("longest sample", absl::StrCat(data->longest(), " tokens, limit ", info.max_length),
          &text);
  AddLine("vocabulary", absl::StrCat(info.vocab_size, ", largest id used ", data->max_token_id()),
          &text);
  AddLine("tokenizer", info.tokenizer_sha256.value_or("unknown"), &text);
  AddLine("template", Printable(info.template_name), &text);
  AddLine("loss on", Printable(info.loss_on), &text);
  if (!info.labels.empty()) {
    std::vector<std::string> names;
    for (const std::string& label : info.labels) names.push_back(Printable(label));
    AddLine("labels", Printable(JoinNames(names), 1000), &text);
  }
  AddLine("fingerprint", data->fingerprint(), &text);
  AddLine("checksums", "all shards match dataset.json", &text);
  return text;
}

// A folder is what its marker file says; the first match counts (a model folder may hold an
// adapter_config.json of its own only when it is an adapter folder).
struct FolderKind {
  const char* marker;
  const char* name;
  absl::StatusOr<std::string> (*describe)(const std::string& folder);
};
constexpr FolderKind kFolderKinds[] = {
    {"dataset.json", "a prepared data set", &DescribeDataset},
    {"adapter_config.json", "an adapter folder", &DescribeAdapter},
    {"config.json", "a model folder", &DescribeModel},
    {"manifest.json", "a checkpoint", &DescribeCheckpoint},
};

}  // namespace

absl::StatusOr<std::string> DescribeFolder(const std::string& path) {
  const std::string shown = Printable(path, 512);
  if (!PathExists(path)) return InputError(absl::StrCat(shown, ": does not exist"));
  if (!IsFolder(path)) return InputError(absl::StrCat(shown, ": is not a folder"));
  if (comm::IsFlightFolder(path)) return comm::DescribeFlight(path);
  std::vector<std::string> known = {"rank-NNNNN.json (flight recorders of a run)"};
  for (const FolderKind& kind : kFolderKinds) {
    if (PathExists(JoinPath(path, kind.marker))) return kind.describe(path);
    known.push_back(absl::StrCat(kind.marker, " (", kind.name, ")"));
  }
  return InputError(absl::StrCat(shown, ": holds none of ", JoinNames(known)));
}

}  // namespace graft::trainer
