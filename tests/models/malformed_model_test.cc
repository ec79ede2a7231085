// Rows 1 to 36 of the malformed inputs (docs: reliability): one damaged model folder each, and what
// a reader says of it. tests/launch/malformed_inputs.py gives the same rows to the program.
#include <unistd.h>

#include <functional>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "models/model_config.h"
#include "models/weights/expected_tensors.h"
#include "models/weights/safetensors.h"
#include "tests/testing/model_folder.h"
#include "tests/testing/mutate.h"
#include "tests/testing/status_matchers.h"

namespace graft::models {
namespace {

using ::graft::testing::ExpectCleanOutcome;
using ::graft::testing::FailsWith;
using ::graft::testing::IsOk;
using ::graft::testing::Mutate;
using ::graft::testing::SafetensorsBytes;
using ::graft::testing::TempFolder;
using ::graft::testing::TinyConfig;
using ::graft::testing::TinyWeights;
using ::graft::testing::WriteShardedModel;
using ::graft::testing::WriteTinyModel;
using nlohmann::json;

// What every command does with a model folder before it loads a weight.
absl::Status ReadModel(const std::string& folder) {
  const auto config = ReadModelConfig(folder);
  if (!config.ok()) return config.status();
  const auto weights = WeightFolder::Open(folder, SafetensorsFile::Options());
  if (!weights.ok()) return weights.status();
  return CheckWeights(*config, **weights);
}

struct Row {
  int number;
  const char* what;
  std::function<void(const TempFolder&)> damage;  // of a valid folder
  const char* file;
  const char* field;
};

void PrintTo(const Row& row, std::ostream* out) { *out << row.number << " " << row.what; }

class MalformedModelTest : public ::testing::TestWithParam<Row> {
 protected:
  // What the message must name; the folder when the row has no file.
  static std::string FileIn(const TempFolder& folder) {
    const std::string file = GetParam().file;
    return file.empty() ? folder.path() : folder.Path(file);
  }
};

TEST_P(MalformedModelTest, OneClearError) {
  const TempFolder folder;
  WriteTinyModel(folder);
  ASSERT_THAT(ReadModel(folder.path()), IsOk());
  GetParam().damage(folder);
  const absl::Status status = ReadModel(folder.path());
  EXPECT_THAT(status, FailsWith(ErrorKind::kInput, GetParam().field));
  EXPECT_THAT(status, FailsWith(ErrorKind::kInput, FileIn(folder)));
  EXPECT_EQ(std::string(status.message()).find('\n'), std::string::npos) << status;
}

std::function<void(const TempFolder&)> Config(const std::string& text) {
  return [text](const TempFolder& folder) { folder.Write("config.json", text); };
}

std::function<void(const TempFolder&)> Set(const std::string& key, const json& value) {
  json config = TinyConfig();
  config[key] = value;
  return Config(config.dump());
}

std::string Replace(std::string text, const std::string& from, const std::string& to) {
  const std::size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return text.replace(at, from.size(), to);
}

constexpr char kConfig[] = "config.json";
const Row kConfigRows[] = {
    {1, "missing",
     [](const TempFolder& folder) { std::filesystem::remove(folder.Path("config.json")); }, kConfig,
     "config.json"},
    {2, "empty", Config(""), kConfig, "empty"},
    {3, "not JSON", Config("hidden_size = 16"), kConfig, "line 1, column 1"},
    {4, "array on top", Config("[1, 2]"), kConfig, "must be an object"},
    {5, "hidden_size 0", Set("hidden_size", 0), kConfig, "hidden_size: must be an integer from 1"},
    {6, "hidden_size -1", Set("hidden_size", -1), kConfig, "hidden_size: must be"},
    {7, "hidden_size 1e18", Set("hidden_size", 1000000000000000000), kConfig, "hidden_size: must"},
    {8, "hidden_size a string", Set("hidden_size", "16"), kConfig, "found the string \"16\""},
    {9, "heads do not divide", Set("num_attention_heads", 6), kConfig, "num_attention_heads"},
    {10, "more kv heads than heads", Set("num_key_value_heads", 8), kConfig,
     "num_key_value_heads: found 8, must divide"},
    {11, "no layers", Set("num_hidden_layers", 0), kConfig, "num_hidden_layers"},
    {12, "vocabulary smaller than the embedding", Set("vocab_size", 31), "", "(31, 16)"},
    {13, "unknown architecture", Set("model_type", "rwkv"), kConfig,
     "model_type: found \"rwkv\", supported are llama, mistral, qwen2"},
    {14, "rope_theta 0", Set("rope_theta", 0), kConfig, "rope_theta: must be a number"},
    {114, "rope_theta NaN", Config(Replace(TinyConfig().dump(), "10000.0", "NaN")), kConfig,
     "line 1"},
    {15, "nesting 100,000",
     Config("{\"a\":" + std::string(100000, '[') + std::string(100000, ']') + "}"), kConfig,
     "deeper than 64"},
    {16, "duplicate key",
     Config(Replace(TinyConfig().dump(), "\"vocab_size\"", "\"hidden_size\":8,\"vocab_size\"")),
     kConfig, "key `hidden_size` occurs twice"},
};

std::function<void(const TempFolder&)> Weights(const std::string& bytes) {
  return [bytes](const TempFolder& folder) { folder.Write("model.safetensors", bytes); };
}

// Two entries `a` and `b` over 8 bytes of data.
std::function<void(const TempFolder&)> Entries(const std::string& a, const std::string& b) {
  return Weights(SafetensorsBytes("{\"a\":{" + a + "},\"b\":{" + b + "}}", "01234567"));
}

constexpr char kFirst[] = R"("dtype":"F32","shape":[1],"data_offsets":[0,4])";
constexpr char kSecond[] = R"("dtype":"F32","shape":[1],"data_offsets":[4,8])";

constexpr char kFile[] = "model.safetensors";
const Row kSafetensorsRows[] = {
    {17, "7 bytes", Weights("1234567"), kFile, "header length: the file has 7 bytes"},
    {18, "header length 2^63", Weights(SafetensorsBytes("{}", "", uint64_t{1} << 63)), kFile,
     "header length: found 9223372036854775808"},
    {19, "header past the end", Weights(SafetensorsBytes("{}", "", 3)), kFile,
     "header length: found 3"},
    {20, "header of 101 MB",
     [](const TempFolder& folder) {
       folder.Write(kFile, SafetensorsBytes("{}", "", 101'000'000));
       std::filesystem::resize_file(folder.Path(kFile), 102'000'000);
     },
     kFile, "must be 2 to 100000000"},
    {21, "invalid UTF-8", Weights(SafetensorsBytes("{\"a\xFF\":1}", "")), kFile, "UTF-8"},
    {22, "header starts with a space", Weights(SafetensorsBytes(" {}", "")), kFile,
     "must start with `{`"},
    {122, "header starts with a byte-order mark", Weights(SafetensorsBytes("\xEF\xBB\xBF{}", "")),
     kFile, "must start with `{`"},
    {23, "unknown dtype", Entries(R"("dtype":"Q4","shape":[1],"data_offsets":[0,4])", kSecond),
     kFile, "tensor `a`: dtype: found \"Q4\""},
    {24, "product over 64 bits",
     Entries(R"("dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4])", kSecond),
     kFile, "tensor `a`: shape"},
    {25, "negative offset", Entries(R"("dtype":"F32","shape":[1],"data_offsets":[-4,0])", kSecond),
     kFile, "tensor `a`: data_offsets[0]"},
    {26, "end before begin", Entries(kFirst, R"("dtype":"F32","shape":[1],"data_offsets":[8,4])"),
     kFile, "tensor `b`: data_offsets"},
    {27, "overlap", Entries(kFirst, R"("dtype":"F32","shape":[1],"data_offsets":[2,6])"), kFile,
     "(overlap)"},
    {28, "hole", Entries(R"("dtype":"U8","shape":[3],"data_offsets":[0,3])", kSecond), kFile,
     "(hole)"},
    {29, "trailing bytes",
     Weights(SafetensorsBytes(std::string("{\"a\":{") + kFirst + "}}", "01234567")), kFile,
     "4 more bytes"},
    {30, "size is not dtype * shape",
     Entries(kFirst, R"("dtype":"F32","shape":[2],"data_offsets":[4,8])"), kFile,
     "tensor `b`: data_offsets: hold 4 bytes, dtype and shape need 8"},
    {31, "duplicate name",
     Weights(SafetensorsBytes(std::string("{\"a\":{") + kFirst + "},\"a\":{" + kSecond + "}}",
                              "01234567")),
     kFile, "key `a` occurs twice"},
    {32, "a layer's tensor is missing",
     [](const TempFolder& folder) {
       auto tensors = TinyWeights();
       tensors.Remove("model.layers.1.mlp.up_proj.weight");
       tensors.Write(folder.Path(kFile));
     },
     "", "model.layers.1.mlp.up_proj.weight` is missing"},
};

// A sharded model whose index puts one tensor into `file`.
std::function<void(const TempFolder&)> Index(const std::string& file) {
  return [file](const TempFolder& folder) {
    std::filesystem::remove(folder.Path(kFile));
    json index = WriteShardedModel(folder);
    index["weight_map"]["model.norm.weight"] = file;
    folder.Write("model.safetensors.index.json", index.dump());
  };
}

constexpr char kIndex[] = "model.safetensors.index.json";
const Row kIndexRows[] = {
    {33, "parent folder", Index("../../x"), kIndex, "weight_map: model.norm.weight"},
    {34, "absolute path", Index("/etc/x.safetensors"), kIndex, "weight_map: model.norm.weight"},
    {133, "another ending", Index("x.bin"), kIndex, "must end in .safetensors"},
    {35, "link out of the root",
     [](const TempFolder& folder) {
       std::filesystem::remove(folder.Path(kFile));
       WriteShardedModel(folder);
       const std::string shard = folder.Path("model-00002-of-00002.safetensors");
       std::filesystem::remove(shard);
       ASSERT_EQ(::symlink("/etc/passwd", shard.c_str()), 0);
     },
     "model-00002-of-00002.safetensors", "link"},
    {36, "listed shard is absent", Index("model-00009-of-00009.safetensors"), kIndex,
     "model-00009-of-00009.safetensors, which is absent"},
};

INSTANTIATE_TEST_SUITE_P(Config, MalformedModelTest, ::testing::ValuesIn(kConfigRows));
INSTANTIATE_TEST_SUITE_P(Safetensors, MalformedModelTest, ::testing::ValuesIn(kSafetensorsRows));
INSTANTIATE_TEST_SUITE_P(Index, MalformedModelTest, ::testing::ValuesIn(kIndexRows));

TEST(MalformedModelTest, AThousandMutationsOfTheConfig) {
  const std::string valid = TinyConfig().dump(1);
  int refused = 0;
  for (uint64_t seed = 0; seed < 1000; ++seed) {
    const auto config = ParseModelConfig(Mutate(valid, seed, valid.size()), "m/config.json");
    ExpectCleanOutcome(config.status(), "m/config.json", seed);
    refused += config.ok() ? 0 : 1;
  }
  EXPECT_GT(refused, 500);
}

}  // namespace
}  // namespace graft::models
