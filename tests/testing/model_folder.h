// Tiny model folders for tests, written without LibTorch: two layers, width 16, vocabulary 32.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include <gtest/gtest.h>

#include "models/model_config.h"
#include "models/weights/expected_tensors.h"
#include "models/weights/safetensors.h"
#include "tests/testing/temp_folder.h"

namespace graft::testing {

inline nlohmann::json TinyConfig() {
  return {{"model_type", "llama"},
          {"architectures", {"LlamaForCausalLM"}},
          {"hidden_size", 16},
          {"num_hidden_layers", 2},
          {"num_attention_heads", 4},
          {"num_key_value_heads", 2},
          {"intermediate_size", 24},
          {"vocab_size", 32},
          {"max_position_embeddings", 64},
          {"rms_norm_eps", 1e-5},
          {"rope_theta", 10000.0},
          {"tie_word_embeddings", false},
          {"torch_dtype", "float32"}};
}

// Owns the values that TensorToWrite points to.
class Tensors {
 public:
  void Add(const std::string& name, const std::vector<int64_t>& shape, float first = 0.5f) {
    std::size_t count = 1;
    for (const int64_t size : shape) count *= static_cast<std::size_t>(size);
    std::vector<float>& values = values_[name];
    values.resize(count);
    for (std::size_t i = 0; i < count; ++i) values[i] = first + 0.001f * static_cast<float>(i);
    shapes_[name] = shape;
  }
  void Remove(const std::string& name) {
    values_.erase(name);
    shapes_.erase(name);
  }
  std::vector<float>& values(const std::string& name) { return values_.at(name); }
  std::vector<std::string> names() const {
    std::vector<std::string> names;
    for (const auto& [name, shape] : shapes_) names.push_back(name);
    return names;
  }
  // Only `names`; all when empty.
  void Write(const std::string& path, const std::vector<std::string>& names = {}) const {
    std::vector<models::TensorToWrite> tensors;
    for (const auto& [name, values] : values_) {
      if (!names.empty() && std::count(names.begin(), names.end(), name) == 0) continue;
      tensors.push_back(
          {name, models::TensorType::kFloat32, shapes_.at(name), values_.at(name).data()});
    }
    const absl::Status status = models::WriteSafetensors(path, tensors, {{"format", "pt"}});
    ASSERT_TRUE(status.ok()) << status;
  }

 private:
  std::map<std::string, std::vector<float>> values_;
  std::map<std::string, std::vector<int64_t>> shapes_;
};

inline Tensors TinyWeights(const nlohmann::json& config = TinyConfig()) {
  Tensors tensors;
  const auto parsed = models::ParseModelConfig(config.dump(), "config.json");
  EXPECT_TRUE(parsed.ok()) << parsed.status();
  if (!parsed.ok()) return tensors;
  for (const auto& [name, shape] : models::ExpectedTensors(*parsed)) tensors.Add(name, shape);
  return tensors;
}

inline void WriteTinyModel(const TempFolder& folder) {
  folder.Write("config.json", TinyConfig().dump(2));
  TinyWeights().Write(folder.Path("model.safetensors"));
}

// The same model as two shards and an index, layer 1 in the second shard.
inline nlohmann::json WriteShardedModel(const TempFolder& folder) {
  const std::string files[] = {"model-00001-of-00002.safetensors",
                               "model-00002-of-00002.safetensors"};
  const Tensors tensors = TinyWeights();
  std::vector<std::string> parts[2];
  nlohmann::json index = {{"metadata", {{"total_size", 1}}}};
  for (const std::string& name : tensors.names()) {
    const int part = name.find("layers.1.") != std::string::npos;
    parts[part].push_back(name);
    index["weight_map"][name] = files[part];
  }
  for (int part = 0; part < 2; ++part) tensors.Write(folder.Path(files[part]), parts[part]);
  folder.Write("config.json", TinyConfig().dump(2));
  folder.Write("model.safetensors.index.json", index.dump(2));
  return index;
}

// A safetensors file of any header text and data, right or wrong; `length`: other than the
// header's.
inline std::string SafetensorsBytes(const std::string& header, const std::string& data,
                                    std::optional<uint64_t> length = std::nullopt) {
  const uint64_t value = length.value_or(header.size());
  std::string bytes(8, '\0');
  for (std::size_t i = 0; i < 8; ++i) bytes[i] = static_cast<char>(value >> (8 * i));
  return bytes + header + data;
}

}  // namespace graft::testing
