#include <set>
#include <utility>

#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/json.h"
#include "base/status.h"
#include "base/text.h"
#include "models/weights/safetensors.h"

namespace graft::models {
namespace {

using nlohmann::json;

constexpr char kSingleFile[] = "model.safetensors";
constexpr char kIndexFile[] = "model.safetensors.index.json";
// Of the base model: HF leaves it out when the base model was saved without a head.
constexpr const char* kBasePrefixes[] = {"transformer.", "roberta."};
constexpr int64_t kMaxIndexBytes = 100'000'000;

absl::StatusOr<std::map<std::string, std::string>> ReadIndex(const std::string& path,
                                                             bool follow_links) {
  JsonLimits limits;
  limits.max_bytes = kMaxIndexBytes;
  limits.max_depth = 8;
  limits.max_values = 2'100'000;
  GRAFT_ASSIGN_OR_RETURN(const json index, ReadJsonFile(path, limits, follow_links));
  const std::string where = Printable(path, 512);
  GRAFT_ASSIGN_OR_RETURN(const json* map, GetObject(index, "weight_map", where));
  const std::string map_where = absl::StrCat(where, ": weight_map");
  if (map->empty()) return InputError(absl::StrCat(map_where, ": lists no tensor"));
  std::map<std::string, std::string> file_of;
  for (const auto& [name, value] : map->items()) {
    GRAFT_ASSIGN_OR_RETURN(const std::string file, GetString(*map, name, map_where));
    const std::string entry_where = absl::StrCat(map_where, ": ", Printable(name));
    GRAFT_RETURN_IF_ERROR(CheckBasename(file, entry_where));
    if (!absl::EndsWith(file, ".safetensors")) {
      return InputError(
          absl::StrCat(entry_where, ": found \"", Printable(file), "\", must end in .safetensors"));
    }
    file_of.emplace(name, file);
  }
  return file_of;
}

// "model-00001-of-00002.safetensors".
bool IsShardName(const std::string& name) {
  return absl::StartsWith(name, "model-") && absl::StrContains(name, "-of-") &&
         absl::EndsWith(name, ".safetensors");
}

// Every listed shard is there, and no shard lies beside them unlisted. Other safetensors files
// (another serialisation of the same weights) are not the index's business.
absl::Status CheckShards(const std::string& folder,
                         const std::map<std::string, std::string>& file_of) {
  std::set<std::string> listed;
  for (const auto& [name, file] : file_of) listed.insert(file);
  const std::string where =
      absl::StrCat(Printable(JoinPath(folder, kIndexFile), 512), ": weight_map: ");
  for (const std::string& file : listed) {
    if (!PathExists(JoinPath(folder, file))) {
      return InputError(absl::StrCat(where, "lists shard ", file, ", which is absent"));
    }
  }
  GRAFT_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListFolder(folder));
  for (const std::string& name : names) {
    if (IsShardName(name) && listed.count(name) == 0) {
      return InputError(
          absl::StrCat(where, "does not list shard ", name, ", which lies in the folder"));
    }
  }
  return absl::OkStatus();
}

// A shard holds exactly the tensors that the index says.
absl::Status CheckShardContents(const SafetensorsFile& shard, const std::string& file,
                                const std::map<std::string, std::string>& file_of) {
  const std::string where = Printable(shard.path(), 512);
  for (const auto& [name, view] : shard.tensors()) {
    const auto it = file_of.find(name);
    if (it == file_of.end() || it->second != file) {
      return InputError(absl::StrCat(
          where, ": tensor `", Printable(name), "`: ", kIndexFile,
          it == file_of.end() ? std::string(" does not list it") : " puts it into " + it->second));
    }
  }
  for (const auto& [name, listed_file] : file_of) {
    if (listed_file == file && shard.tensors().count(name) == 0) {
      return InputError(absl::StrCat(where, ": tensor `", Printable(name), "` is missing; ",
                                     kIndexFile, " puts it into this shard"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::shared_ptr<WeightFolder>> WeightFolder::Open(const std::string& folder,
                                                                 SafetensorsFile::Options options) {
  std::shared_ptr<WeightFolder> weights(new WeightFolder());
  weights->folder_ = folder;
  weights->options_ = options;
  const std::string single = JoinPath(folder, kSingleFile);
  const std::string index = JoinPath(folder, kIndexFile);
  if (PathExists(single)) {
    GRAFT_ASSIGN_OR_RETURN(auto file, SafetensorsFile::Open(single, options));
    for (const auto& [name, view] : file->tensors()) weights->file_of_.emplace(name, kSingleFile);
    weights->open_.emplace(kSingleFile, std::move(file));
    return weights;
  }
  if (!PathExists(index)) {
    return InputError(absl::StrCat(Printable(folder, 512), ": has neither ", kSingleFile, " nor ",
                                   kIndexFile, "; other weight formats are not read"));
  }
  GRAFT_ASSIGN_OR_RETURN(weights->file_of_, ReadIndex(index, options.follow_links));
  GRAFT_RETURN_IF_ERROR(CheckShards(folder, weights->file_of_));
  return weights;
}

absl::StatusOr<TensorView> WeightFolder::Find(const std::string& name) {
  const auto it = file_of_.find(StoredName(name));
  if (it == file_of_.end()) {
    return InputError(absl::StrCat(Printable(folder_, 512), ": tensor `", Printable(name),
                                   "` is missing; the folder has ", file_of_.size(), " tensors"));
  }
  const std::string& file = it->second;
  auto open = open_.find(file);
  if (open == open_.end()) {
    GRAFT_ASSIGN_OR_RETURN(auto shard, SafetensorsFile::Open(JoinPath(folder_, file), options_));
    GRAFT_RETURN_IF_ERROR(CheckShardContents(*shard, file, file_of_));
    open = open_.emplace(file, std::move(shard)).first;
  }
  return open->second->Find(it->first);
}

bool WeightFolder::Has(const std::string& name) const {
  return file_of_.count(StoredName(name)) != 0;
}

std::string WeightFolder::StoredName(const std::string& name) const {
  if (file_of_.count(name) != 0) return name;
  for (const char* const prefix : kBasePrefixes) {
    if (!absl::StartsWith(name, prefix)) continue;
    const std::string bare = name.substr(std::string(prefix).size());
    if (file_of_.count(bare) != 0) return bare;
  }
  return name;
}

std::vector<std::string> WeightFolder::names() const {
  std::vector<std::string> names;
  names.reserve(file_of_.size());
  for (const auto& [name, file] : file_of_) names.push_back(name);
  return names;
}

}  // namespace graft::models
