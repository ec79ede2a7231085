// Small prepared data sets for tests: fill the tables, change what must be wrong, write.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include <gtest/gtest.h>

#include "base/hash.h"
#include "models/weights/safetensors.h"
#include "tests/testing/temp_folder.h"

namespace graft::testing {

// One shard as typed tables; an empty table is not written.
struct ShardTables {
  std::map<std::string, std::vector<int32_t>> int32;
  std::map<std::string, std::vector<int64_t>> int64;
  std::map<std::string, std::vector<uint8_t>> uint8;
  std::map<std::string, std::vector<float>> float32;

  void Write(const std::string& path) const {
    using models::TensorType;
    std::vector<models::TensorToWrite> tensors;
    const auto add = [&](const auto& tables, TensorType type) {
      for (const auto& [name, values] : tables) {
        tensors.push_back({name, type, {static_cast<int64_t>(values.size())}, values.data()});
      }
    };
    add(int32, TensorType::kInt32);
    add(int64, TensorType::kInt64);
    add(uint8, TensorType::kUint8);
    add(float32, TensorType::kFloat32);
    const absl::Status status = models::WriteSafetensors(path, tensors, {});
    ASSERT_TRUE(status.ok()) << status;
  }
};

struct DatasetFolder {
  nlohmann::json header;
  std::vector<ShardTables> shards;

  // The hashes in dataset.json are made right; everything else is as it stands here.
  void Write(const TempFolder& folder) {
    for (std::size_t i = 0; i < shards.size(); ++i) {
      const std::string file = header["shards"][i]["file"];
      shards[i].Write(folder.Path(file));
      header["shards"][i]["sha256"] = Sha256Hex(folder.Read(file));
    }
    folder.Write("dataset.json", header.dump(1));
  }
};

// causal_lm; vocabulary 32; samples of 4, 3, 2 (shard 0) and 5, 1 tokens (shard 1).
inline DatasetFolder TinyDataset() {
  DatasetFolder data;
  data.header = {{"format", "graft-dataset"},
                 {"version", 1},
                 {"kind", "causal_lm"},
                 {"vocab_size", 32},
                 {"tokenizer_sha256", nullptr},
                 {"num_samples", 5},
                 {"num_tokens", 15},
                 {"num_trained_tokens", 6},
                 {"max_length", 8},
                 {"template", "plain"},
                 {"loss_on", "completion"},
                 {"labels", nlohmann::json::array()},
                 {"shards",
                  {{{"file", "shard-00000.safetensors"}, {"samples", 3}, {"sha256", ""}},
                   {{"file", "shard-00001.safetensors"}, {"samples", 2}, {"sha256", ""}}}}};
  data.shards.resize(2);
  data.shards[0].int32 = {{"input_ids", {10, 11, 12, 13, 20, 21, 22, 30, 31}},
                          {"prompt_lengths", {2, 1, 0}}};
  data.shards[0].int64 = {{"offsets", {0, 4, 7, 9}}, {"sample_ids", {100, 101, 102}}};
  data.shards[0].uint8 = {{"loss_mask", {0, 0, 1, 1, 0, 1, 0, 0, 1}}};
  data.shards[1].int32 = {{"input_ids", {1, 2, 3, 4, 5, 6}}, {"prompt_lengths", {3, 1}}};
  data.shards[1].int64 = {{"offsets", {0, 5, 6}}, {"sample_ids", {103, 104}}};
  data.shards[1].uint8 = {{"loss_mask", {0, 0, 0, 1, 1, 0}}};
  return data;
}

// One shard with samples of 2 and 3 tokens and no targets yet.
inline DatasetFolder TinyTaskDataset(const std::string& kind, int64_t num_trained_tokens) {
  DatasetFolder data = TinyDataset();
  data.header["kind"] = kind;
  data.header["num_samples"] = 2;
  data.header["num_tokens"] = 5;
  data.header["num_trained_tokens"] = num_trained_tokens;
  data.header["shards"].erase(1);
  data.header["shards"][0]["samples"] = 2;
  data.shards.resize(1);
  data.shards[0].int32 = {{"input_ids", {1, 2, 3, 4, 5}}, {"prompt_lengths", {2, 3}}};
  data.shards[0].int64 = {{"offsets", {0, 2, 5}}, {"sample_ids", {7, 8}}};
  data.shards[0].uint8.clear();
  return data;
}

}  // namespace graft::testing
