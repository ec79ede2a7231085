#include "trainer/data/dataset.h"

#include <algorithm>
#include <set>
#include <utility>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/json.h"
#include "base/status.h"
#include "base/text.h"
#include "trainer/data/dataset_shard.h"

namespace graft::trainer {
namespace {

using nlohmann::json;

constexpr char kHeaderFile[] = "dataset.json";
constexpr int64_t kMaxHeaderBytes = int64_t{16} << 20;  // many shards and label names
constexpr int64_t kMaxVocab = 4'194'304;
constexpr int64_t kMaxLength = 16'777'216;
constexpr int64_t kMaxCount = int64_t{1} << 50;

struct KindRow {
  DataKind kind;
  const char* name;
};
constexpr KindRow kKinds[] = {{DataKind::kCausalLm, "causal_lm"},
                              {DataKind::kClassification, "classification"},
                              {DataKind::kRegression, "regression"},
                              {DataKind::kSeq2Seq, "seq2seq"}};

absl::StatusOr<DataKind> ReadKind(const json& header, const std::string& where) {
  GRAFT_ASSIGN_OR_RETURN(const std::string name, GetString(header, "kind", where));
  std::vector<std::string> names;
  for (const KindRow& row : kKinds) {
    if (name == row.name) return row.kind;
    names.push_back(row.name);
  }
  return InputError(absl::StrCat(where, ": kind: found \"", Printable(name), "\", supported are ",
                                 JoinNames(names)));
}

bool IsSha256(const std::string& text) {
  return text.size() == 64 && text.find_first_not_of("0123456789abcdef") == std::string::npos;
}

absl::StatusOr<std::string> ReadSha256(const json& object, const std::string& key,
                                       const std::string& where) {
  GRAFT_ASSIGN_OR_RETURN(const std::string text, GetString(object, key, where));
  if (!IsSha256(text)) {
    return InputError(absl::StrCat(where, ": ", key, ": found \"", Printable(text),
                                   "\", must be 64 lower-case hex digits"));
  }
  return text;
}

absl::Status CheckFormat(const json& header, const std::string& where) {
  GRAFT_ASSIGN_OR_RETURN(const std::string format, GetString(header, "format", where));
  if (format != "graft-dataset") {
    return InputError(absl::StrCat(where, ": format: found \"", Printable(format),
                                   "\", must be \"graft-dataset\""));
  }
  GRAFT_ASSIGN_OR_RETURN(const int64_t version, GetInt(header, "version", 0, INT64_MAX, where));
  if (version != 1) {
    return InputError(absl::StrCat(where, ": version: found ", version,
                                   ", this program reads version 1; prepare the data again"));
  }
  return absl::OkStatus();
}

absl::StatusOr<DatasetInfo> ReadInfo(const json& header, const std::string& where) {
  DatasetInfo info;
  GRAFT_ASSIGN_OR_RETURN(info.kind, ReadKind(header, where));
  GRAFT_ASSIGN_OR_RETURN(info.vocab_size, GetInt(header, "vocab_size", 1, kMaxVocab, where));
  if (HasValue(header, "tokenizer_sha256")) {
    GRAFT_ASSIGN_OR_RETURN(info.tokenizer_sha256, ReadSha256(header, "tokenizer_sha256", where));
  }
  GRAFT_ASSIGN_OR_RETURN(info.num_samples, GetInt(header, "num_samples", 1, kMaxCount, where));
  GRAFT_ASSIGN_OR_RETURN(info.num_tokens, GetInt(header, "num_tokens", 1, kMaxCount, where));
  GRAFT_ASSIGN_OR_RETURN(info.num_trained_tokens,
                         GetInt(header, "num_trained_tokens", 1, kMaxCount, where));
  GRAFT_ASSIGN_OR_RETURN(info.max_length, GetInt(header, "max_length", 1, kMaxLength, where));
  GRAFT_ASSIGN_OR_RETURN(info.template_name, GetStringOr(header, "template", "", where));
  GRAFT_ASSIGN_OR_RETURN(info.loss_on, GetStringOr(header, "loss_on", "", where));
  if (HasValue(header, "labels")) {
    GRAFT_ASSIGN_OR_RETURN(info.labels, GetStringList(header, "labels", where));
  }
  if (info.kind == DataKind::kClassification && info.labels.size() < 2) {
    return InputError(absl::StrCat(where, ": labels: found ", info.labels.size(),
                                   " names, classification needs at least 2"));
  }
  return info;
}

}  // namespace

struct Dataset::ShardEntry {
  std::string file;
  int64_t samples;
  std::string sha256;
};

const char* DataKindName(DataKind kind) {
  for (const KindRow& row : kKinds) {
    if (row.kind == kind) return row.name;
  }
  return "unknown";
}

Dataset::Dataset() = default;
Dataset::~Dataset() = default;

absl::StatusOr<std::shared_ptr<const Dataset>> Dataset::Open(const std::string& folder,
                                                             Options options) {
  std::shared_ptr<Dataset> data(new Dataset());
  data->folder_ = folder;
  ReadOptions read_options;
  read_options.follow_links = options.follow_links;
  GRAFT_ASSIGN_OR_RETURN(const std::string text,
                         ReadFile(JoinPath(folder, kHeaderFile), kMaxHeaderBytes, read_options));
  std::vector<ShardEntry> entries;
  GRAFT_RETURN_IF_ERROR(data->ReadHeader(text, &entries));
  GRAFT_RETURN_IF_ERROR(data->OpenShards(entries, options));
  GRAFT_RETURN_IF_ERROR(data->CheckTotals());
  Sha256 hash;
  hash.Update(text);
  for (const ShardEntry& entry : entries) hash.Update(entry.sha256);
  data->fingerprint_ = hash.HexDigest();
  return std::shared_ptr<const Dataset>(std::move(data));
}

absl::Status Dataset::ReadHeader(const std::string& text, std::vector<ShardEntry>* entries) {
  const std::string path = JoinPath(folder_, kHeaderFile);
  JsonLimits limits;
  limits.max_bytes = kMaxHeaderBytes;
  GRAFT_ASSIGN_OR_RETURN(const json header, ParseJson(text, path, limits));
  const std::string where = Printable(path, 512);
  GRAFT_RETURN_IF_ERROR(CheckFormat(header, where));
  GRAFT_ASSIGN_OR_RETURN(info_, ReadInfo(header, where));
  GRAFT_ASSIGN_OR_RETURN(const json* shards, GetArray(header, "shards", where));
  std::set<std::string> files;
  for (std::size_t i = 0; i < shards->size(); ++i) {
    const std::string shard_where = absl::StrCat(where, ": shards[", i, "]");
    ShardEntry entry;
    GRAFT_ASSIGN_OR_RETURN(entry.file, GetString((*shards)[i], "file", shard_where));
    GRAFT_RETURN_IF_ERROR(CheckBasename(entry.file, shard_where + ": file"));
    GRAFT_ASSIGN_OR_RETURN(entry.samples,
                           GetInt((*shards)[i], "samples", 1, info_.num_samples, shard_where));
    GRAFT_ASSIGN_OR_RETURN(entry.sha256, ReadSha256((*shards)[i], "sha256", shard_where));
    if (!files.insert(entry.file).second) {
      return InputError(absl::StrCat(shard_where, ": file: ", entry.file, " is listed twice"));
    }
    entries->push_back(entry);
  }
  if (entries->empty()) return InputError(absl::StrCat(where, ": shards: lists no shard"));
  return absl::OkStatus();
}

absl::Status Dataset::OpenShards(const std::vector<ShardEntry>& entries, Options options) {
  ReadOptions read_options;
  read_options.follow_links = options.follow_links;
  first_sample_ = {0};
  for (const ShardEntry& entry : entries) {
    const std::string path = JoinPath(folder_, entry.file);
    if (options.verify_hashes) {
      GRAFT_ASSIGN_OR_RETURN(const std::string found, Sha256File(path, read_options));
      if (found != entry.sha256) {
        return InputError(absl::StrCat(Printable(path, 512), ": sha256: is ", found,
                                       ", dataset.json says ", entry.sha256));
      }
    }
    GRAFT_ASSIGN_OR_RETURN(auto shard,
                           DatasetShard::Open(path, entry.samples, info_, options.follow_links));
    longest_ = std::max(longest_, shard->longest());
    max_token_id_ = std::max(max_token_id_, shard->max_token_id());
    ignored_first_targets_ += shard->ignored_first_targets();
    first_sample_.push_back(first_sample_.back() + entry.samples);
    shards_.push_back(std::move(shard));
  }
  return absl::OkStatus();
}

// The counts in dataset.json are those of the shards.
absl::Status Dataset::CheckTotals() const {
  int64_t tokens = 0;
  int64_t trained = 0;
  for (const auto& shard : shards_) {
    tokens += shard->num_tokens();
    trained += shard->num_trained_tokens();
  }
  if (info_.kind == DataKind::kClassification || info_.kind == DataKind::kRegression) {
    trained = first_sample_.back();
  }
  const std::string where = Printable(JoinPath(folder_, kHeaderFile), 512);
  const auto check = [&](const char* key, int64_t found, int64_t counted) {
    if (found == counted) return absl::OkStatus();
    return InputError(
        absl::StrCat(where, ": ", key, ": found ", found, ", the shards hold ", counted));
  };
  GRAFT_RETURN_IF_ERROR(check("num_samples", info_.num_samples, first_sample_.back()));
  GRAFT_RETURN_IF_ERROR(check("num_tokens", info_.num_tokens, tokens));
  // A writer may count first tokens, which are never targets.
  if (info_.num_trained_tokens == trained + ignored_first_targets_) return absl::OkStatus();
  return check("num_trained_tokens", info_.num_trained_tokens, trained);
}

Dataset::Place Dataset::Locate(int64_t index) const {
  GRAFT_CHECK(index >= 0 && index < size(), absl::StrCat("sample ", index, " of ", size()));
  const auto after = std::upper_bound(first_sample_.begin(), first_sample_.end(), index);
  const auto number = static_cast<std::size_t>(after - first_sample_.begin() - 1);
  return {shards_[number].get(), index - first_sample_[number]};
}

Sample Dataset::at(int64_t index) const {
  const Place place = Locate(index);
  return place.shard->at(place.index);
}

int64_t Dataset::length(int64_t index) const {
  const Place place = Locate(index);
  return place.shard->length(place.index);
}

int64_t Dataset::trained_tokens(int64_t index) const {
  const Place place = Locate(index);
  return place.shard->trained_tokens(place.index);
}

int64_t Dataset::total_tokens(int64_t index) const {
  const Place place = Locate(index);
  return place.shard->total_tokens(place.index);
}

bool Dataset::has_encoder_ids() const {
  return std::all_of(shards_.begin(), shards_.end(),
                     [](const auto& shard) { return shard->has_encoder_ids(); });
}

absl::Status Dataset::CheckFitsModel(int64_t vocab_size, int64_t longest_sequence) const {
  const std::string where = Printable(folder_, 512);
  if (max_token_id_ >= vocab_size) {
    return InputError(absl::StrCat(where, ": input_ids: the largest token id is ", max_token_id_,
                                   ", the model's vocab_size is ", vocab_size));
  }
  for (int64_t i = 0; longest_ > longest_sequence && i < size(); ++i) {
    if (length(i) <= longest_sequence) continue;
    return InputError(absl::StrCat(where, ": offsets: sample ", at(i).sample_id, " has ", length(i),
                                   " tokens, the model has positions for ", longest_sequence));
  }
  return absl::OkStatus();
}

}  // namespace graft::trainer
