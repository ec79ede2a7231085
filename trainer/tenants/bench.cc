#include "trainer/tenants/bench.h"

#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <utility>

#include <ATen/ATen.h>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/logging.h"
#include "base/median.h"
#include "base/philox.h"
#include "base/status.h"
#include "base/version.h"
#include "sharding/adapter_folder.h"
#include "trainer/device.h"
#include "trainer/memory.h"
#include "trainer/tenants/engine.h"
#include "trainer/tenants/merged_weights.h"
#include "trainer/tenants/tenant_table.h"
#include "trainer/tenants/variants.h"

namespace graft::trainer {
namespace {

using Json = nlohmann::ordered_json;

double Quantile(std::vector<double> values, double q) {
  std::sort(values.begin(), values.end());
  const auto last = static_cast<double>(values.size() - 1);
  return values[static_cast<size_t>(q * last + 0.5)];
}

// One run of a variant in a cell.
struct RunResult {
  std::vector<double> first_tokens;  // seconds from submission, of each request
  std::vector<double> steps;         // seconds of each decoding step of the whole batch
  double prompt_seconds = 0, seconds = 0;
  int64_t peak_bytes = 0;
  int64_t replays = 0;  // steps that were CUDA graphs; then `steps` are those
  std::vector<std::vector<int64_t>> answers;
  double tpot() const { return Median(steps); }
  double ttft() const { return Median(first_tokens); }
};

// A variant, what it runs on and its tenants.
struct Contestant {
  Variant variant;
  models::Backbone* backbone = nullptr;
  std::shared_ptr<TenantTable> tenants;  // of a variant that differs in the kernel alone the same
  std::map<bool, std::vector<RunResult>> runs;  // of the cell in work, with CUDA graphs or without
  int64_t bytes_per_tenant = 0, stored_per_tenant = 0, bytes_per_request = 0, virtual_rows = 0;
  bool has_tenants() const { return variant.method != "none"; }
};

std::string TenantName(int64_t number) { return absl::StrCat("tenant-", number); }

// Of row `row` in every run of the cell, whatever the variant.
std::vector<int64_t> PromptOf(const TenantCell& cell, int64_t row, int64_t vocab_size,
                              uint64_t seed) {
  const uint64_t key = PhiloxKey(seed, RandomPurpose::kSampling, static_cast<uint64_t>(cell.prompt),
                                 static_cast<uint64_t>(row), 0);
  std::vector<int64_t> tokens;
  for (int64_t i = 0; i < cell.prompt; ++i) {
    const PhiloxBlock draw = Philox(key, {static_cast<uint32_t>(i), 0, 0, 0});
    tokens.push_back(
        static_cast<int64_t>(PhiloxUniform(draw[0]) * static_cast<double>(vocab_size)));
  }
  return tokens;
}

class TenantBench {
 public:
  TenantBench(const Recipe& recipe, LoadedModel& model, std::string folder)
      : recipe_(recipe), model_(model), folder_(std::move(folder)) {
    for (const std::string& graphs : recipe.tenants.cuda_graphs)
      graphs_.insert(graphs == "true" && on_gpu());
  }

  absl::Status SetUp(const std::vector<TenantCell>& cells) {
    for (const TenantCell& cell : cells) num_tenants_ = std::max(num_tenants_, cell.num_tenants());
    GRAFT_ASSIGN_OR_RETURN(auto variants, MakeVariants(recipe_, model_.config(), folder_));
    for (Variant& variant : variants) {
      contestants_.emplace_back();
      contestants_.back().variant = std::move(variant);
      contestants_.back().backbone = &model_.stage().backbone(0);
      GRAFT_RETURN_IF_ERROR(AddTenants(&contestants_.back()));
    }
    return recipe_.tenants.merged ? AddMerged() : absl::OkStatus();
  }

  absl::StatusOr<Json> Measure(const TenantCell& cell) {
    LOG(INFO) << "batch " << cell.batch << ", " << cell.mix << ", prompt " << cell.prompt << ", "
              << cell.new_tokens << " new tokens";
    for (Contestant& contestant : contestants_) {
      contestant.runs.clear();
      TenantCell warm_up = cell;
      warm_up.new_tokens = 2;
      GRAFT_RETURN_IF_ERROR(RunOnce(warm_up, contestant, /*graphs=*/false).status());
    }
    const size_t count = contestants_.size();
    for (int64_t repeat = 0; repeat < recipe_.tenants.repeats; ++repeat) {
      for (size_t i = 0; i < count; ++i) {
        // Each repeat begins with another one.
        Contestant& contestant = contestants_[(i + static_cast<size_t>(repeat)) % count];
        for (const bool graphs : graphs_) {
          GRAFT_ASSIGN_OR_RETURN(RunResult run, RunOnce(cell, contestant, graphs));
          contestant.runs[graphs].push_back(std::move(run));
        }
      }
    }
    return Describe(cell);
  }

  Json DescribeVariants() const {
    Json list = Json::array();
    for (const Contestant& contestant : contestants_) {
      const Variant& variant = contestant.variant;
      Json fields = Json::object();
      for (const auto& [name, value] : variant.recipe.method_fields) fields[name] = value;
      list.push_back({{"name", variant.name},
                      {"method", variant.method},
                      {"size", variant.size},
                      {"kernel", variant.kernel == TenantKernel::kLoop ? "loop" : "grouped"},
                      {"fields", contestant.has_tenants() ? fields : Json::object()},
                      {"trainable_parameters", variant.parameters},
                      {"bytes_per_tenant", contestant.bytes_per_tenant},
                      {"stored_bytes_per_tenant", contestant.stored_per_tenant},
                      {"virtual_rows", contestant.virtual_rows}});
    }
    return list;
  }

 private:
  static bool SameTenants(const Contestant& a, const Contestant& b) {
    return a.has_tenants() && a.backbone == b.backbone && a.variant.method == b.variant.method &&
           a.variant.recipe.method_fields == b.variant.recipe.method_fields &&
           a.variant.recipe.adapter.init_from == b.variant.recipe.adapter.init_from;
  }

  absl::Status AddTenants(Contestant* contestant) {
    models::Backbone& backbone = *contestant->backbone;
    for (const Contestant& other : contestants_) {
      if (&other == contestant || !SameTenants(other, *contestant)) continue;
      contestant->tenants = other.tenants;
      contestant->stored_per_tenant = other.stored_per_tenant;
      contestant->bytes_per_tenant = other.bytes_per_tenant;
      contestant->bytes_per_request = other.bytes_per_request;
      contestant->virtual_rows = other.virtual_rows;
      return absl::OkStatus();
    }
    contestant->tenants = std::make_shared<TenantTable>(
        backbone, TenantTable::Options{.dtype = model_.dtype(),
                                       .memory_budget = recipe_.tenants.memory_budget});
    if (!contestant->has_tenants()) return absl::OkStatus();
    for (int64_t number = 0; number < num_tenants_; ++number) {
      const Recipe& recipe = contestant->variant.recipe;
      GRAFT_ASSIGN_OR_RETURN(StoredAdapter adapter, recipe.adapter.init_from.empty()
                                                        ? RandomTenant(recipe, backbone, number)
                                                        : ReadTenant(recipe, backbone.config()));
      contestant->stored_per_tenant = adapter.bytes();
      if (recipe_.tenants.keep_adapters && contestant->variant.name == "lora")
        GRAFT_RETURN_IF_ERROR(Keep(adapter, number));
      GRAFT_RETURN_IF_ERROR(contestant->tenants->Add(TenantName(number), std::move(adapter)));
    }
    GRAFT_ASSIGN_OR_RETURN(const auto ready, contestant->tenants->Acquire(TenantName(0)));
    contestant->bytes_per_tenant = ready->bytes();
    contestant->bytes_per_request = ready->bytes_per_request();
    contestant->virtual_rows = ready->method().virtual_rows();
    return absl::OkStatus();
  }

  absl::Status Keep(const StoredAdapter& adapter, int64_t number) const {
    const adapters::Method& method = *adapter.choice.method;
    const adapters::PeftContext context = {.base_model_name_or_path = recipe_.model.path.empty()
                                                                          ? recipe_.model.shape
                                                                          : recipe_.model.path,
                                           .task_type = "CAUSAL_LM"};
    return sharding::WriteAdapterFolder(
        JoinPath(folder_, absl::StrCat("adapters/", TenantName(number))),
        method.PeftConfig(adapter.choice.matched, context),
        method.ToFolder(adapter.choice.matched, adapter.tensors));
  }

  // Tenant 0 of LoRA folded into weights of its own.
  absl::Status AddMerged() {
    for (const Contestant& lora : contestants_) {
      if (lora.variant.method != "lora") continue;
      GRAFT_ASSIGN_OR_RETURN(const StoredAdapter adapter,
                             RandomTenant(lora.variant.recipe, *lora.backbone, 0));
      GRAFT_ASSIGN_OR_RETURN(const auto weights,
                             OpenRecipeWeights(recipe_, model_.config(), model_.device()));
      MergedWeights merged(*weights, adapter);
      models::BackboneOptions options;
      options.dtype = model_.dtype();
      options.device = model_.device();
      GRAFT_ASSIGN_OR_RETURN(
          merged_,
          models::BuildBackbone(
              model_.config(),
              {.first_layer = 0, .num_layers = static_cast<int>(model_.config().num_layers)},
              merged, options));
      contestants_.emplace_back();
      contestants_.back().variant = contestants_.front().variant;
      contestants_.back().variant.name = "merged";
      contestants_.back().backbone = merged_.get();
      return AddTenants(&contestants_.back());
    }
    return absl::OkStatus();
  }

  bool on_gpu() const { return model_.device().is_cuda(); }

  absl::StatusOr<RunResult> RunOnce(const TenantCell& cell, Contestant& contestant, bool graphs) {
    on_gpu() ? ResetPeakTensorBytes(model_.device()) : ResetPeakResidentBytes();
    const Stopwatch clock;
    Engine engine(*contestant.backbone, *contestant.tenants,
                  {.width = cell.batch,
                   .max_rows = contestant.virtual_rows + cell.prompt + cell.new_tokens,
                   .kernel = contestant.variant.kernel,
                   .graphs = graphs});
    for (int64_t row = 0; row < cell.batch; ++row) {
      const int64_t tenant = contestant.has_tenants() ? cell.TenantOf(row) : -1;
      GRAFT_RETURN_IF_ERROR(
          engine.Submit({.id = row,
                         .tenant = tenant < 0 ? "" : TenantName(tenant),
                         .prompt = PromptOf(cell, row, model_.config().vocab_size,
                                            static_cast<uint64_t>(recipe_.run.seed)),
                         .max_new_tokens = cell.new_tokens}));
    }
    RunResult result;
    std::vector<double> replays;
    while (!engine.idle()) {
      const Engine::StepCost cost = engine.Step();
      result.prompt_seconds += cost.prompt_seconds;
      if (cost.rows != cell.batch) continue;
      result.steps.push_back(cost.decode_seconds);
      if (cost.graph == GraphUse::kReplayed) replays.push_back(cost.decode_seconds);
    }
    result.seconds = clock.Seconds();
    result.peak_bytes = on_gpu() ? PeakTensorBytes(model_.device()) : PeakResidentBytes();
    // The first steps of their kind, which a server has once, are not what is asked for.
    result.replays = static_cast<int64_t>(replays.size());
    if (!replays.empty()) result.steps = std::move(replays);
    result.answers.resize(static_cast<size_t>(cell.batch));
    for (TenantAnswer& answer : engine.TakeAnswers()) {
      GRAFT_RETURN_IF_ERROR(answer.status);
      result.first_tokens.push_back(answer.first_token_seconds);
      result.answers[static_cast<size_t>(answer.id)] = std::move(answer.tokens);
    }
    if (result.steps.empty()) {
      return RecipeError(absl::StrCat("tenants.memory_budget: found ",
                                      recipe_.tenants.memory_budget,
                                      ", too small for the tenants of a batch at once (",
                                      contestant.bytes_per_tenant, " bytes each)"));
    }
    return result;
  }

  // Of both variants' runs, turn by turn.
  static double Ratio(const std::vector<RunResult>& a, const std::vector<RunResult>& b,
                      const std::function<double(const RunResult&)>& value) {
    std::vector<double> ratios;
    for (size_t i = 0; i < a.size(); ++i) ratios.push_back(value(a[i]) / value(b[i]));
    return Median(ratios);
  }

  const Contestant* Merged() const { return merged_ == nullptr ? nullptr : &contestants_.back(); }

  Json DescribeRuns(const TenantCell& cell, const Contestant& contestant, bool graphs) const {
    const std::vector<RunResult>& runs = contestant.runs.at(graphs);
    const std::vector<RunResult>& bare = contestants_.front().runs.at(graphs);
    std::vector<double> first_tokens, steps, prompts, seconds, peaks;
    int64_t replays = 0;
    for (const RunResult& run : runs) {
      replays += run.replays;
      first_tokens.insert(first_tokens.end(), run.first_tokens.begin(), run.first_tokens.end());
      steps.insert(steps.end(), run.steps.begin(), run.steps.end());
      prompts.push_back(run.prompt_seconds / static_cast<double>(cell.batch));
      seconds.push_back(run.seconds);
      peaks.push_back(static_cast<double>(run.peak_bytes));
    }
    const auto batch = static_cast<double>(cell.batch);
    const auto tpot = [](const RunResult& run) { return run.tpot(); };
    const auto prompt = [](const RunResult& run) { return run.prompt_seconds; };
    Json json = {
        {"variant", contestant.variant.name},
        {"cuda_graphs", graphs},
        {"replayed_steps", replays},
        {"ttft_seconds", {{"median", Median(first_tokens)}, {"p90", Quantile(first_tokens, 0.9)}}},
        {"prompt_seconds", Median(prompts)},
        {"tpot_seconds",
         {{"median", Median(steps)},
          {"p90", Quantile(steps, 0.9)},
          {"p99", Quantile(steps, 0.99)}}},
        {"decode_tokens_per_second", batch / Median(steps)},
        {"tokens_per_second", batch * static_cast<double>(cell.new_tokens) / Median(seconds)},
        {"tpot_over_bare", Ratio(runs, bare, tpot)},
        {"prompt_over_bare", Ratio(runs, bare, prompt)}};
    if (Merged() != nullptr)
      json["tpot_over_merged"] = Ratio(runs, Merged()->runs.at(graphs), tpot);
    json["peak_memory_bytes"] = static_cast<int64_t>(Quantile(peaks, 1.0));
    json["bytes_per_request"] = contestant.bytes_per_request + CacheBytes(cell, contestant);
    return json;
  }

  // Keys and values of one request at its end.
  int64_t CacheBytes(const TenantCell& cell, const Contestant& contestant) const {
    const models::ModelConfig& config = model_.config();
    const int64_t rows = contestant.virtual_rows + cell.prompt + cell.new_tokens - 1;
    return rows * 2 * config.kv_width() * config.num_layers *
           static_cast<int64_t>(c10::elementSize(model_.dtype()));
  }

  Json Describe(const TenantCell& cell) const {
    Json json = {{"batch", cell.batch},           {"mix", cell.mix},
                 {"tenants", cell.num_tenants()}, {"prompt", cell.prompt},
                 {"new_tokens", cell.new_tokens}, {"results", Json::array()}};
    for (const bool graphs : graphs_) {
      for (const Contestant& contestant : contestants_)
        json["results"].push_back(DescribeRuns(cell, contestant, graphs));
    }
    if (recipe_.tenants.keep_adapters) AddRequests(cell, &json);
    return json;
  }

  // What another program needs to do the same, and what it must then answer.
  void AddRequests(const TenantCell& cell, Json* json) const {
    const auto lora = std::find_if(contestants_.begin(), contestants_.end(),
                                   [](const auto& one) { return one.variant.name == "lora"; });
    for (int64_t row = 0; lora != contestants_.end() && row < cell.batch; ++row) {
      const int64_t tenant = cell.TenantOf(row);
      (*json)["requests"].push_back(
          {{"adapter", tenant < 0 ? Json() : Json(TenantName(tenant))},
           {"prompt", PromptOf(cell, row, model_.config().vocab_size,
                               static_cast<uint64_t>(recipe_.run.seed))},
           {"answer", lora->runs.begin()->second.front().answers[static_cast<size_t>(row)]}});
    }
  }

  const Recipe& recipe_;
  LoadedModel& model_;
  std::string folder_;
  std::set<bool> graphs_;  // without, with
  int64_t num_tenants_ = 0;
  std::unique_ptr<models::Backbone> merged_;
  std::vector<Contestant> contestants_;  // the bare one first, the merged one last
};

}  // namespace

absl::StatusOr<Json> RunTenantBench(const Recipe& recipe, LoadedModel& model,
                                    const std::string& folder) {
  GRAFT_ASSIGN_OR_RETURN(const auto cells, TenantCells(recipe, model.config()));
  TenantBench bench(recipe, model, folder);
  GRAFT_RETURN_IF_ERROR(bench.SetUp(cells));
  Json results = {{"format", "graft-tenants"},
                  {"version", 1},
                  {"graft", Version()},
                  {"model", recipe.model.path.empty() ? recipe.model.shape : recipe.model.path},
                  {"dtype", recipe.model.dtype},
                  {"device", model.device().is_cuda() ? "cuda" : "cpu"},
                  {"threads", model.threads()},
                  {"rank", recipe.tenants.rank},
                  {"repeats", recipe.tenants.repeats},
                  {"seed", recipe.run.seed},
                  {"variants", bench.DescribeVariants()},
                  {"cells", Json::array()}};
  for (const TenantCell& cell : cells) {
    GRAFT_ASSIGN_OR_RETURN(Json measured, bench.Measure(cell));
    results["cells"].push_back(std::move(measured));
  }
  return results;
}

}  // namespace graft::trainer
