#include "trainer/scoring/scorer.h"

#include <algorithm>
#include <memory>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "adapters/selection.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/logging.h"
#include "base/status.h"
#include "comm/agree.h"
#include "comm/reducer.h"
#include "models/weights/weight_source.h"
#include "sharding/adapter_folder.h"
#include "trainer/coordinator/item_run.h"
#include "trainer/coordinator/journal.h"
#include "trainer/fingerprint.h"
#include "trainer/open_data.h"
#include "trainer/scoring/adapter_scores.h"
#include "trainer/scoring/score_plan.h"
#include "trainer/scoring/scoring_runner.h"
#include "trainer/scoring/sensitivity_file.h"

namespace graft::trainer {
namespace {

constexpr char kImportanceFile[] = "importance.json";
constexpr char kSettingFile[] = "setting.json";

adapters::SelectOptions SelectOptionsOf(const Recipe& recipe) {
  const SelectKeys& keys = recipe.score.select;
  return {.rule = keys.rule,
          .k = keys.k,
          .budget = keys.budget,
          .rescale = keys.rescale,
          .round = keys.round,
          .rank = keys.rank,
          .alpha = keys.alpha};
}

// Selects and writes setting.json. Rank 0.
absl::Status WriteSetting(const Recipe& recipe, const adapters::Importance& importance,
                          const std::string& importance_text) {
  adapters::LatencyTable latency;
  if (recipe.score.select.rule == "latency_budget") {
    GRAFT_ASSIGN_OR_RETURN(latency, adapters::ReadLatencyTable(recipe.score.select.latency_file));
  }
  GRAFT_ASSIGN_OR_RETURN(
      const adapters::Selection selection,
      adapters::Select(importance, SelectOptionsOf(recipe), latency, Sha256Hex(importance_text)));
  for (const std::string& warning : selection.warnings) LOG(WARNING) << warning;
  const std::string path = JoinPath(recipe.score.output, kSettingFile);
  GRAFT_RETURN_IF_ERROR(AtomicWriteFile(path, adapters::SettingText(selection)));
  int64_t kept = 0;
  for (const adapters::KeptLayer& layer : selection.setting.keep)
    kept += static_cast<int64_t>(layer.roles.size());
  LOG(INFO) << path << ": keeps " << kept << " of " << importance.modules.size()
            << " modules, rank " << selection.setting.keep[0].rank;
  return absl::OkStatus();
}

absl::Status SelectAgain(const Recipe& recipe) {
  GRAFT_ASSIGN_OR_RETURN(const adapters::Importance importance,
                         adapters::ReadImportance(recipe.score.from));
  GRAFT_ASSIGN_OR_RETURN(const std::string text,
                         ReadFile(recipe.score.from, int64_t{1} << 30, {.follow_links = true}));
  GRAFT_RETURN_IF_ERROR(MakeDirs(recipe.score.output));
  return WriteSetting(recipe, importance, text);
}

// The recipe as the scorer runs it: on its own data, adapter and threads.
Recipe Resolved(const Recipe& recipe) {
  Recipe resolved = recipe;
  ScoreSection& score = resolved.score;
  if (score.data.empty()) score.data = recipe.data.eval;
  if (score.adapter.empty()) score.adapter = recipe.adapter.init_from;
  resolved.adapter.init_from = score.adapter;
  resolved.data.packing = false;
  // Sums must not depend on how many ranks share the cores (methods.md 16.3).
  if (resolved.parallel.threads == 0) resolved.parallel.threads = 1;
  return resolved;
}

// What a selection would refuse after hours of scoring.
absl::Status CheckSelection(const ScoreSection& score) {
  const SelectKeys& select = score.select;
  if (score.method == "ab_rank" && select.rule != "top_k_per_layer") {
    return RecipeError(absl::StrCat("score.select.rule: found ", select.rule,
                                    " with score.method ab_rank, allowed: top_k_per_layer"));
  }
  const bool has_budget = select.rule == "parameter_budget" || select.rule == "latency_budget";
  if (has_budget && select.budget <= 0) {
    return RecipeError(absl::StrCat("score.select.budget: found 0, rule ", select.rule,
                                    " needs a number above 0"));
  }
  if (select.rule != "latency_budget") return absl::OkStatus();
  return adapters::ReadLatencyTable(select.latency_file).status();
}

absl::Status CheckRecipe(const Recipe& recipe) {
  GRAFT_RETURN_IF_ERROR(CheckSupported(recipe));
  GRAFT_RETURN_IF_ERROR(CheckWholeWeights(recipe, "score"));
  GRAFT_RETURN_IF_ERROR(RequireKeys(recipe, {"model"}, "score"));
  const std::string& method = recipe.adapter.method;
  if (method != "lora" && method != "fanlora") {
    return RecipeError(absl::StrCat("adapter.method: found \"", method,
                                    "\", `graft score` scores the modules of lora or fanlora"));
  }
  if (recipe.score.data.empty())
    return RecipeError("score.data: missing, and data.eval too; `graft score` measures on it");
  if (recipe.score.adapter.empty()) {
    return RecipeError(
        "score.adapter: missing, and adapter.init_from too; `graft score` scores its modules");
  }
  if (recipe.parallel.schedule == "interleaved") {
    return RecipeError("parallel.schedule: found interleaved, `graft score` allows 1f1b, gpipe");
  }
  return CheckSelection(recipe.score);
}

class Scorer {
 public:
  Scorer(const Recipe& recipe, comm::World& world) : recipe_(Resolved(recipe)), world_(world) {}

  absl::Status Run() {
    using Step = absl::Status (Scorer::*)();
    for (const Step step :
         {&Scorer::Open, &Scorer::LoadModel, &Scorer::MakeTask, &Scorer::CompareWithTraining}) {
      world_.heartbeat().Enter(comm::Phase::kSetup, -1);
      GRAFT_RETURN_IF_ERROR((this->*step)());
    }
    GRAFT_ASSIGN_OR_RETURN(const Measured measured, Measure());
    return Agree(world_.rank() == 0 ? Write(measured) : absl::OkStatus());
  }

 private:
  absl::Status Agree(const absl::Status& mine) const {
    return comm::AgreeOnStatus(world_.all(), mine);
  }

  absl::Status Open() {
    absl::Status status = CheckRecipe(recipe_);
    if (status.ok() && world_.rank() == 0) status = MakeDirs(recipe_.score.output);
    GRAFT_RETURN_IF_ERROR(Agree(status));
    GRAFT_ASSIGN_OR_RETURN(data_,
                           OpenData(recipe_, recipe_.score.data, "score.data", world_.all()));
    return absl::OkStatus();
  }

  absl::Status LoadModel() {
    GRAFT_ASSIGN_OR_RETURN(model_, LoadedModel::Load(recipe_, world_, WorkShapeOf(*data_, 0)));
    absl::Status status = CheckFitsModel(*data_, *model_, "score.data");
    if (status.ok()) status = CheckOutputs(*data_, *model_, "score.data");
    return Agree(status);
  }

  // The same on every rank: the facts that only rank 0 reads come from it.
  absl::Status MakeTask() {
    task_.method = recipe_.score.method;
    task_.num_layers = static_cast<int>(model_->config().num_layers);
    GRAFT_RETURN_IF_ERROR(Agree(ChooseModules()));
    const int64_t num_samples = LimitedSize(*data_, recipe_.score.max_samples);
    for (int64_t i = 0; i < num_samples; ++i) {
      task_.tokens.push_back(data_->total_tokens(i));
      task_.trained_tokens.push_back(data_->trained_tokens(i));
    }
    // What the numbers of a score depend on.
    const std::string dtype = recipe_.model.quantize == "none"
                                  ? recipe_.model.dtype
                                  : absl::StrCat(recipe_.model.dtype, " ", recipe_.model.quantize);
    task_.grid = {dtype, recipe_.parallel.threads, recipe_.score.shard_samples,
                  recipe_.score.layer_block, recipe_.score.micro_batch};
    facts_ = {.model_fingerprint = {},
              .adapter_fingerprint = {},
              .data_fingerprint = data_->fingerprint(),
              .score = absl::StrCat(task_.method, only_),
              .dtype = dtype,
              .threads = recipe_.parallel.threads};
    const std::vector<WatchedTensor> none;
    GRAFT_ASSIGN_OR_RETURN(
        facts_.model_fingerprint,
        ModelFingerprint(recipe_, model_->data_rank() == 0 ? model_->loaded_weights() : none,
                         world_.all()));
    absl::Status status;
    if (world_.rank() == 0) status = ReadAdapter();
    GRAFT_RETURN_IF_ERROR(Agree(status));
    facts_.adapter_fingerprint =
        comm::BroadcastString(world_.all(), facts_.adapter_fingerprint, /*root=*/0);
    if (adapters::TrainedTokens(task_.samples()) > 0) return absl::OkStatus();
    return InputError(absl::StrCat(recipe_.score.data, ": the first ", num_samples,
                                   " samples have no trained token to measure a loss on"));
  }

  // The adapter's linears by (layer, role), of score.only those that it names.
  absl::Status ChooseModules() {
    std::vector<models::SiteSpec>& modules = task_.modules;
    for (const models::SiteSpec& site : model_->matched()) {
      if (models::IsLinear(site.id.role)) modules.push_back(site);
    }
    std::sort(modules.begin(), modules.end(),
              [](const models::SiteSpec& a, const models::SiteSpec& b) { return a.id < b.id; });
    const std::string& only = recipe_.score.only;
    if (only == "none") return absl::OkStatus();
    GRAFT_ASSIGN_OR_RETURN(const adapters::Setting setting, adapters::ReadSetting(only));
    std::set<models::SiteId> wanted;
    for (const adapters::KeptLayer& layer : setting.keep) {
      for (const models::Role role : layer.roles) {
        wanted.insert({layer.layer, role});
        absl::StrAppend(&only_, " ", layer.layer, ".", models::RoleName(role));
      }
    }
    std::erase_if(modules, [&](const auto& site) { return wanted.erase(site.id) == 0; });
    if (wanted.empty()) return absl::OkStatus();
    return InputError(absl::StrCat(only, ": keep: layer ", wanted.begin()->layer, " ",
                                   models::RoleName(wanted.begin()->role),
                                   " is no module of the scored adapter"));
  }

  absl::Status ReadAdapter() {
    GRAFT_ASSIGN_OR_RETURN(adapter_, ReadScoredAdapter(recipe_.score.adapter, model_->method(),
                                                       model_->matched(), task_.modules));
    facts_.adapter_fingerprint = adapter_.fingerprint;
    const SelectKeys& select = recipe_.score.select;
    if (adapter_.reference || (select.rank > 0 && select.alpha > 0)) return absl::OkStatus();
    return RecipeError(
        "score.select.rank: found 0, but the scored modules differ in rank or alpha; give "
        "score.select.rank and score.select.alpha");
  }

  // Scores of the samples that the adapter was trained on say little about others.
  absl::Status CompareWithTraining() {
    if (world_.rank() != 0 || recipe_.data.train.empty()) return absl::OkStatus();
    const auto trained = Dataset::Open(recipe_.data.train, {.verify_hashes = false});
    if (trained.ok() && (*trained)->fingerprint() == data_->fingerprint()) {
      LOG(WARNING) << "score.data: " << recipe_.score.data
                   << " is data.train, on which the adapter was trained; held-out samples give "
                      "truer scores";
    }
    return absl::OkStatus();
  }

  absl::StatusOr<Measured> Measure() {
    const std::vector<WorkItem> items = ScoreItems(task_);
    if (items.empty()) return Measured();
    std::unique_ptr<models::WeightSource> weights;
    std::unique_ptr<ScoringRunner> runner;
    std::unique_ptr<Journal> journal;
    const std::string run_key = RunKey(facts_);
    const auto prepare = [&]() -> absl::Status {
      GRAFT_ASSIGN_OR_RETURN(weights,
                             OpenRecipeWeights(recipe_, model_->config(), model_->device()));
      GRAFT_ASSIGN_OR_RETURN(runner, ScoringRunner::Create(task_, *data_, *model_, *weights));
      if (world_.rank() != 0) return absl::OkStatus();
      GRAFT_ASSIGN_OR_RETURN(journal, Journal::Open(recipe_.score.output, run_key));
      return absl::OkStatus();
    };
    GRAFT_RETURN_IF_ERROR(Agree(prepare()));
    GRAFT_ASSIGN_OR_RETURN(const ItemRunReport report, RunWorkItems(world_, model_->grid(), run_key,
                                                                    items, journal.get(), *runner));
    ReportCost(*runner);
    absl::StatusOr<Measured> measured = Measured();
    if (world_.rank() == 0) measured = JoinResults(task_, items, report.results);
    GRAFT_RETURN_IF_ERROR(Agree(measured.status()));
    return measured;
  }

  // What prefix reuse saved, counted on this run.
  void ReportCost(const ScoringRunner& runner) {
    comm::ControlVector mine;
    mine.samples = static_cast<double>(runner.layer_forwards());
    const double forwards = comm::ReduceControl(world_.all(), mine).samples;
    const auto naive = static_cast<double>(NaiveLayerForwards(task_));
    if (world_.rank() != 0 || naive == 0) return;
    LOG(INFO) << absl::StrFormat(
        "layer forwards of this run: %.0f, %.3f of those of one pass per module", forwards,
        forwards / naive);
  }

  absl::Status Write(const Measured& measured) {
    GRAFT_ASSIGN_OR_RETURN(const std::vector<adapters::ModuleScore> modules, Scores(measured));
    adapters::Importance importance;
    importance.score = task_.method;
    importance.model_type = model_->config().model_type;
    importance.num_layers = task_.num_layers;
    importance.model_fingerprint = facts_.model_fingerprint;
    importance.adapter_fingerprint = facts_.adapter_fingerprint;
    importance.data_fingerprint = facts_.data_fingerprint;
    importance.num_samples = static_cast<int64_t>(task_.tokens.size());
    importance.num_tokens = task_.num_tokens();
    importance.num_trained_tokens = adapters::TrainedTokens(task_.samples());
    importance.base_loss = measured.base_loss;
    importance.bare_loss = measured.bare_loss;
    importance.grid = task_.grid;
    importance.reference = adapter_.reference;
    importance.modules = modules;
    const std::string text = adapters::ImportanceText(importance);
    if (recipe_.score.per_sample) GRAFT_RETURN_IF_ERROR(WritePerSample(measured));
    GRAFT_RETURN_IF_ERROR(AtomicWriteFile(JoinPath(recipe_.score.output, kImportanceFile), text));
    return WriteSetting(recipe_, importance, text);
  }

  absl::StatusOr<std::vector<adapters::ModuleScore>> Scores(const Measured& measured) const {
    std::vector<adapters::ModuleScore> scores =
        ScoresOf(task_, measured, static_cast<uint64_t>(recipe_.run.seed));
    if (task_.method == "magnitude") ScoreMagnitude(adapter_, &scores);
    if (task_.method == "sensitivity")
      GRAFT_RETURN_IF_ERROR(ScoreSensitivity(recipe_.score.adapter, &scores));
    return scores;
  }

  absl::Status WritePerSample(const Measured& measured) const {
    std::vector<int64_t> ids;
    for (size_t i = 0; i < task_.tokens.size(); ++i)
      ids.push_back(data_->at(static_cast<int64_t>(i)).sample_id);
    return WriteSampleValues(recipe_.score.output, task_, measured, ids);
  }

  const Recipe recipe_;
  comm::World& world_;
  std::shared_ptr<const Dataset> data_;
  std::unique_ptr<LoadedModel> model_;
  ScoreTask task_;
  std::string only_;  // the modules of score.only, for the run key
  RunFacts facts_;
  ScoredAdapter adapter_;  // rank 0
};

}  // namespace

absl::Status Score(const Recipe& recipe, comm::World& world) {
  if (!recipe.score.from.empty()) {
    return comm::AgreeOnStatus(world.all(),
                               world.rank() == 0 ? SelectAgain(recipe) : absl::OkStatus());
  }
  return Scorer(recipe, world).Run();
}

}  // namespace graft::trainer
