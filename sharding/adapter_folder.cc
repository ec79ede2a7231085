#include "sharding/adapter_folder.h"

#include <cerrno>
#include <cstring>

#include <fcntl.h>
#include <stdio.h>

#include <ATen/ATen.h>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/json.h"
#include "base/status.h"
#include "base/text.h"
#include "models/weights/safetensors.h"

namespace graft::sharding {
namespace {

constexpr const char* kConfigFile = "adapter_config.json";
constexpr const char* kTensorFile = "adapter_model.safetensors";

using adapters::NamedTensors;

absl::Status WriteTensors(const std::string& path, const NamedTensors& tensors) {
  std::vector<torch::Tensor> values;  // keeps the float32 copies alive
  std::vector<models::TensorToWrite> to_write;
  for (const auto& [name, tensor] : tensors) {
    values.push_back(tensor.detach().to(at::kCPU, at::kFloat).contiguous());
    to_write.push_back({name, models::TensorType::kFloat32, values.back().sizes().vec(),
                        values.back().data_ptr<float>()});
  }
  return models::WriteSafetensors(path, std::move(to_write), {{"format", "pt"}});
}

// Puts `from` where `to` is or will be. A reader finds the old folder or the new one; where the
// file system cannot exchange two names there is a moment with neither.
absl::Status PutInPlace(const std::string& from, const std::string& to, const std::string& old) {
  if (!PathExists(to)) return RenamePath(from, to);
  if (renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_EXCHANGE) == 0) {
    return RenamePath(from, old);
  }
  if (errno != EINVAL && errno != ENOSYS) {
    return IoError(absl::StrCat(to, ": cannot be replaced: ", std::strerror(errno)));
  }
  GRAFT_RETURN_IF_ERROR(RenamePath(to, old));
  return RenamePath(from, to);
}

absl::Status CheckReplaceable(const std::string& path) {
  if (!PathExists(path)) return absl::OkStatus();
  if (IsFolder(path)) {
    GRAFT_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListFolder(path));
    if (names.empty() || PathExists(JoinPath(path, kConfigFile))) return absl::OkStatus();
  }
  return IoError(absl::StrCat(path, ": exists and is not an adapter folder (no ", kConfigFile,
                              "); it is left as it is"));
}

absl::StatusOr<at::ScalarType> FloatingType(models::TensorType type, const std::string& origin) {
  switch (type) {
    case models::TensorType::kFloat16:
      return at::kHalf;
    case models::TensorType::kBFloat16:
      return at::kBFloat16;
    case models::TensorType::kFloat32:
      return at::kFloat;
    case models::TensorType::kFloat64:
      return at::kDouble;
    default:
      return InputError(absl::StrCat(origin, ": type is ", models::TensorTypeName(type),
                                     ", allowed: F16, BF16, F32, F64"));
  }
}

absl::StatusOr<torch::Tensor> ToFloat(const models::TensorView& view, const std::string& origin) {
  GRAFT_ASSIGN_OR_RETURN(const at::ScalarType type, FloatingType(view.type, origin));
  // The view may be unaligned and dies with the file: copy bytes.
  torch::Tensor stored = at::empty(view.shape, type);
  if (view.bytes > 0) std::memcpy(stored.data_ptr(), view.data, static_cast<size_t>(view.bytes));
  torch::Tensor value = stored.to(at::kFloat);
  if (!at::isfinite(value).all().item<bool>()) {
    return InputError(absl::StrCat(origin, ": holds values that are not finite"));
  }
  return value;
}

}  // namespace

absl::Status WriteAdapterFolder(const std::string& path, const nlohmann::json& config,
                                const NamedTensors& tensors) {
  GRAFT_RETURN_IF_ERROR(CheckReplaceable(path));
  const std::string parent = FolderOf(path), name = Basename(path);
  const std::string temp = JoinPath(parent, absl::StrCat(".", name, ".tmp"));
  const std::string old = JoinPath(parent, absl::StrCat(".", name, ".old"));
  GRAFT_RETURN_IF_ERROR(RemoveTree(temp));
  GRAFT_RETURN_IF_ERROR(RemoveTree(old));
  GRAFT_RETURN_IF_ERROR(MakeDirs(temp));
  GRAFT_RETURN_IF_ERROR(AtomicWriteFile(JoinPath(temp, kConfigFile), config.dump(2)));
  GRAFT_RETURN_IF_ERROR(WriteTensors(JoinPath(temp, kTensorFile), tensors));
  GRAFT_RETURN_IF_ERROR(SyncFolder(temp));
  GRAFT_RETURN_IF_ERROR(PutInPlace(temp, path, old));
  GRAFT_RETURN_IF_ERROR(SyncFolder(parent));
  return RemoveTree(old);
}

absl::StatusOr<AdapterFolder> ReadAdapterFolder(const std::string& path) {
  AdapterFolder folder;
  folder.path = path;
  GRAFT_ASSIGN_OR_RETURN(folder.config, ReadJsonFile(JoinPath(path, kConfigFile)));
  if (!folder.config.is_object()) {
    return InputError(absl::StrCat(JoinPath(path, kConfigFile), ": found ",
                                   DescribeJson(folder.config), ", must be an object"));
  }
  const std::string file_path = JoinPath(path, kTensorFile);
  GRAFT_ASSIGN_OR_RETURN(const std::shared_ptr<const models::SafetensorsFile> file,
                         models::SafetensorsFile::Open(file_path));
  for (const auto& [name, view] : file->tensors()) {
    GRAFT_ASSIGN_OR_RETURN(torch::Tensor value,
                           ToFloat(view, absl::StrCat(file_path, ": ", Printable(name))));
    folder.tensors.emplace_back(name, std::move(value));
  }
  return folder;
}

absl::StatusOr<NamedTensors> FolderParameters(const AdapterFolder& folder,
                                              const adapters::Method& method,
                                              const std::vector<models::SiteSpec>& matched) {
  const std::string tensor_file = JoinPath(folder.path, kTensorFile);
  GRAFT_RETURN_IF_ERROR(method.CheckPeftConfig(folder.config, JoinPath(folder.path, kConfigFile)));
  GRAFT_ASSIGN_OR_RETURN(NamedTensors parameters,
                         method.FromFolder(matched, folder.config, folder.tensors, tensor_file));
  GRAFT_RETURN_IF_ERROR(adapters::CheckAdapterTensors(method, matched, parameters, tensor_file));
  return parameters;
}

}  // namespace graft::sharding
