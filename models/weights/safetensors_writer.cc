#include <algorithm>
#include <utility>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/status.h"
#include "base/text.h"
#include "models/weights/safetensors.h"
#include "models/weights/safetensors_prefix.h"

namespace graft::models {
namespace {

std::string LittleEndian(uint64_t value) {
  std::string bytes(8, '\0');
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<char>(value >> (8 * i));
  return bytes;
}

}  // namespace

int64_t BytesOf(const TensorToWrite& tensor) {
  int64_t bytes = TensorTypeSize(tensor.type);
  for (const int64_t size : tensor.shape) bytes *= size;
  return bytes;
}

absl::StatusOr<std::string> SafetensorsPrefix(const std::string& path,
                                              std::vector<TensorToWrite>* tensors,
                                              const std::map<std::string, std::string>& metadata) {
  std::sort(tensors->begin(), tensors->end(),
            [](const auto& a, const auto& b) { return a.name < b.name; });
  // Not sorted by nlohmann: metadata stands first, tensors in the order of their data.
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  int64_t position = 0;
  for (std::size_t i = 0; i < tensors->size(); ++i) {
    const TensorToWrite& tensor = (*tensors)[i];
    if (i > 0 && (*tensors)[i - 1].name == tensor.name) {
      return BugError(absl::StrCat(Printable(path, 512), ": tensor `", Printable(tensor.name),
                                   "` is to be written twice"));
    }
    const int64_t end = position + BytesOf(tensor);
    header[tensor.name] = {{"dtype", TensorTypeName(tensor.type)},
                           {"shape", tensor.shape},
                           {"data_offsets", {position, end}}};
    position = end;
  }
  std::string text = header.dump();
  text.append((8 - text.size() % 8) % 8, ' ');
  return LittleEndian(text.size()) + text;
}

absl::Status WriteSafetensors(const std::string& path, std::vector<TensorToWrite> tensors,
                              const std::map<std::string, std::string>& metadata) {
  GRAFT_ASSIGN_OR_RETURN(const std::string prefix, SafetensorsPrefix(path, &tensors, metadata));
  GRAFT_ASSIGN_OR_RETURN(std::unique_ptr<AtomicFile> file, AtomicFile::Create(path));
  GRAFT_RETURN_IF_ERROR(file->Write(prefix.data(), prefix.size()));
  for (const TensorToWrite& tensor : tensors) {
    GRAFT_RETURN_IF_ERROR(file->Write(tensor.data, static_cast<std::size_t>(BytesOf(tensor))));
  }
  return file->Commit();
}

}  // namespace graft::models
