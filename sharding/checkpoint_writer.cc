#include "sharding/checkpoint_writer.h"

#include <sys/stat.h>
#include <sys/statvfs.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/status.h"
#include "base/text.h"
#include "models/weights/safetensors.h"
#include "models/weights/safetensors_prefix.h"
#include "sharding/checkpoint_folder.h"

namespace graft::sharding {
namespace {

constexpr char kLatestName[] = "LATEST";
constexpr char kProbeName[] = ".trash-probe";

// Writes and hashes.
class ShardSink {
 public:
  ShardSink(NewFile file) : file_(std::move(file)) {}
  absl::Status Add(const void* data, size_t size) {
    hash_.Update(data, size);
    bytes_ += static_cast<int64_t>(size);
    return file_.Write(data, size);
  }
  absl::Status Finish(CheckpointFile* out) {
    GRAFT_RETURN_IF_ERROR(file_.Finish());
    out->bytes = bytes_;
    out->sha256 = hash_.HexDigest();
    return absl::OkStatus();
  }

 private:
  NewFile file_;
  Sha256 hash_;
  int64_t bytes_ = 0;
};

std::vector<models::TensorToWrite> TensorsOf(const std::vector<StateToWrite>& states) {
  std::vector<models::TensorToWrite> tensors;
  for (const StateToWrite& state : states) {
    const auto add = [&](const std::string& kind, const float* data) {
      tensors.push_back({absl::StrCat(kind, "/", state.parameter.name),
                         models::TensorType::kFloat32, state.parameter.shape, data});
    };
    add("param", state.value);
    add("exp_avg", state.exp_avg);
    add("exp_avg_sq", state.exp_avg_sq);
    for (const auto& [kind, data] : state.averages) add(kind, data);
  }
  return tensors;
}

// Step 5: every tensor of the job once, every file as its writer said.
absl::Status CheckComplete(const CommitJob& job) {
  std::map<std::string, std::vector<int64_t>> found;
  for (const WrittenShard& shard : job.shards) {
    for (const TensorEntry& tensor : shard.tensors) {
      GRAFT_CHECK(found.emplace(tensor.key, tensor.shape).second,
                  absl::StrCat(tensor.key, " was written twice"));
    }
  }
  const size_t expected = static_cast<size_t>(job.tensors_each) * job.expected.size();
  GRAFT_CHECK(found.size() == expected,
              absl::StrCat(found.size(), " tensors were written, ", expected, " are the job's"));
  for (const ParameterShape& parameter : job.expected) {
    const auto entry = found.find("param/" + parameter.name);
    GRAFT_CHECK(entry != found.end() && entry->second == parameter.shape,
                absl::StrCat(parameter.name, " was not written, or with another shape"));
  }
  return absl::OkStatus();
}

absl::Status CheckShardsOnDisk(const CommitJob& job, const std::string& folder) {
  for (const WrittenShard& shard : job.shards) {
    const std::string path = JoinPath(folder, shard.file.file);
    GRAFT_ASSIGN_OR_RETURN(const std::shared_ptr<const models::SafetensorsFile> file,
                           models::SafetensorsFile::Open(path));
    if (file->file_bytes() != shard.file.bytes || file->tensors().size() != shard.tensors.size()) {
      return IoError(absl::StrCat(path, ": found ", file->file_bytes(), " bytes and ",
                                  file->tensors().size(), " tensors, ", shard.file.bytes, " and ",
                                  shard.tensors.size(), " were written"));
    }
    for (const TensorEntry& tensor : shard.tensors) {
      GRAFT_ASSIGN_OR_RETURN(const models::TensorView view, file->Find(tensor.key));
      if (view.shape != tensor.shape) return IoError(path + ": is not what was written");
    }
  }
  return absl::OkStatus();
}

Manifest FilledManifest(const CommitJob& job) {
  Manifest manifest = job.manifest;
  manifest.recipe.sha256 = Sha256Hex(job.recipe);
  manifest.files = {
      {manifest.recipe.file, static_cast<int64_t>(job.recipe.size()), manifest.recipe.sha256}};
  manifest.adapter.hash64 = 0;
  manifest.adapter.parameters = 0;
  for (const WrittenShard& shard : job.shards) {
    manifest.files.push_back(shard.file);
    manifest.tensors.insert(manifest.tensors.end(), shard.tensors.begin(), shard.tensors.end());
    manifest.adapter.hash64 += shard.hash_part;
  }
  for (const ParameterShape& parameter : job.expected) {
    manifest.adapter.parameters += parameter.count();
  }
  manifest.adapter.hash64 +=
      Hash64Length(static_cast<size_t>(manifest.adapter.parameters) * sizeof(float));
  std::sort(manifest.files.begin(), manifest.files.end(),
            [](const auto& a, const auto& b) { return a.file < b.file; });
  std::sort(manifest.tensors.begin(), manifest.tensors.end(),
            [](const auto& a, const auto& b) { return a.key < b.key; });
  return manifest;
}

bool SameLayout(const LayoutInfo& a, const LayoutInfo& b) {
  return a.data == b.data && a.pipeline == b.pipeline && a.split == b.split &&
         a.schedule == b.schedule && a.micro_batch == b.micro_batch && a.device == b.device &&
         a.backend == b.backend && a.threads == b.threads && a.cpu_isa == b.cpu_isa &&
         a.versions == b.versions;
}

// Step 7 when the step is there already: valid = it stays.
absl::Status CompareWithExisting(const Manifest& existing, const Manifest& mine) {
  if (existing.run_id != mine.run_id || !SameLayout(existing.layout, mine.layout)) {
    return absl::OkStatus();
  }
  for (size_t i = 0; i < mine.tensors.size() && i < existing.tensors.size(); ++i) {
    if (mine.tensors[i].hash64 == existing.tensors[i].hash64) continue;
    return BugError(absl::StrCat("step ", mine.step, " was reached twice on one layout, but `",
                                 mine.tensors[i].key, "` differs: hash64 ",
                                 Hex64(existing.tensors[i].hash64), " then, ",
                                 Hex64(mine.tensors[i].hash64), " now"));
  }
  return absl::OkStatus();
}

}  // namespace

int64_t ParameterShape::count() const {
  int64_t product = 1;
  for (const int64_t size : shape) product *= size;
  return product;
}

std::string UnitOf(const std::string& name, int layer, int num_layers) {
  if (layer < num_layers) return absl::StrFormat("layer-%04d", layer);
  for (const char* const prefix : {"prompt_embeddings", "lopa.", "idpg."}) {
    if (absl::StartsWith(name, prefix)) return "prompt";
  }
  for (const char* const part : {"embed", ".wte.", ".wpe.", "shared."}) {
    if (absl::StrContains(name, part)) return "embed";
  }
  return "head";
}

std::string ShardFile(const std::string& unit) {
  return absl::StrCat(kShardFolder, "/", unit, ".safetensors");
}

absl::Status MakeTempFolder(const std::string& checkpoints, const std::string& temp) {
  const std::string path = JoinPath(checkpoints, temp);
  GRAFT_RETURN_IF_ERROR(RemoveTree(path));
  return MakeDirs(JoinPath(path, kShardFolder));
}

absl::StatusOr<WrittenShard> WriteShard(const std::string& folder, const std::string& unit,
                                        const std::vector<StateToWrite>& states) {
  WrittenShard shard;
  shard.file.file = ShardFile(unit);
  const std::string path = JoinPath(folder, shard.file.file);
  std::vector<models::TensorToWrite> tensors = TensorsOf(states);
  GRAFT_ASSIGN_OR_RETURN(
      const std::string prefix,
      models::SafetensorsPrefix(path, &tensors, {{"format", "graft-shard"}, {"version", "1"}}));
  int64_t total = static_cast<int64_t>(prefix.size());
  for (const models::TensorToWrite& tensor : tensors) total += models::BytesOf(tensor);
  GRAFT_ASSIGN_OR_RETURN(NewFile file, NewFile::Create(path));
  GRAFT_RETURN_IF_ERROR(file.Reserve(total));
  ShardSink sink(std::move(file));
  GRAFT_RETURN_IF_ERROR(sink.Add(prefix.data(), prefix.size()));
  for (const models::TensorToWrite& tensor : tensors) {
    const auto bytes = static_cast<size_t>(models::BytesOf(tensor));
    GRAFT_RETURN_IF_ERROR(sink.Add(tensor.data, bytes));
    shard.tensors.push_back(
        {tensor.name, shard.file.file, "F32", tensor.shape, Hash64(tensor.data, bytes)});
  }
  for (const StateToWrite& state : states) {
    const auto bytes = static_cast<size_t>(state.parameter.count()) * sizeof(float);
    shard.hash_part += Hash64Part(state.value, bytes, state.first_word);
  }
  GRAFT_RETURN_IF_ERROR(sink.Finish(&shard.file));
  return shard;
}

std::string WrittenText(const std::vector<WrittenShard>& shards) {
  nlohmann::json list = nlohmann::json::array();
  for (const WrittenShard& shard : shards) {
    nlohmann::json tensors = nlohmann::json::array();
    for (const TensorEntry& tensor : shard.tensors) {
      tensors.push_back({tensor.key, tensor.shape, tensor.hash64});
    }
    list.push_back({shard.file.file, shard.file.bytes, shard.file.sha256, shard.hash_part,
                    std::move(tensors)});
  }
  return list.dump();
}

absl::StatusOr<std::vector<WrittenShard>> ParseWritten(const std::string& text) {
  const nlohmann::json list = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!list.is_array()) return BugError("checkpoint: a rank's list of shards is no JSON");
  std::vector<WrittenShard> shards;
  for (const nlohmann::json& entry : list) {
    WrittenShard& shard = shards.emplace_back();
    shard.file = {entry.at(0).get<std::string>(), entry.at(1).get<int64_t>(),
                  entry.at(2).get<std::string>()};
    shard.hash_part = entry.at(3).get<uint64_t>();
    for (const nlohmann::json& tensor : entry.at(4)) {
      shard.tensors.push_back({tensor.at(0).get<std::string>(), shard.file.file, "F32",
                               tensor.at(1).get<std::vector<int64_t>>(),
                               tensor.at(2).get<uint64_t>()});
    }
  }
  return shards;
}

absl::StatusOr<int64_t> CommitCheckpoint(const CommitJob& job) {
  const std::string temp = JoinPath(job.checkpoints, job.temp);
  const std::string name = StepFolderName(job.manifest.step);
  const std::string target = JoinPath(job.checkpoints, name);
  GRAFT_RETURN_IF_ERROR(CheckComplete(job));
  GRAFT_RETURN_IF_ERROR(CheckShardsOnDisk(job, temp));
  GRAFT_RETURN_IF_ERROR(SyncFolder(JoinPath(temp, kShardFolder)));
  GRAFT_RETURN_IF_ERROR(AtomicWriteFile(JoinPath(temp, kRecipeName), job.recipe));
  if (job.before_manifest) GRAFT_RETURN_IF_ERROR(job.before_manifest());
  const Manifest manifest = FilledManifest(job);
  const std::string text = ManifestText(manifest);
  // AtomicWriteFile is the manifest's temp file, fsync, rename and fsync of the temp folder.
  GRAFT_RETURN_IF_ERROR(AtomicWriteFile(JoinPath(temp, kManifestName), text));
  int64_t bytes = static_cast<int64_t>(text.size());
  for (const CheckpointFile& file : manifest.files) bytes += file.bytes;

  if (PathExists(target)) {
    const absl::StatusOr<Manifest> existing = ValidateCheckpoint(target);
    if (existing.ok()) {
      GRAFT_RETURN_IF_ERROR(CompareWithExisting(*existing, manifest));
      GRAFT_RETURN_IF_ERROR(RemoveTree(temp));
      return bytes;
    }
    GRAFT_RETURN_IF_ERROR(Quarantine(job.checkpoints, name).status());
  }
  GRAFT_RETURN_IF_ERROR(RenamePath(temp, target));
  GRAFT_RETURN_IF_ERROR(SyncFolder(job.checkpoints));
  // Through a fresh descriptor: on a file system that renames folders in parts it must be there.
  GRAFT_ASSIGN_OR_RETURN(const std::string read,
                         ReadFile(JoinPath(target, kManifestName), kMaxManifestBytes));
  if (read != text) return IoError(absl::StrCat(target, ": the manifest reads back differently"));
  GRAFT_RETURN_IF_ERROR(AtomicWriteFile(JoinPath(job.checkpoints, kLatestName), name + "\n"));
  return bytes;
}

absl::Status RemoveOldCheckpoints(const std::string& checkpoints, int64_t keep,
                                  const std::set<std::string>& spared) {
  GRAFT_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListStepFolders(checkpoints));
  for (size_t i = static_cast<size_t>(std::max<int64_t>(keep, 1)); i < names.size(); ++i) {
    if (spared.count(names[i]) != 0) continue;
    const std::string trash = JoinPath(checkpoints, kTrashPrefix + names[i]);
    GRAFT_RETURN_IF_ERROR(RemoveTree(trash));
    GRAFT_RETURN_IF_ERROR(RenamePath(JoinPath(checkpoints, names[i]), trash));
    GRAFT_RETURN_IF_ERROR(RemoveTree(trash));
  }
  return absl::OkStatus();
}

absl::Status RemoveLeftovers(const std::string& checkpoints) {
  GRAFT_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListFolder(checkpoints));
  for (const std::string& name : names) {
    if (absl::StrContains(name, kTempMark) || absl::StartsWith(name, kTrashPrefix)) {
      GRAFT_RETURN_IF_ERROR(RemoveTree(JoinPath(checkpoints, name)));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckRoom(const std::string& checkpoints, int64_t bytes) {
  const std::string probe = JoinPath(checkpoints, kProbeName);
  GRAFT_RETURN_IF_ERROR(MakeDirs(probe));
  struct stat above {
  }, below{};
  const bool known = ::stat(checkpoints.c_str(), &above) == 0 && ::stat(probe.c_str(), &below) == 0;
  GRAFT_RETURN_IF_ERROR(RemoveTree(probe));
  if (!known || above.st_dev != below.st_dev) {
    return IoError(absl::StrCat(Printable(checkpoints, 512),
                                ": a new folder in it lies on another file system"));
  }
  struct statvfs space {};
  if (::statvfs(checkpoints.c_str(), &space) != 0) {
    return IoError(absl::StrCat(Printable(checkpoints, 512),
                                ": reading its free space failed: ", std::strerror(errno)));
  }
  const auto free = static_cast<double>(space.f_bavail) * static_cast<double>(space.f_frsize);
  if (free >= 2.0 * static_cast<double>(bytes)) return absl::OkStatus();
  return IoError(absl::StrCat(
      Printable(checkpoints, 512), ": ", FormatBytes(static_cast<int64_t>(free)),
      " are free, a run needs twice the size of a checkpoint, ", FormatBytes(2 * bytes)));
}

}  // namespace graft::sharding
