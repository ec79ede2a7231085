// The two targets of a data set: its header and a shard.
#pragma once

#include <string>

#include <nlohmann/json.hpp>

#include "tests/fuzz/fuzz.h"
#include "tests/testing/dataset_folder.h"
#include "trainer/data/dataset.h"

namespace graft::fuzz {

class TinyDatasetFolder : public Folder {
 public:
  TinyDatasetFolder() {
    for (std::size_t i = 0; i < data_.shards.size(); ++i) {
      data_.shards[i].Write(Path(data_.header["shards"][i]["file"]));
    }
  }
  // One shard of 3 samples, of one of the four kinds.
  void WriteHeader(int kind) const {
    nlohmann::json header = data_.header;
    header["kind"] = trainer::DataKindName(static_cast<trainer::DataKind>(kind));
    header["num_samples"] = 3;
    header["num_tokens"] = 9;
    header["num_trained_tokens"] = kind == 0 ? 4 : 3;
    header["labels"] = {"no", "yes"};
    header["shards"].erase(1);
    header["shards"][0]["sha256"] = std::string(64, '0');
    Write("dataset.json", header.dump());
  }

 private:
  const testing::DatasetFolder data_ = testing::TinyDataset();
};

inline void ReadDataset(const std::string& folder) {
  const auto data = trainer::Dataset::Open(folder, {.follow_links = false, .verify_hashes = false});
  RequireClean(data.status(), ErrorKind::kInput, folder);
  if (!data.ok()) return;
  int64_t tokens = 0;
  for (int64_t i = 0; i < (*data)->size(); ++i) {
    const trainer::Sample sample = (*data)->at(i);
    for (const int32_t id : sample.input_ids) {
      Require(id >= 0 && id < (*data)->info().vocab_size, "a token outside of the vocabulary");
    }
    Require(sample.prompt_length <= (*data)->length(i), "a prompt longer than its sample");
    tokens += (*data)->length(i);
  }
  Require(tokens == (*data)->info().num_tokens, "another number of tokens than the header says");
}

}  // namespace graft::fuzz
