// Writes the seeds of the fuzz targets, one folder for each: valid files of every kind, so that
// libFuzzer starts from what a reader takes. `fuzz_seeds DIR`, DIR = tests/fuzz/corpus.
#include <filesystem>
#include <iostream>
#include <nlohmann/json.hpp>

#include "base/hash.h"
#include "base/status.h"
#include "comm/flight_dump.h"
#include "comm/stage_link.h"
#include "sharding/manifest.h"
#include "tests/fuzz/fuzz.h"
#include "tests/sharding/tiny_run.h"
#include "tests/testing/dataset_folder.h"
#include "tests/testing/model_folder.h"
#include "trainer/coordinator/journal.h"
#include "trainer/coordinator/transport.h"

namespace graft {
namespace {

using nlohmann::json;

class Corpus {
 public:
  explicit Corpus(std::filesystem::path root) : root_(std::move(root)) {}
  void Add(const std::string& target, const std::string& name, const std::string& bytes) const {
    std::filesystem::create_directories(root_ / target);
    std::ofstream(root_ / target / ("seed-" + name), std::ios::binary) << bytes;
  }

 private:
  std::filesystem::path root_;
};

void AddModels(const Corpus& corpus) {
  json config = testing::TinyConfig();
  corpus.Add("model_config", "llama", config.dump());
  config["model_type"] = "qwen2";
  config["use_sliding_window"] = true;
  config["sliding_window"] = 16;
  config["max_window_layers"] = 1;
  corpus.Add("model_config", "qwen2", config.dump());
  config = testing::TinyConfig();
  config["model_type"] = "mistral";
  config["sliding_window"] = 8;
  for (const char* const type : {"linear", "dynamic", "yarn", "llama3"}) {
    config["rope_scaling"] = {{"rope_type", type}, {"factor", 4.0}};
    if (type == std::string("llama3")) {
      config["rope_scaling"].update({{"low_freq_factor", 1.0},
                                     {"high_freq_factor", 4.0},
                                     {"original_max_position_embeddings", 32}});
    }
    corpus.Add("model_config", std::string("rope-") + type, config.dump());
  }
  corpus.Add("model_config", "gpt2",
             json{{"model_type", "gpt2"},
                  {"n_embd", 16},
                  {"n_layer", 2},
                  {"n_head", 4},
                  {"n_positions", 64},
                  {"vocab_size", 32},
                  {"activation_function", "gelu_new"},
                  {"layer_norm_epsilon", 1e-5}}
                 .dump());
  corpus.Add("model_config", "roberta",
             json{{"model_type", "roberta"},
                  {"hidden_size", 16},
                  {"num_hidden_layers", 2},
                  {"num_attention_heads", 4},
                  {"intermediate_size", 24},
                  {"vocab_size", 32},
                  {"max_position_embeddings", 66},
                  {"pad_token_id", 1},
                  {"type_vocab_size", 1},
                  {"hidden_act", "gelu"},
                  {"layer_norm_eps", 1e-5}}
                 .dump());
  const std::string header =
      R"({"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
      R"("b":{"dtype":"BF16","shape":[],"data_offsets":[8,10]}})";
  corpus.Add("safetensors", "two", testing::SafetensorsBytes(header, std::string(10, 'x')));
  corpus.Add("safetensors", "none", testing::SafetensorsBytes("{}", ""));
  corpus.Add("weight_index", "two",
             R"({"metadata":{"total_size":48},"weight_map":)"
             R"({"a":"1.safetensors","b":"2.safetensors","c":"2.safetensors"}})");
}

void AddData(const Corpus& corpus) {
  testing::DatasetFolder data = testing::TinyDataset();
  const fuzz::Folder folder;
  for (auto& shard : data.header["shards"]) shard["sha256"] = std::string(64, '0');
  corpus.Add("dataset_header", "causal_lm", data.header.dump());
  data.header["kind"] = "classification";
  data.header["labels"] = {"no", "yes"};
  data.header["tokenizer_sha256"] = std::string(64, 'a');
  corpus.Add("dataset_header", "classification", data.header.dump());

  const auto add = [&](char kind, const std::string& name, const testing::ShardTables& tables) {
    tables.Write(folder.Path(name));
    std::ifstream stream(folder.Path(name), std::ios::binary);
    corpus.Add("dataset_shard", name,
               kind + std::string(std::istreambuf_iterator<char>(stream), {}));
  };
  testing::ShardTables tables = data.shards[0];
  add('\0', "causal_lm", tables);
  tables.uint8.clear();
  testing::ShardTables labels = tables, values = tables, targets = tables;
  labels.int64["labels"] = {0, 1, 1};
  add('\1', "classification", labels);
  values.float32["labels"] = {0.5f, -1.0f, 2.0f};
  add('\2', "regression", values);
  targets.int32["target_ids"] = {5, 6, 7};
  targets.int64["target_offsets"] = {0, 1, 2, 3};
  add('\3', "seq2seq", targets);
  targets.int32["encoder_ids"] = {1, 2, 3};
  targets.int64["encoder_offsets"] = {0, 1, 2, 3};
  add('\3', "encoder", targets);
}

void AddRun(const Corpus& corpus) {
  sharding::Manifest manifest = testing::TinyManifest(12);
  manifest.adapter.parameters = 3;
  manifest.recipe.sha256 = Sha256Hex("a: 1");
  const std::string shard = "shards/layer-0000.safetensors";
  manifest.files = {{"recipe.yaml", 4, manifest.recipe.sha256}, {shard, 5, Sha256Hex("shard")}};
  for (const char* const key : {"exp_avg/x", "exp_avg_sq/x", "param/x"}) {
    manifest.tensors.push_back({key, shard, "F32", {3}, 0x123456789abcdef0u});
  }
  corpus.Add("manifest", "plain", sharding::ManifestText(manifest));
  manifest.updates = 11;
  manifest.skipped = 1;
  manifest.non_finite = {1, {12}};
  manifest.eval = sharding::EvalInfo{"loss", 0.5, 8, 1, false};
  manifest.layout.versions = {{"graft", "1"}};
  manifest.data.tokenizer_sha256 = Sha256Hex("t");
  corpus.Add("manifest", "full", sharding::ManifestText(manifest));

  comm::FlightDump dump;
  dump.size = 2;
  dump.host = "node1";
  dump.start = "1";
  dump.reason = "no end after 3.2 s";
  dump.phase = "step";
  dump.step = 20;
  dump.waiting = 1;
  dump.groups = {{.name = "world", .rank = 0, .size = 2}};
  comm::FlightOperation operation;
  operation.sequence = 1;
  operation.group = 0;
  operation.number = 21;
  operation.op = "AllReduce";
  operation.type = "float64";
  operation.bytes = 32768;
  dump.operations = {operation};
  corpus.Add("flight_dump", "waits", comm::ToJson(dump));

  const comm::StageHeader header = comm::MakeStageHeader(0x12345678, {7, 3, 2}, 4096);
  corpus.Add("transfer_header", "expected",
             std::string(reinterpret_cast<const char*>(&header), sizeof header));
}

void AddScoring(const Corpus& corpus) {
  const fuzz::Folder folder;
  {
    auto journal = ValueOrThrow(trainer::Journal::Open(folder.path(), std::string(64, 'a')));
    journal->Append(std::string(64, 'b'), 1, "result");
    ThrowIfError(journal->Sync());
    journal->Append(std::string(64, 'c'), 2, "");
    ThrowIfError(journal->Sync());
  }
  std::ifstream stream(folder.Path("journal.bin"), std::ios::binary);
  corpus.Add("journal", "two", std::string(std::istreambuf_iterator<char>(stream), {}));
  trainer::Message message;
  message.worker = 3;
  message.capacity = 2;
  message.held = {{7, trainer::HeldItem::State::kBegun}};
  corpus.Add("score_message", "report", trainer::EncodeMessage(message));
  message.kind = trainer::Message::Kind::kResult;
  message.bytes = "numbers";
  message.held.clear();
  corpus.Add("score_message", "result", trainer::EncodeMessage(message));
}

void AddSettings(const Corpus& corpus) {
  corpus.Add("recipe", "full", R"(run: {name: demo, output: runs/demo, seed: 7}
model:
  path: models/smol
  dtype: bfloat16
data: {train: data/train, eval: data/eval, shuffle: false}
adapter:
  method: lora
  sites: [attn.q, attn.k]
  layers: [0-3, 7]
  rank: 4
parallel: {data: 2, pipeline: 2, schedule: interleaved, split: [3, 3, 1, 1]}
optim: {lr: 3e-4, betas: [0.9, 0.95], global_batch: 16, steps: 20}
eval: {every: 5, patience: 2}
)");
  corpus.Add("recipe", "alias", "a: &x [1, 2]\nb: [*x, *x]\nrun: {<<: *x}\n");
  corpus.Add("recipe", "quoted", "run: {name: \"d\\u00e9mo\", output: 'a b'}\n");
  corpus.Add("command_line", "train",
             "train\n--config\na.yaml\noptim.lr=1e-3\nparallel.split=[1, 2]\nrun.name=x");
  corpus.Add("command_line", "inspect", "inspect\na\nb/c");
  corpus.Add("command_line", "help", "plan\n--help");
  corpus.Add("command_line", "twice", "train\n--config=a\n--config=b\noptim.lr");
  corpus.Add(
      "setting", "two",
      R"({"format":"graft-setting","version":1,"model_type":"llama","num_layers":2,)"
      R"("selection":{"rule":"top_k","k":3},"keep":[{"layer":0,"roles":["attn.q"],)"
      R"("rank":4,"alpha":8},{"layer":1,"roles":["ffn.up","attn.v"],"rank":2,"alpha":4.5}]})");
  corpus.Add("adapter_config", "lora",
             R"({"peft_type":"LORA","r":2,"lora_alpha":4,"target_modules":["q_proj"],)"
             R"("rank_pattern":{},"alpha_pattern":{},"task_type":"CAUSAL_LM"})");
  corpus.Add("adapter_config", "pattern",
             R"({"peft_type":"LORA","r":8,"lora_alpha":4,"target_modules":"all-linear",)"
             R"("rank_pattern":{"model.layers.0.self_attn.q_proj":2},"alpha_pattern":{}})");
}

}  // namespace
}  // namespace graft

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "fuzz_seeds: found " << argc - 1 << " words, must be one: the folder\n";
    return 64;
  }
  const graft::Corpus corpus(argv[1]);
  graft::AddModels(corpus);
  graft::AddData(corpus);
  graft::AddRun(corpus);
  graft::AddScoring(corpus);
  graft::AddSettings(corpus);
  return 0;
}
