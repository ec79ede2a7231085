#include "models/weights/safetensors.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/json.h"
#include "base/status.h"
#include "base/text.h"

namespace graft::models {
namespace {

using nlohmann::json;

constexpr uint64_t kMaxHeaderBytes = 100'000'000;
constexpr std::size_t kMaxTensors = 1'000'000;
constexpr std::size_t kMaxNameBytes = 1024;
constexpr std::size_t kMaxRank = 8;
constexpr char kMetadataKey[] = "__metadata__";

struct TypeRow {
  TensorType type;
  const char* name;
  int64_t size;
};

constexpr TypeRow kTypes[] = {{TensorType::kBool, "BOOL", 1},   {TensorType::kUint8, "U8", 1},
                              {TensorType::kInt8, "I8", 1},     {TensorType::kInt16, "I16", 2},
                              {TensorType::kInt32, "I32", 4},   {TensorType::kInt64, "I64", 8},
                              {TensorType::kFloat16, "F16", 2}, {TensorType::kBFloat16, "BF16", 2},
                              {TensorType::kFloat32, "F32", 4}, {TensorType::kFloat64, "F64", 8}};

const TypeRow& RowOf(TensorType type) {
  for (const TypeRow& row : kTypes) {
    if (row.type == type) return row;
  }
  GRAFT_CHECK(false, absl::StrCat("tensor type ", static_cast<int>(type), " is not in the table"));
}

std::optional<TensorType> ParseType(const std::string& name) {
  for (const TypeRow& row : kTypes) {
    if (name == row.name) return row.type;
  }
  return std::nullopt;
}

std::string TypeNames() {
  std::vector<std::string> names;
  for (const TypeRow& row : kTypes) names.push_back(row.name);
  return JoinNames(names);
}

bool HasControlCharacters(const std::string& text) {
  return std::any_of(text.begin(), text.end(), [](char c) {
    return static_cast<unsigned char>(c) < 0x20 || static_cast<unsigned char>(c) == 0x7F;
  });
}

absl::StatusOr<TensorType> ReadType(const json& entry, const std::string& where) {
  GRAFT_ASSIGN_OR_RETURN(const std::string name, GetString(entry, "dtype", where));
  const std::optional<TensorType> type = ParseType(name);
  if (!type) {
    return InputError(absl::StrCat(where, ": dtype: found \"", Printable(name),
                                   "\", supported are ", TypeNames()));
  }
  return *type;
}

// Bytes of a tensor of this shape, refused when the product leaves int64.
absl::StatusOr<int64_t> ByteSize(TensorType type, const std::vector<int64_t>& shape,
                                 const std::string& where) {
  int64_t bytes = TensorTypeSize(type);
  for (const int64_t size : shape) {
    if (__builtin_mul_overflow(bytes, size, &bytes)) {
      return InputError(absl::StrCat(where, ": shape: [", absl::StrJoin(shape, ", "),
                                     "] has more bytes than 64 bits can count"));
    }
  }
  return bytes;
}

// One entry of the header; `data` is the start of the data section of `data_bytes` bytes.
absl::StatusOr<TensorView> ReadEntry(const json& entry, const uint8_t* data, int64_t data_bytes,
                                     const std::string& where) {
  if (!entry.is_object()) {
    return InputError(absl::StrCat(where, ": must be an object, found ", DescribeJson(entry)));
  }
  GRAFT_RETURN_IF_ERROR(CheckKnownKeys(entry, {"dtype", "shape", "data_offsets"}, where));
  TensorView view;
  GRAFT_ASSIGN_OR_RETURN(view.type, ReadType(entry, where));
  GRAFT_ASSIGN_OR_RETURN(view.shape, GetIntList(entry, "shape", 0, INT64_MAX, where));
  if (view.shape.size() > kMaxRank) {
    return InputError(absl::StrCat(where, ": shape: has ", view.shape.size(),
                                   " dimensions, at most ", kMaxRank, " are allowed"));
  }
  GRAFT_ASSIGN_OR_RETURN(view.bytes, ByteSize(view.type, view.shape, where));
  GRAFT_ASSIGN_OR_RETURN(const std::vector<int64_t> offsets,
                         GetIntList(entry, "data_offsets", 0, INT64_MAX, where));
  if (offsets.size() != 2 || offsets[0] > offsets[1] || offsets[1] > data_bytes) {
    return InputError(absl::StrCat(where, ": data_offsets: found [", absl::StrJoin(offsets, ", "),
                                   "], must be [begin, end] with begin <= end <= ", data_bytes));
  }
  if (offsets[1] - offsets[0] != view.bytes) {
    return InputError(absl::StrCat(where, ": data_offsets: hold ", offsets[1] - offsets[0],
                                   " bytes, dtype and shape need ", view.bytes));
  }
  view.data = data + offsets[0];
  return view;
}

absl::Status CheckName(const std::string& name, const std::string& path) {
  if (name.size() > kMaxNameBytes) {
    return InputError(absl::StrCat(path, ": tensor name of ", name.size(), " bytes, at most ",
                                   kMaxNameBytes, " are allowed: `", Printable(name, 64), "`"));
  }
  if (name.empty() || HasControlCharacters(name)) {
    return InputError(absl::StrCat(path, ": tensor name `", Printable(name),
                                   "` is empty or has control characters"));
  }
  return absl::OkStatus();
}

// The tensors must cover the data section without a hole or an overlap.
absl::Status CheckContiguous(const std::map<std::string, TensorView>& tensors, const uint8_t* data,
                             int64_t data_bytes, const std::string& path) {
  std::vector<const std::pair<const std::string, TensorView>*> order;
  order.reserve(tensors.size());
  for (const auto& entry : tensors) order.push_back(&entry);
  // Empty tensors sort before the tensor that begins where they stand.
  std::sort(order.begin(), order.end(), [](const auto* a, const auto* b) {
    return std::make_pair(a->second.data, a->second.bytes) <
           std::make_pair(b->second.data, b->second.bytes);
  });
  int64_t position = 0;
  for (const auto* entry : order) {
    const int64_t begin = entry->second.data - data;
    if (begin != position) {
      return InputError(absl::StrCat(path, ": tensor `", Printable(entry->first),
                                     "`: data_offsets: begins at ", begin, ", must begin at ",
                                     position, begin < position ? " (overlap)" : " (hole)"));
    }
    position += entry->second.bytes;
  }
  if (position != data_bytes) {
    return InputError(absl::StrCat(path, ": data_offsets: the tensors end at ", position,
                                   ", the file has ", data_bytes - position,
                                   " more bytes of data"));
  }
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> ReadHeaderLength(const uint8_t* data, std::size_t size,
                                          const std::string& path) {
  if (size < 10) {
    return InputError(absl::StrCat(path, ": header length: the file has ", size,
                                   " bytes, a safetensors file has at least 10"));
  }
  uint64_t length = 0;
  for (int i = 7; i >= 0; --i) length = (length << 8) | data[i];
  const uint64_t limit = std::min<uint64_t>(kMaxHeaderBytes, size - 8);
  if (length < 2 || length > limit) {
    return InputError(
        absl::StrCat(path, ": header length: found ", length, ", must be 2 to ", limit, " here"));
  }
  if (data[8] != '{') {
    return InputError(absl::StrCat(path, ": header: starts with byte ", data[8],
                                   ", must start with `{` (byte 123)"));
  }
  return length;
}

absl::StatusOr<std::map<std::string, std::string>> ReadMetadata(const json& entry,
                                                                const std::string& where) {
  if (!entry.is_object()) {
    return InputError(absl::StrCat(where, ": must be an object, found ", DescribeJson(entry)));
  }
  std::map<std::string, std::string> metadata;
  for (const auto& [key, value] : entry.items()) {
    GRAFT_ASSIGN_OR_RETURN(metadata[key], GetString(entry, key, where));
  }
  return metadata;
}

}  // namespace

const char* TensorTypeName(TensorType type) { return RowOf(type).name; }
int64_t TensorTypeSize(TensorType type) { return RowOf(type).size; }

int64_t TensorView::num_elements() const { return bytes / TensorTypeSize(type); }

absl::StatusOr<std::shared_ptr<const SafetensorsFile>> SafetensorsFile::Open(
    const std::string& path, Options options) {
  ReadOptions read_options;
  read_options.follow_links = options.follow_links;
  std::shared_ptr<SafetensorsFile> file(new SafetensorsFile());
  GRAFT_ASSIGN_OR_RETURN(file->file_, MappedFile::Open(path, read_options));
  const uint8_t* const bytes = file->file_->data();
  const std::string where = Printable(path, 512);
  GRAFT_ASSIGN_OR_RETURN(const uint64_t length,
                         ReadHeaderLength(bytes, file->file_->size(), where));
  JsonLimits limits;
  limits.max_bytes = static_cast<int64_t>(kMaxHeaderBytes);
  limits.max_depth = 4;
  limits.max_values = 16 * static_cast<int64_t>(kMaxTensors);
  GRAFT_ASSIGN_OR_RETURN(const json header,
                         ParseJson(reinterpret_cast<const char*>(bytes + 8), length,
                                   absl::StrCat(path, ": header"), limits));
  if (header.size() > kMaxTensors + 1) {
    return InputError(absl::StrCat(where, ": header: ", header.size(), " tensors, at most ",
                                   kMaxTensors, " are allowed"));
  }
  const uint8_t* const data = bytes + 8 + length;
  const auto data_bytes = static_cast<int64_t>(file->file_->size() - 8 - length);
  for (const auto& [name, entry] : header.items()) {
    if (name == kMetadataKey) {
      GRAFT_ASSIGN_OR_RETURN(file->metadata_,
                             ReadMetadata(entry, absl::StrCat(where, ": ", kMetadataKey)));
      continue;
    }
    GRAFT_RETURN_IF_ERROR(CheckName(name, where));
    const std::string entry_where = absl::StrCat(where, ": tensor `", Printable(name), "`");
    GRAFT_ASSIGN_OR_RETURN(TensorView view, ReadEntry(entry, data, data_bytes, entry_where));
    file->tensors_.emplace(name, std::move(view));
  }
  GRAFT_RETURN_IF_ERROR(CheckContiguous(file->tensors_, data, data_bytes, where));
  return std::shared_ptr<const SafetensorsFile>(std::move(file));
}

absl::StatusOr<TensorView> SafetensorsFile::Find(const std::string& name) const {
  const auto it = tensors_.find(name);
  if (it == tensors_.end()) {
    return InputError(absl::StrCat(Printable(path(), 512), ": tensor `", Printable(name),
                                   "` is missing; the file has ", tensors_.size(), " tensors"));
  }
  return it->second;
}

}  // namespace graft::models
