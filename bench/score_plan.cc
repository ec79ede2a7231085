// What it takes to score every LoRA module of a model on many nodes: work items, hours, bytes and
// what failures cost, before a job exists. The items are those of `graft score`, the cluster is the
// coordinator's simulation (the machines of a real run on a virtual clock), the speed of a node is
// what --node-gflops says: measure it. docs/scale.md has the commands and what they print.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>

#include "base/hash.h"
#include "base/status.h"
#include "models/model_config.h"
#include "sharding/cost_model.h"
#include "trainer/coordinator/simulation.h"

namespace graft::bench {
namespace {

using trainer::WorkItem;

constexpr int kModules = 7;  // of a layer: the linears of a Llama

struct Options {
  std::string shape = "llama-70b", cut = "even";
  int nodes = 128, pipeline = 1;
  int64_t samples = 512, length = 512, shard = 32, block = 4, micro_batch = 4;
  double node_gflops = 0;
  double spread = 0.05;           // nodes differ by so much, either way
  double gbytes_per_second = 10;  // of all nodes together, from where the weights lie
  double node_mtbf_hours = 0;     // 0 = nothing fails
  double requeue_seconds = 120;
  int64_t seed = 0;
};

// Layers of stage s: [cuts[s], cuts[s + 1]).
std::vector<int> Cuts(const Options& options, int num_layers) {
  std::vector<int> cuts;
  for (int s = 0; s <= options.pipeline; ++s) {
    const double part = static_cast<double>(s) / options.pipeline;
    const double place = options.cut == "even" ? part : std::sqrt(part);
    cuts.push_back(static_cast<int>(std::lround(num_layers * place)));
  }
  return cuts;
}

class ScorePlan {
 public:
  ScorePlan(const Options& options, const models::ModelConfig& config)
      : options_(options), config_(config), cuts_(Cuts(options, config.num_layers)) {
    // The grid of methods.md 16.2: shards of samples x blocks of layers, for both kinds of
    // ablation.
    for (const char* kind : {"loo", "keep_one"}) {
      for (int64_t first = 0; first < options.samples; first += options.shard) {
        for (int64_t layer = 0; layer < config.num_layers; layer += options.block) {
          WorkItem item;
          item.kind = kind;
          item.first_sample = first;
          item.num_samples = std::min(options.shard, options.samples - first);
          item.first_layer = static_cast<int32_t>(layer);
          item.num_layers =
              static_cast<int32_t>(std::min(options.block, config.num_layers - layer));
          item.micro_batch = static_cast<int32_t>(options.micro_batch);
          items_.push_back(item);
        }
      }
    }
  }

  void Print();

 private:
  int num_layers() const { return static_cast<int>(config_.num_layers); }
  int replicas() const { return options_.nodes / options_.pipeline; }
  double TokenSeconds() const {  // one token through one layer on one node
    return sharding::LayerForwardFlop(config_, 0, options_.length, 1.0) /
           (options_.node_gflops * 1e9);
  }
  double ItemTokens(const WorkItem& item) const {
    return static_cast<double>(item.num_samples * options_.length);
  }
  double Rows(const WorkItem& item, int layer) const;
  double Passes(const WorkItem& item, int begin, int end) const;  // of a sample
  double SlowestStageSeconds(const WorkItem& item) const;
  double LoadSeconds() const;
  trainer::SimulationReport Simulate() const;

  const Options options_;
  const models::ModelConfig config_;
  const std::vector<int> cuts_;
  std::vector<WorkItem> items_;
};

// Rows of a sample that run through `layer`: one up to the block, then the variants and the clean
// copy of each layer of the block from there on.
double ScorePlan::Rows(const WorkItem& item, int layer) const {
  if (layer < item.first_layer) return 1;
  return (kModules + 1.0) * std::min(layer - item.first_layer + 1, item.num_layers);
}

double ScorePlan::Passes(const WorkItem& item, int begin, int end) const {
  double passes = 0;
  for (int layer = begin; layer < end; ++layer) passes += Rows(item, layer);
  return passes;
}

double ScorePlan::SlowestStageSeconds(const WorkItem& item) const {
  double slowest = 0;
  for (int s = 0; s < options_.pipeline; ++s) {
    const auto stage = static_cast<size_t>(s);
    slowest = std::max(slowest, Passes(item, cuts_[stage], cuts_[stage + 1]));
  }
  return slowest * ItemTokens(item) * TokenSeconds();
}

// Every replica reads the whole model once.
double ScorePlan::LoadSeconds() const {
  const double bytes =
      2.0 * static_cast<double>(sharding::LayerParameters(config_) * config_.num_layers +
                                2 * sharding::EmbeddingParameters(config_));
  return bytes * replicas() / (options_.gbytes_per_second * 1e9);
}

trainer::SimulationReport ScorePlan::Simulate() const {
  trainer::SimulationOptions run;
  run.items = items_;
  double longest = 0;
  for (WorkItem& item : run.items) {
    item.cost = SlowestStageSeconds(item);  // at one node's speed a second is a second
    longest = std::max(longest, item.cost);
  }
  run.run_key = Sha256Hex("score_plan");
  run.seed = static_cast<uint64_t>(options_.seed);
  // A sign of work after each layer that the variants of one have passed: of a stage, on average.
  run.micro_batches = static_cast<int>(options_.shard / options_.micro_batch * options_.block *
                                       num_layers() / 2 / options_.pipeline);
  // Rank 0 looks for messages as often.
  run.poll_seconds = std::max(0.05, longest / run.micro_batches);
  run.network = {.least_delay = 0.0001, .most_delay = 0.001};
  run.give_up_seconds = 1e9;
  std::mt19937_64 random(run.seed);
  std::uniform_real_distribution<double> speed(1 - options_.spread, 1 + options_.spread);
  run.workers.resize(static_cast<size_t>(replicas()));
  for (trainer::SimulatedWorker& worker : run.workers) worker.speed = speed(random);
  run.compute = [](const WorkItem& item, int) -> absl::StatusOr<std::string> {
    const int64_t numbers = item.num_samples * (kModules + 1) * item.num_layers;
    return std::string(static_cast<size_t>(8 * numbers), '\0');
  };
  if (options_.node_mtbf_hours > 0) {
    // A lost node ends the MPI job: all replicas and the coordinator begin again from the journal.
    std::exponential_distribution<double> gap(options_.nodes / (3600 * options_.node_mtbf_hours));
    const double down = options_.requeue_seconds + LoadSeconds();
    run.restart_seconds = down;
    for (double at = gap(random); at < 1e7; at += down + gap(random)) {
      run.crashes.push_back(at);
      for (trainer::SimulatedWorker& worker : run.workers) {
        worker.faults.push_back({at, trainer::SimulatedFault::Kind::kLeave, down});
      }
    }
  }
  return trainer::Simulate(run);
}

void ScorePlan::Print() {
  double work = 0, slowest = 0, longest = 0, crossings = 0;
  for (const WorkItem& item : items_) {
    work += Passes(item, 0, num_layers()) * ItemTokens(item) * TokenSeconds();
    slowest += SlowestStageSeconds(item);
    longest = std::max(longest, SlowestStageSeconds(item));
    for (size_t s = 1; s + 1 < cuts_.size(); ++s) {
      crossings += Rows(item, cuts_[s] - 1) * ItemTokens(item);
    }
  }
  const auto begin = std::chrono::steady_clock::now();
  const trainer::SimulationReport report = Simulate();
  const double wall =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  ThrowIfError(report.status);
  // All modules on, then each of them off (or on) alone.
  const double naive = 2.0 * (kModules * num_layers() + 1) * num_layers() *
                       static_cast<double>(options_.samples * options_.length) * TokenSeconds();
  std::printf("items %zu  replicas %d x %d nodes  cut", items_.size(), replicas(),
              options_.pipeline);
  for (const int cut : cuts_) std::printf(" %d", cut);
  std::printf("\nwork           %.1f node-hours (%.3f of one pass per module)\n", work / 3600,
              work / naive);
  std::printf("stages busy    %.1f %% of a full pipeline's time\n",
              100 * work / (options_.pipeline * slowest));
  std::printf("longest item   %.1f min\n", longest / 60);
  std::printf("load           %.2f h at %.0f GB/s for all (%.1f TB)\n", LoadSeconds() / 3600,
              options_.gbytes_per_second, LoadSeconds() * options_.gbytes_per_second / 1000);
  std::printf("score          %.2f h (%.1f %% of all replicas' time busy), %ld restarts\n",
              report.seconds / 3600, 100 * report.busy_seconds / (report.seconds * replicas()),
              static_cast<long>(report.restarts));
  std::printf("computed again %.2f %%\n", 100 * report.extra_work());
  std::printf("boundaries     %.2f TB, busiest link %.3f GB/s on average\n",
              crossings * 2.0 * static_cast<double>(config_.hidden_size) / 1e12,
              options_.pipeline == 1
                  ? 0.0
                  : crossings * 2.0 * static_cast<double>(config_.hidden_size) / 1e9 /
                        (options_.pipeline - 1) / replicas() / (report.seconds));
  std::printf("messages       %ld, %.2f MB (results included)\n",
              static_cast<long>(report.messages), static_cast<double>(report.message_bytes) / 1e6);
  std::printf("coordinator    %.1f us of one core per message, workers included (%.1f s wall)\n",
              1e6 * wall / static_cast<double>(report.messages), wall);
}

int Main(int argc, char** argv) {
  Options options;
  CLI::App app("Plans the scoring of a model on many nodes.");
  app.add_option("--shape", options.shape, "model.shape of graft's recipes");
  app.add_option("--nodes", options.nodes)->check(CLI::Range(1, 100'000));
  app.add_option("--pipeline", options.pipeline, "nodes of a replica")->check(CLI::Range(1, 64));
  app.add_option("--cut", options.cut, "layers of the stages")
      ->check(CLI::IsMember({"even", "balanced"}));
  app.add_option("--samples", options.samples)->check(CLI::Range(1, 1'000'000));
  app.add_option("--length", options.length, "tokens of a sample")->check(CLI::Range(1, 1'000'000));
  app.add_option("--shard", options.shard, "score.shard_samples")->check(CLI::Range(1, 100'000));
  app.add_option("--block", options.block, "score.layer_block")->check(CLI::Range(1, 1000));
  app.add_option("--node-gflops", options.node_gflops, "measured speed of a node, GFLOP/s")
      ->required()
      ->check(CLI::PositiveNumber);
  app.add_option("--spread", options.spread, "nodes differ by so much, either way");
  app.add_option("--read-gbytes", options.gbytes_per_second,
                 "GB/s that all nodes together read weights with");
  app.add_option("--node-mtbf-hours", options.node_mtbf_hours,
                 "mean hours between failures of one node; 0 = none");
  app.add_option("--requeue-seconds", options.requeue_seconds,
                 "from a lost node until a new job runs");
  app.add_option("--seed", options.seed);
  CLI11_PARSE(app, argc, argv);
  try {
    ScorePlan(options, ValueOrThrow(models::NamedShape(options.shape))).Print();
  } catch (const StatusError& error) {
    std::fprintf(stderr, "score_plan: %s\n", error.what());
    return ExitCodeOf(error.status());
  }
  return 0;
}

}  // namespace
}  // namespace graft::bench

int main(int argc, char** argv) { return graft::bench::Main(argc, argv); }
