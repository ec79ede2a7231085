// Reads and writes safetensors files; the hardened reader for untrusted files (reliability.md 6). No LibTorch here.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/mapped_file.h"

namespace graft::models {

enum class TensorType { kBool, kUint8, kInt8, kInt16, kInt32, kInt64, kFloat16, kBFloat16, kFloat32, kFloat64 };
const char* TensorTypeName(TensorType type);  // "F32", "BF16", "I64", ...
int64_t TensorTypeSize(TensorType type);

// A tensor inside an open file; `data` points into the mapping and lives as long as the file object. Only touched pages are read.
struct TensorView {
  TensorType type = TensorType::kFloat32;
  std::vector<int64_t> shape;
  const uint8_t* data = nullptr;  // may be unaligned for its type: copy before use when it is
  int64_t bytes = 0;
  int64_t num_elements() const;
};

// One memory-mapped file. Errors: kind input with file and field; kind io when it cannot be read.
class SafetensorsFile {
 public:
  struct Options {
    bool follow_links = false;  // allow a last-component link that leaves the folder's parent
  };
  static absl::StatusOr<std::shared_ptr<const SafetensorsFile>> Open(const std::string& path, Options options);
  static absl::StatusOr<std::shared_ptr<const SafetensorsFile>> Open(const std::string& path) { return Open(path, Options()); }
  const std::string& path() const { return file_->path(); }
  const std::map<std::string, TensorView>& tensors() const { return tensors_; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  // Error kind input naming file and tensor when it is absent.
  absl::StatusOr<TensorView> Find(const std::string& name) const;
  int64_t file_bytes() const { return static_cast<int64_t>(file_->size()); }

 private:
  SafetensorsFile() = default;
  std::unique_ptr<MappedFile> file_;
  std::map<std::string, TensorView> tensors_;
  std::map<std::string, std::string> metadata_;
};

// All weights of a model folder: model.safetensors, or the shards of model.safetensors.index.json. Shards open on first use.
class WeightFolder {
 public:
  static absl::StatusOr<std::shared_ptr<WeightFolder>> Open(const std::string& folder, SafetensorsFile::Options options);
  // Views stay valid while this object lives. Opens the shard of `name`.
  absl::StatusOr<TensorView> Find(const std::string& name);
  bool Has(const std::string& name) const;
  // The tensor's name in the folder: `name` itself, or without the prefix of the base model ("h.0..." for "transformer.h.0..."),
  // as HF writes a model that was saved without a head. Find and Has take both.
  std::string StoredName(const std::string& name) const;
  std::vector<std::string> names() const;   // sorted; as stored
  const std::string& folder() const { return folder_; }

 private:
  WeightFolder() = default;
  std::string folder_;
  SafetensorsFile::Options options_;
  std::map<std::string, std::string> file_of_;  // tensor -> file basename
  std::map<std::string, std::shared_ptr<const SafetensorsFile>> open_;
};

struct TensorToWrite {
  std::string name;
  TensorType type = TensorType::kFloat32;
  std::vector<int64_t> shape;
  const void* data = nullptr;
};

// Writes sorted by name, header padded with spaces to 8 bytes; temp file, fsync, rename, fsync of the folder.
absl::Status WriteSafetensors(const std::string& path, std::vector<TensorToWrite> tensors,
                              const std::map<std::string, std::string>& metadata);

}  // namespace graft::models
