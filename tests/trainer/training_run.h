// Small training runs for tests: a recipe on the synthetic model `llama-tiny` and a random data
// set, run on ranks that are threads.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "comm/world.h"
#include "tests/testing/dataset_folder.h"
#include "tests/testing/run_ranks.h"
#include "tests/testing/temp_folder.h"
#include "trainer/trainer.h"

namespace graft::testing {

using Json = nlohmann::json;

// causal_lm samples of 4 to 17 tokens below `vocab`, the prompt being the first 2 or more; a fixed
// sequence of numbers.
inline void WriteRandomDataset(const TempFolder& folder, int num_samples, int vocab) {
  uint32_t state = 12345;
  const auto draw = [&state](int below) {
    state = state * 1664525u + 1013904223u;
    return static_cast<int>((state >> 8) % static_cast<uint32_t>(below));
  };
  ShardTables shard;
  shard.int64["offsets"] = {0};
  int64_t trained = 0;
  for (int sample = 0; sample < num_samples; ++sample) {
    const int length = 4 + draw(14), prompt = 2 + draw(length - 3);
    for (int i = 0; i < length; ++i) {
      shard.int32["input_ids"].push_back(draw(vocab));
      shard.uint8["loss_mask"].push_back(i >= prompt);
    }
    trained += length - prompt;
    shard.int64["offsets"].push_back(shard.int64["offsets"].back() + length);
    shard.int64["sample_ids"].push_back(1000 + sample);
    shard.int32["prompt_lengths"].push_back(prompt);
  }
  DatasetFolder data = TinyDataset();
  data.header["vocab_size"] = vocab;
  data.header["num_samples"] = num_samples;
  data.header["num_tokens"] = shard.int32["input_ids"].size();
  data.header["num_trained_tokens"] = trained;
  data.header["max_length"] = 32;
  data.header["shards"].erase(1);
  data.header["shards"][0]["samples"] = num_samples;
  data.shards = {shard};
  data.Write(folder);
}

// A data set and room for outputs.
class TrainingRun {
 public:
  TrainingRun() { WriteRandomDataset(data_, 21, 256); }

  trainer::Recipe NewRecipe(const std::string& output) const {
    trainer::Recipe recipe;
    recipe.run.output = outputs_.Path(output);
    recipe.run.seed = 7;
    recipe.model.shape = "llama-tiny";
    recipe.data.train = recipe.data.eval = data_.path();
    recipe.adapter.method = "lora";
    recipe.method_fields = {{"sites", "all"}, {"dropout", "0.1"}};
    recipe.parallel.threads = 1;
    recipe.optim.lr = 1e-2;
    recipe.optim.steps = 6;
    recipe.optim.global_batch = 8;
    recipe.checkpoint.every = 0;
    recipe.log.every = 1000;
    return recipe;
  }

  // On recipe.parallel ranks. The status is the same on all of them.
  static absl::Status Train(const trainer::Recipe& recipe) {
    return OnRanks(recipe, [&recipe](comm::World& world) -> absl::Status {
      GRAFT_ASSIGN_OR_RETURN(const auto run, trainer::Trainer::Build(recipe, world));
      return run->Run();
    });
  }

  static absl::Status OnRanks(const trainer::Recipe& recipe,
                              const std::function<absl::Status(comm::World&)>& body) {
    const int size = static_cast<int>(recipe.parallel.world());
    std::vector<absl::Status> statuses(static_cast<size_t>(size));
    RunRanks(size, [&](comm::Communicator& all) {
      comm::World world(all.Split(0, all.rank(), "world"));
      statuses[static_cast<size_t>(all.rank())] = body(world);
    });
    for (const absl::Status& status : statuses)
      EXPECT_EQ(KindOfOk(status), KindOfOk(statuses[0])) << status << statuses[0];
    return statuses[0];
  }

  std::vector<Json> Metrics(const std::string& output, const std::string& kind) const {
    std::vector<Json> records;
    std::ifstream in(outputs_.Path(output) + "/metrics.jsonl");
    for (std::string line; std::getline(in, line);) {
      Json record = Json::parse(line);
      if (record["kind"] == kind) records.push_back(std::move(record));
    }
    return records;
  }
  std::vector<double> Losses(const std::string& output) const {
    std::vector<double> losses;
    for (const Json& record : Metrics(output, "train"))
      losses.push_back(record["loss"].get<double>());
    return losses;
  }
  std::string AdapterBytes(const std::string& output, const std::string& folder = "adapter") const {
    return outputs_.Read(output + "/" + folder + "/adapter_model.safetensors");
  }
  const TempFolder& outputs() const { return outputs_; }
  const TempFolder& data() const { return data_; }

 private:
  static int KindOfOk(const absl::Status& status) { return ExitCodeOf(status); }
  TempFolder data_, outputs_;
};

}  // namespace graft::testing
