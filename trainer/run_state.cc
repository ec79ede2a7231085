#include "trainer/run_state.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "base/hash.h"
#include "base/recipe_yaml.h"
#include "base/status.h"
#include "base/text.h"

namespace graft::trainer {
namespace {

constexpr int64_t kMaxConsecutiveSkips = 5;
constexpr size_t kMaxRecentSkips = 10;
constexpr int64_t kRecentSteps = 1000;

const std::vector<std::string>& FixedKeys() {
  static const std::vector<std::string> keys = {
      "run.seed",           "task.type",       "model.dtype",     "model.quantize",
      "data.shuffle",       "data.packing",    "data.row_length", "data.max_samples",
      "optim.name",         "optim.lr",        "optim.betas",     "optim.eps",
      "optim.weight_decay", "optim.clip_norm", "optim.schedule",  "optim.warmup_steps",
      "optim.global_batch"};
  return keys;
}

// The part of a manifest that is read back, key by key.
class Texts {
 public:
  Texts(const TextMap& texts, const std::string& origin) : texts_(texts), origin_(origin) {}

  void Int(const std::string& key, int64_t* value) {
    const std::string text = Take(key);
    if (!ParseInt(text, value)) Fail(key, text, "an integer");
  }
  void Real(const std::string& key, double* value) {
    const std::string text = Take(key);
    if (!ParseReal(text, value)) Fail(key, text, "a number");
  }
  std::string Take(const std::string& key) {
    const auto found = texts_.find(key);
    if (found != texts_.end()) return found->second;
    Fail(key, "", "present");
    return "0";
  }
  const absl::Status& status() const { return status_; }

 private:
  void Fail(const std::string& key, const std::string& text, const std::string& allowed) {
    if (status_.ok())
      status_ = InputError(absl::StrCat(origin_, ": state.", key, ": found \"", Printable(text),
                                        "\", must be ", allowed));
  }
  const TextMap& texts_;
  const std::string origin_;
  absl::Status status_;
};

// A setting counts by what it says, not by where it lies: sha256 of the file, or the path as the
// recipe has it when the file is gone. `value`: canonical YAML.
std::string ContentOfSetting(const std::string& value) {
  std::string path;
  ReadFieldList({{"setting", value}}, "adapter", [&](FieldVisitor& visitor) {
    visitor.Text({"setting", "path"}, &path);
  }).IgnoreError();
  const absl::StatusOr<std::string> digest = Sha256File(path, {.follow_links = true});
  return digest.ok() ? *digest : value;
}

}  // namespace

void RunState::CountStep(bool was_skipped) {
  ++step;
  was_skipped ? ++skipped : ++updates;
  consecutive_skips = was_skipped ? consecutive_skips + 1 : 0;
  if (was_skipped) recent_skips.push_back(step);
  while (!recent_skips.empty() && recent_skips.front() <= step - kRecentSteps)
    recent_skips.pop_front();
}

bool RunState::TooManySkips() const {
  return consecutive_skips > kMaxConsecutiveSkips || recent_skips.size() > kMaxRecentSkips;
}

bool RunState::CountEvaluation(double loss) {
  const bool best = std::isfinite(loss) && (!best_loss.has_value() || loss < *best_loss);
  evaluations_since_best = best ? 0 : evaluations_since_best + 1;
  if (best) {
    best_loss = loss;
    best_step = step;
  }
  return best;
}

TextMap StateTexts(const RunState& state) {
  TextMap texts = {{"consecutive_skips", absl::StrCat(state.consecutive_skips)},
                   {"recent_skips", absl::StrJoin(state.recent_skips, " ")},
                   {"best_step", absl::StrCat(state.best_step)},
                   {"evaluations_since_best", absl::StrCat(state.evaluations_since_best)},
                   {"ended_early", state.ended_early ? "1" : "0"}};
  if (state.best_loss.has_value()) texts["best_loss"] = HexFloat(*state.best_loss);
  return texts;
}

absl::Status ReadStateTexts(const TextMap& texts, const std::string& origin, RunState* state) {
  Texts in(texts, origin);
  int64_t ended_early = 0;
  in.Int("consecutive_skips", &state->consecutive_skips);
  in.Int("best_step", &state->best_step);
  in.Int("evaluations_since_best", &state->evaluations_since_best);
  in.Int("ended_early", &ended_early);
  state->ended_early = ended_early != 0;
  state->recent_skips.clear();
  for (const std::string& text :
       std::vector<std::string>(absl::StrSplit(in.Take("recent_skips"), ' ', absl::SkipEmpty()))) {
    int64_t step = 0;
    if (!ParseInt(text, &step))
      return InputError(absl::StrCat(origin, ": state.recent_skips: found \"", Printable(text),
                                     "\", must be steps"));
    state->recent_skips.push_back(step);
  }
  state->best_loss.reset();
  if (texts.count("best_loss") != 0) {
    double loss = 0;
    in.Real("best_loss", &loss);
    state->best_loss = loss;
  }
  return in.status();
}

TextMap FixedTexts(const Recipe& recipe, const RunInputs& inputs) {
  TextMap fixed = {{"model.fingerprint", inputs.model},
                   {"data.fingerprint", inputs.data},
                   {"data.tokenizer_sha256", inputs.tokenizer}};
  // A constant rate does not depend on where the run ends; the others bend.
  if (recipe.optim.schedule != "constant")
    fixed["optim.total_steps"] = absl::StrCat(inputs.total_steps);
  for (const auto& [key, value] : ResolvedFields(recipe)) {
    if (key == "adapter.setting") fixed[key] = ContentOfSetting(value);
    const bool adapter =
        absl::StartsWith(key, "adapter.") && key != "adapter.init_from" && key != "adapter.setting";
    if (adapter || std::count(FixedKeys().begin(), FixedKeys().end(), key) > 0) fixed[key] = value;
  }
  return fixed;
}

TextMap LayoutTexts(const Recipe& recipe, int threads) {
  TextMap layout = {{"threads", absl::StrCat(threads)}};
  for (const auto& [key, value] : ResolvedFields(recipe)) {
    if (absl::StartsWith(key, "parallel.") || key == "optim.micro_batch") layout[key] = value;
  }
  return layout;
}

}  // namespace graft::trainer
