#include "trainer/scoring/score_plan.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace graft::trainer {
namespace {

using adapters::ModuleScore;
using adapters::SampleValues;

bool IsAblation(const std::string& kind) { return kind == "loo" || kind == "keep_one"; }

// The kinds of items that a method needs, in item order.
std::vector<std::string> KindsOf(const std::string& method) {
  if (method == "loo") return {"loo"};
  if (method == "keep_one") return {"loss", "keep_one"};
  if (method == "ab" || method == "ab_rank") return {"loo", "keep_one"};
  if (method == "taylor" || method == "taylor_abs" || method == "taylor_sq") return {"taylor"};
  if (method == "lora_drop" || method == "lora_drop_relative") return {"lora_drop"};
  return {};
}

int64_t NumMicroBatches(const WorkItem& item) {
  return (item.num_samples + item.micro_batch - 1) / item.micro_batch;
}

// Scored layers of a block with their modules.
std::map<int, std::vector<models::SiteSpec>> LayersOf(const ScoreTask& task, const WorkItem& item) {
  std::map<int, std::vector<models::SiteSpec>> layers;
  for (const models::SiteSpec& module :
       ModulesOf(task.modules, item.first_layer, item.first_layer + item.num_layers)) {
    layers[module.id.layer].push_back(module);
  }
  return layers;
}

int64_t ResultSize(const ScoreTask& task, const WorkItem& item) {
  const int64_t n = item.num_samples;
  const auto modules = static_cast<int64_t>(task.modules.size());
  if (item.kind == "loss") return NumMicroBatches(item);
  if (item.kind == "taylor") return modules * n + NumMicroBatches(item);
  if (item.kind == "lora_drop") return 2 * modules * n + NumMicroBatches(item);
  int64_t size = 0;
  for (const auto& [layer, members] : LayersOf(task, item))
    size += static_cast<int64_t>(members.size() + 1) * n;
  return size;
}

// A result, read from front to back.
class Reader {
 public:
  explicit Reader(std::vector<double> values) : values_(std::move(values)) {}
  std::vector<double> Next(int64_t count) {
    const auto begin = values_.begin() + next_;
    next_ += count;
    return {begin, begin + count};
  }

 private:
  std::vector<double> values_;
  std::ptrdiff_t next_ = 0;
};

class Joiner {
 public:
  explicit Joiner(const ScoreTask& task) : task_(task), lowest_(task.modules.front().id.layer) {
    for (size_t i = 0; i < task.modules.size(); ++i) index_[task.modules[i].id] = i;
  }

  void Add(const WorkItem& item, Reader result) {
    const int64_t n = item.num_samples;
    if (IsAblation(item.kind)) return AddAblation(item, &result);
    for (size_t m = 0; item.kind != "loss" && m < task_.modules.size(); ++m) {
      Put(result.Next(n), m, item, &measured_.first);
      if (item.kind == "lora_drop") Put(result.Next(n), m, item, &measured_.second);
    }
    // Shards come in rising order: samples are added inside the micro-batch, then inside the shard.
    const std::vector<double> losses = result.Next(NumMicroBatches(item));
    base_sum_ = base_sum_.value_or(0.0) + std::accumulate(losses.begin(), losses.end(), 0.0);
  }

  Measured Finish() {
    const auto tokens = static_cast<double>(adapters::TrainedTokens(task_.samples()));
    if (base_sum_) measured_.base_loss = *base_sum_ / tokens;
    const auto mean = [&](const std::vector<double>& losses) {
      return adapters::MeanPerToken(losses, task_.samples());
    };
    if (!measured_.ablation.all.empty()) measured_.base_loss = mean(measured_.ablation.all);
    if (!measured_.ablation.bare.empty()) measured_.bare_loss = mean(measured_.ablation.bare);
    return std::move(measured_);
  }

 private:
  void AddAblation(const WorkItem& item, Reader* result) {
    const bool is_loo = item.kind == "loo";
    for (const auto& [layer, members] : LayersOf(task_, item)) {
      const std::vector<double> clean = result->Next(item.num_samples);
      if (layer == lowest_)
        PutAt(clean, item, is_loo ? &measured_.ablation.all : &measured_.ablation.bare);
      for (const models::SiteSpec& module : members) {
        std::vector<double> difference = result->Next(item.num_samples);
        for (size_t n = 0; n < clean.size(); ++n)
          difference[n] = is_loo ? difference[n] - clean[n] : clean[n] - difference[n];
        Put(difference, index_.at(module.id), item,
            is_loo ? &measured_.ablation.loo : &measured_.ablation.keep_one);
      }
    }
  }

  void Put(const std::vector<double>& values, size_t module, const WorkItem& item,
           SampleValues* all) const {
    all->resize(task_.modules.size());
    PutAt(values, item, &(*all)[module]);
  }
  void PutAt(const std::vector<double>& values, const WorkItem& item,
             std::vector<double>* all) const {
    all->resize(task_.tokens.size());
    std::copy(values.begin(), values.end(), all->begin() + item.first_sample);
  }

  const ScoreTask& task_;
  const int lowest_;  // layer with modules
  std::map<models::SiteId, size_t> index_;
  std::optional<double> base_sum_;
  Measured measured_;
};

}  // namespace

int64_t ScoreTask::num_tokens() const {
  return std::accumulate(tokens.begin(), tokens.end(), int64_t{0});
}

std::vector<models::SiteSpec> ModulesOf(const std::vector<models::SiteSpec>& modules, int first,
                                        int end) {
  std::vector<models::SiteSpec> some;
  for (const models::SiteSpec& module : modules) {
    if (module.id.layer >= first && module.id.layer < end) some.push_back(module);
  }
  return some;
}

std::vector<WorkItem> ScoreItems(const ScoreTask& task) {
  const auto num_samples = static_cast<int64_t>(task.tokens.size());
  const int block = static_cast<int>(std::min<int64_t>(task.grid.layer_block, task.num_layers));
  std::vector<WorkItem> items;
  const auto add = [&](WorkItem item) {
    const auto begin = task.tokens.begin() + item.first_sample;
    const int64_t tokens = std::accumulate(begin, begin + item.num_samples, int64_t{0});
    item.cost = static_cast<double>(LayerForwards(task, item)) * static_cast<double>(tokens) /
                static_cast<double>(item.num_samples);
    items.push_back(std::move(item));
  };
  for (const std::string& kind : KindsOf(task.method)) {
    for (int64_t first = 0; first < num_samples; first += task.grid.shard_samples) {
      WorkItem item;
      item.kind = kind;
      item.first_sample = first;
      item.num_samples = std::min(task.grid.shard_samples, num_samples - first);
      item.micro_batch = static_cast<int32_t>(task.grid.micro_batch);
      if (!IsAblation(kind)) {
        add(item);
        continue;
      }
      for (int layer = 0; layer < task.num_layers; layer += block) {
        item.first_layer = layer;
        item.num_layers = std::min(block, task.num_layers - layer);
        if (!LayersOf(task, item).empty()) add(item);
      }
    }
  }
  return items;
}

int64_t LayerForwards(const ScoreTask& task, const WorkItem& item) {
  const int64_t n = item.num_samples, layers = task.num_layers;
  if (item.kind == "taylor") return 3 * layers * n;  // a backward pass is about two forward ones
  if (!IsAblation(item.kind)) return layers * n;
  int64_t forwards = 0;
  int reached = 0;
  for (const auto& [layer, members] : LayersOf(task, item)) {
    forwards += layer - reached;  // one copy up to the layer
    forwards += static_cast<int64_t>(members.size() + 1) * (layers - layer);
    reached = layer + 1;  // the clean copy has passed it
  }
  return forwards * n;
}

int64_t NaiveLayerForwards(const ScoreTask& task) {
  int64_t kinds = 0;
  for (const std::string& kind : KindsOf(task.method)) kinds += IsAblation(kind) ? 1 : 0;
  return kinds * static_cast<int64_t>((task.modules.size() + 1) * task.tokens.size()) *
         task.num_layers;
}

ResultPlace PlaceOf(const ScoreTask& task, const WorkItem& item, int64_t index) {
  const int64_t n = item.num_samples;
  std::vector<std::string> columns;  // of n numbers each
  const auto name = [](const models::SiteSpec& module) {
    return absl::StrCat("layer ", module.id.layer, " ", models::RoleName(module.id.role));
  };
  if (IsAblation(item.kind)) {
    for (const auto& [layer, members] : LayersOf(task, item)) {
      columns.push_back(
          absl::StrCat("layer ", layer, ", all modules ", item.kind == "loo" ? "on" : "off"));
      for (const models::SiteSpec& module : members) columns.push_back(name(module));
    }
  } else if (item.kind != "loss") {
    for (const models::SiteSpec& module : task.modules) {
      columns.push_back(name(module));
      if (item.kind == "lora_drop") columns.push_back(name(module) + ", the linear's output");
    }
  }
  const auto column = static_cast<size_t>(index / n);
  if (column < columns.size()) return {columns[column], index % n, 1};
  const int64_t batch = index - n * static_cast<int64_t>(columns.size());
  return {"the loss", batch * item.micro_batch,
          std::min<int64_t>(item.micro_batch, n - batch * item.micro_batch)};
}

std::string PackResult(const std::vector<double>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(double)};
}

std::vector<double> UnpackResult(const std::string& bytes) {
  std::vector<double> values(bytes.size() / sizeof(double));
  std::memcpy(values.data(), bytes.data(), values.size() * sizeof(double));
  return values;
}

absl::StatusOr<Measured> JoinResults(const ScoreTask& task, const std::vector<WorkItem>& items,
                                     const std::vector<std::string>& results) {
  Joiner joiner(task);
  for (size_t i = 0; i < items.size(); ++i) {
    const auto expected = static_cast<size_t>(ResultSize(task, items[i])) * sizeof(double);
    if (results[i].size() != expected) {
      return BugError(absl::StrCat("result of ", ItemName(items[i]), ": found ", results[i].size(),
                                   " bytes, must be ", expected));
    }
    joiner.Add(items[i], Reader(UnpackResult(results[i])));
  }
  return joiner.Finish();
}

std::vector<ModuleScore> ScoresOf(const ScoreTask& task, const Measured& measured, uint64_t seed) {
  std::vector<ModuleScore> scores;
  for (const models::SiteSpec& module : task.modules)
    scores.push_back({module.id, module.in_features, module.out_features, 0, std::nullopt, {}});
  const std::vector<std::string> kinds = KindsOf(task.method);
  const std::string kind = kinds.empty() ? task.method : kinds.back();
  if (kind == "random") {
    adapters::ScoreRandom(seed, &scores);
  } else if (kind == "taylor") {
    adapters::ScoreTaylor(task.method, measured.first, task.samples(), &scores);
  } else if (kind == "lora_drop") {
    adapters::ScoreLoraDrop(task.method, measured.first, measured.second, task.num_tokens(),
                            task.grid.shard_samples, &scores);
  } else if (IsAblation(kind)) {
    adapters::ScoreAblation(task.method, measured.ablation, task.samples(), &scores);
  }
  return scores;
}

}  // namespace graft::trainer
