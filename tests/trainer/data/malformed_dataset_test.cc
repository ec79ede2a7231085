// The data set rows A1 to A6 of the malformed inputs and their neighbours (docs: reliability).
#include <functional>
#include <limits>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/testing/dataset_folder.h"
#include "tests/testing/mutate.h"
#include "tests/testing/status_matchers.h"
#include "trainer/data/dataset.h"

namespace graft::trainer {
namespace {

using ::graft::testing::DatasetFolder;
using ::graft::testing::ExpectCleanOutcome;
using ::graft::testing::FailsWith;
using ::graft::testing::IsOk;
using ::graft::testing::Mutate;
using ::graft::testing::TempFolder;
using ::graft::testing::TinyDataset;
using ::graft::testing::TinyTaskDataset;

struct Row {
  const char* name;
  std::function<void(DatasetFolder&)> damage;
  const char* file;
  const char* message;
};

void PrintTo(const Row& row, std::ostream* out) { *out << row.name; }

class MalformedDatasetTest : public ::testing::TestWithParam<Row> {};

TEST_P(MalformedDatasetTest, OneClearError) {
  const TempFolder folder;
  DatasetFolder data = TinyDataset();
  GetParam().damage(data);
  data.Write(folder);
  const auto opened = Dataset::Open(folder.path());
  EXPECT_THAT(opened, FailsWith(ErrorKind::kInput, GetParam().message));
  EXPECT_THAT(opened, FailsWith(ErrorKind::kInput, folder.Path(GetParam().file)));
}

std::function<void(DatasetFolder&)> Header(const std::string& key, const nlohmann::json& value) {
  return [key, value](DatasetFolder& data) { data.header[key] = value; };
}

constexpr char kHeader[] = "dataset.json";
constexpr char kShard0[] = "shard-00000.safetensors";
constexpr char kShard1[] = "shard-00001.safetensors";

const Row kRows[] = {
    {"A1 another version", Header("version", 2), kHeader, "version: found 2"},
    {"another format", Header("format", "x"), kHeader, "format: found \"x\""},
    {"A2 offsets fall", [](DatasetFolder& d) { d.shards[0].int64["offsets"][2] = 3; }, kShard0,
     "offsets[2]: found 3, must be larger than the one before, 4"},
    {"an empty sample", [](DatasetFolder& d) { d.shards[0].int64["offsets"][1] = 0; }, kShard0,
     "offsets[1]: found 0"},
    {"offsets start", [](DatasetFolder& d) { d.shards[1].int64["offsets"][0] = 1; }, kShard1,
     "offsets[0]: found 1, must be 0"},
    {"A3 offsets end elsewhere", [](DatasetFolder& d) { d.shards[1].int64["offsets"][2] = 7; },
     kShard1, "offsets[2]: found 7, must be the length of input_ids, 6"},
    {"A4 id outside the vocabulary",
     [](DatasetFolder& d) { d.shards[0].int32["input_ids"][8] = 32; }, kShard0,
     "input_ids[8]: found 32, must be 0 to 31"},
    {"negative id", [](DatasetFolder& d) { d.shards[0].int32["input_ids"][0] = -1; }, kShard0,
     "input_ids[0]: found -1"},
    {"A5 mask value 2", [](DatasetFolder& d) { d.shards[0].uint8["loss_mask"][3] = 2; }, kShard0,
     "loss_mask[3]: found 2, must be 0 or 1"},
    {"prompt longer than the sample",
     [](DatasetFolder& d) { d.shards[0].int32["prompt_lengths"][1] = 4; }, kShard0,
     "prompt_lengths[1]: found 4, must be 0 to 3"},
    {"sample longer than max_length", Header("max_length", 4), kShard1,
     "offsets[1]: the sample has 5 tokens"},
    {"wrong number of samples", [](DatasetFolder& d) { d.header["shards"][0]["samples"] = 2; },
     kShard0, "offsets: is I64 [4], must be I64 [3]"},
    {"wrong total", Header("num_samples", 6), kHeader, "num_samples: found 6"},
    {"wrong number of tokens", Header("num_tokens", 16), kHeader, "num_tokens: found 16"},
    {"wrong number of trained tokens", Header("num_trained_tokens", 5), kHeader,
     "num_trained_tokens: found 5, the shards hold 6"},
    {"missing tensor", [](DatasetFolder& d) { d.shards[0].int64.erase("sample_ids"); }, kShard0,
     "sample_ids"},
    {"tensor of another kind",
     [](DatasetFolder& d) {
       d.shards[0].int64["labels"] = {0, 1, 0};
     },
     kShard0, "`labels` is not part of a causal_lm shard"},
    {"mask too short", [](DatasetFolder& d) { d.shards[0].uint8["loss_mask"].pop_back(); }, kShard0,
     "loss_mask: is U8 [8], must be U8 [9]"},
    {"unknown kind", Header("kind", "dpo"), kHeader, "kind: found \"dpo\""},
    {"no samples", Header("num_samples", 0), kHeader, "num_samples"},
    {"no shards",
     [](DatasetFolder& d) {
       d.header["shards"] = nlohmann::json::array();
       d.shards.clear();
     },
     kHeader, "shards: lists no shard"},
    {"vocabulary", Header("vocab_size", 0), kHeader, "vocab_size"},
    {"tokenizer hash", Header("tokenizer_sha256", "abc"), kHeader, "tokenizer_sha256"},
    {"negative encoder id",
     [](DatasetFolder& d) {
       d.shards[1].int32["encoder_ids"] = {4, -4};
       d.shards[1].int64["encoder_offsets"] = {0, 1, 2};
     },
     kShard1, "encoder_ids[1]: found -4"},
};

INSTANTIATE_TEST_SUITE_P(Rows, MalformedDatasetTest, ::testing::ValuesIn(kRows));

TEST(MalformedDatasetTest, A6ShardHash) {
  const TempFolder folder;
  TinyDataset().Write(folder);
  std::string bytes = folder.Read(kShard1);
  bytes.back() ^= 1;
  folder.Write(kShard1, bytes);
  EXPECT_THAT(Dataset::Open(folder.path()),
              FailsWith(ErrorKind::kInput, folder.Path(kShard1) + ": sha256"));
}

TEST(MalformedDatasetTest, ShardNamesStayInTheFolder) {
  const TempFolder folder;
  DatasetFolder data = TinyDataset();
  data.Write(folder);
  for (const char* name : {"../x", "/etc/passwd", "a/b", "..", ""}) {
    data.header["shards"][1]["file"] = name;
    folder.Write(kHeader, data.header.dump());
    EXPECT_THAT(Dataset::Open(folder.path()), FailsWith(ErrorKind::kInput, "shards[1]: file"));
  }
  data.header["shards"][1]["file"] = kShard0;
  folder.Write(kHeader, data.header.dump());
  EXPECT_THAT(Dataset::Open(folder.path()), FailsWith(ErrorKind::kInput, "listed twice"));
}

TEST(MalformedDatasetTest, LabelsOutOfRange) {
  const TempFolder folder;
  DatasetFolder classes = TinyTaskDataset("classification", 2);
  classes.header["labels"] = {"no", "yes"};
  classes.shards[0].int64["labels"] = {1, 2};
  classes.Write(folder);
  EXPECT_THAT(Dataset::Open(folder.path()),
              FailsWith(ErrorKind::kInput, "labels[1]: found 2 for sample 8, must be 0 to 1"));
  DatasetFolder values = TinyTaskDataset("regression", 2);
  values.shards[0].float32["labels"] = {std::numeric_limits<float>::quiet_NaN(), 0.0f};
  values.Write(folder);
  EXPECT_THAT(Dataset::Open(folder.path()),
              FailsWith(ErrorKind::kInput, "labels[0]: found nan, must be finite"));
  classes.shards[0].int64["labels"] = {1, 0};
  classes.shards[0].int32["prompt_lengths"] = {1, 3};
  classes.Write(folder);
  EXPECT_THAT(Dataset::Open(folder.path()),
              FailsWith(ErrorKind::kInput, "prompt_lengths[0]: found 1, must be 2 to 2"));
}

TEST(MalformedDatasetTest, AThousandMutationsOfTheHeader) {
  const TempFolder folder;
  DatasetFolder data = TinyDataset();
  data.Write(folder);
  const std::string valid = data.header.dump(1);
  for (uint64_t seed = 0; seed < 1000; ++seed) {
    folder.Write(kHeader, Mutate(valid, seed, valid.size()));
    ExpectCleanOutcome(Dataset::Open(folder.path()).status(), folder.path(), seed);
  }
}

// Damage that a wrong hash would hide: the hashes are not compared.
TEST(MalformedDatasetTest, AThousandMutationsOfAShard) {
  const TempFolder folder;
  TinyDataset().Write(folder);
  const std::string valid = folder.Read(kShard0);
  Dataset::Options options;
  options.verify_hashes = false;
  int refused = 0;
  for (uint64_t seed = 0; seed < 1000; ++seed) {
    folder.Write(kShard0, Mutate(valid, seed, valid.size()));
    const auto data = Dataset::Open(folder.path(), options);
    ExpectCleanOutcome(data.status(), folder.path(), seed);
    refused += data.ok() ? 0 : 1;
    if (!data.ok()) continue;
    for (int64_t i = 0; i < (*data)->size(); ++i) {
      for (const int32_t id : (*data)->at(i).input_ids) EXPECT_LT(id, 32) << seed;
    }
  }
  EXPECT_GT(refused, 500);
}

}  // namespace
}  // namespace graft::trainer
