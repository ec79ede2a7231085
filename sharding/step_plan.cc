#include "sharding/step_plan.h"

#include <algorithm>
#include <set>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/status.h"

namespace graft::sharding {
namespace {

// A hidden state or gradient on its way: (pass, virtual stage that takes it, micro-batch).
using Flow = std::tuple<Pass, int, int>;

const char* PassName(Pass pass) { return pass == Pass::kForward ? "forward" : "backward"; }

// Does one stage's operations and notes what they take in and give away.
class StageText {
 public:
  StageText(const Plan& plan, int stage) : plan_(plan), stage_(stage) {}

  void Add(const Op& op) {
    const int part = plan_.VirtualStage(stage_, op.chunk);
    const StageChunk& facts = plan_.parts[static_cast<size_t>(part)];
    const bool forward = op.pass == Pass::kForward;
    absl::StrAppend(&text_, "stage ", stage_, ": ", PassName(op.pass), " ", op.micro_batch, ".",
                    op.chunk);
    if (forward ? !facts.embed : !facts.head) {
      Move("receive from", forward ? part - 1 : part + 1, {op.pass, part, op.micro_batch},
           &received_);
    }
    if (forward ? !facts.head : facts.input_gradient) {
      const int next = forward ? part + 1 : part - 1;
      Move("send to", next, {op.pass, next, op.micro_batch}, &sent_);
    }
    absl::StrAppend(&text_, "\n");
  }

  const std::string& text() const { return text_; }
  const std::set<Flow>& sent() const { return sent_; }
  const std::set<Flow>& received() const { return received_; }

 private:
  void Move(const char* verb, int other_part, const Flow& flow, std::set<Flow>* flows) {
    absl::StrAppend(&text_, ", ", verb, " stage ",
                    plan_.parts[static_cast<size_t>(other_part)].stage);
    flows->insert(flow);
  }

  const Plan& plan_;
  const int stage_;
  std::string text_;
  std::set<Flow> sent_, received_;
};

// Runs the lists with every duration equal: finds one that waits for ever.
absl::Status CheckRuns(const Plan& plan, const std::vector<bool>& backward,
                       const std::vector<std::vector<Op>>& schedule) {
  const std::vector<double> seconds(plan.parts.size(), 1.0);
  return Simulate({.schedule = schedule,
                   .stages = plan.stages,
                   .chunks = plan.chunks,
                   .backward = backward,
                   .forward_seconds = seconds,
                   .backward_seconds = seconds})
      .status();
}

}  // namespace

absl::StatusOr<std::string> CompileStep(const Plan& plan, const StepShape& shape) {
  ScheduleShape schedule_shape{shape.schedule, plan.stages, plan.chunks, shape.micro_batches, {}};
  for (const StageChunk& part : plan.parts) schedule_shape.backward.push_back(part.backward);
  GRAFT_ASSIGN_OR_RETURN(const auto schedule, BuildSchedule(schedule_shape));
  GRAFT_RETURN_IF_ERROR(CheckRuns(plan, schedule_shape.backward, schedule));

  std::string text =
      absl::StrCat(plan.Canonical(), "schedule ", ScheduleName(shape.schedule), ", data ",
                   shape.data_ranks, ", micro-batches ", shape.micro_batches, "\n");
  std::set<Flow> sent, received;
  for (int stage = 0; stage < plan.stages; ++stage) {
    StageText ops(plan, stage);
    for (const Op& op : schedule[static_cast<size_t>(stage)]) ops.Add(op);
    absl::StrAppend(&text, ops.text());
    sent.insert(ops.sent().begin(), ops.sent().end());
    received.insert(ops.received().begin(), ops.received().end());
  }
  if (sent != received)
    return BugError(absl::StrCat("step plan: ", sent.size(), " transfers are sent, ",
                                 received.size(), " are received"));
  for (int stage = 0; stage < plan.stages; ++stage) {
    int64_t floats = 0;
    for (const StageChunk& part : plan.parts)
      floats += part.stage == stage ? part.trainable_parameters : 0;
    absl::StrAppend(&text, "stage ", stage, ": sum of ", floats, " gradients over ",
                    shape.data_ranks, " ranks\n");
    if (shape.shard_weights) {
      absl::StrAppend(&text, "stage ", stage, ": each layer gathered over ", shape.data_ranks,
                      " ranks before its use\n");
    }
  }
  absl::StrAppend(&text, "all ranks: control vector\n");
  return text;
}

std::string FirstDifference(const std::string& mine, const std::string& other) {
  const std::vector<std::string> a = absl::StrSplit(mine, '\n'), b = absl::StrSplit(other, '\n');
  for (size_t i = 0; i < std::max(a.size(), b.size()); ++i) {
    const std::string left = i < a.size() ? a[i] : "", right = i < b.size() ? b[i] : "";
    if (left != right)
      return absl::StrCat("line ", i + 1, ": `", left, "`, the other has `", right, "`");
  }
  return "";
}

}  // namespace graft::sharding
