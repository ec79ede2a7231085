#include "sharding/schedule.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace graft::sharding {
namespace {

bool HasBackward(const ScheduleShape& shape, int stage, int chunk) {
  return shape.backward[static_cast<size_t>(chunk * shape.stages + stage)];
}

bool AnyBackward(const ScheduleShape& shape) {
  return std::any_of(shape.backward.begin(), shape.backward.end(), [](bool b) { return b; });
}

// All (micro-batch, chunk) pairs in the order of the interleaved schedule: groups of `stages`
// micro-batches walk through all chunks. With one chunk this is the order of the micro-batches.
std::vector<Op> PairsInOrder(const ScheduleShape& shape, Pass pass) {
  std::vector<Op> ops;
  for (int group = 0; group < shape.micro_batches; group += shape.stages) {
    const int end = std::min(group + shape.stages, shape.micro_batches);
    for (int i = 0; i < shape.chunks; ++i) {
      const int chunk = pass == Pass::kForward ? i : shape.chunks - 1 - i;
      for (int micro_batch = group; micro_batch < end; ++micro_batch) {
        ops.push_back({pass, micro_batch, chunk});
      }
    }
  }
  return ops;
}

// Forward passes that a stage runs before its first backward pass, less the one of the steady pair.
int WarmUp(const ScheduleShape& shape, int stage) {
  const int total = shape.micro_batches * shape.chunks;
  const int behind = shape.stages - 1 - stage;
  if (shape.kind == ScheduleKind::kGPipe) return total;
  if (shape.chunks == 1) return std::min(behind, total);
  return std::min(2 * behind + (shape.chunks - 1) * shape.stages, total);
}

std::vector<Op> StageOps(const ScheduleShape& shape, int stage) {
  const std::vector<Op> forward = PairsInOrder(shape, Pass::kForward);
  const std::vector<Op> backward = PairsInOrder(shape, Pass::kBackward);
  const size_t warm_up = static_cast<size_t>(WarmUp(shape, stage));
  std::vector<Op> ops(forward.begin(), forward.begin() + static_cast<std::ptrdiff_t>(warm_up));
  auto add_backward = [&](size_t i) {
    if (HasBackward(shape, stage, backward[i].chunk)) ops.push_back(backward[i]);
  };
  for (size_t i = warm_up; i < forward.size(); ++i) {
    ops.push_back(forward[i]);
    add_backward(i - warm_up);
  }
  for (size_t i = forward.size() - warm_up; i < backward.size(); ++i) add_backward(i);
  return ops;
}

// One (virtual stage, micro-batch, pass): when its result was there, when its receiver took it.
struct Message {
  bool sent = false, taken = false;
  double sent_at = 0, taken_at = 0;
};

class Simulator {
 public:
  explicit Simulator(const SimulationInput& input)
      : in_(input),
        parts_(input.stages * input.chunks),
        next_(Index(input.stages), 0),
        free_at_(Index(input.stages), 0),
        flying_(Index(input.stages), 0) {
    result_.in_flight.resize(Index(in_.stages), 0);
    result_.timeline.resize(Index(in_.stages));
    int micro_batches = 0;
    for (const auto& ops : in_.schedule) {
      for (const Op& op : ops) micro_batches = std::max(micro_batches, op.micro_batch + 1);
    }
    for (auto& messages : done_) {
      messages.assign(Index(parts_), std::vector<Message>(Index(micro_batches)));
    }
    for (auto& links : order_) links.resize(Index(parts_));
  }

  absl::StatusOr<Simulation> Run() {
    for (bool progress = true; progress;) {
      progress = false;
      for (int stage = 0; stage < in_.stages; ++stage) {
        while (RunNext(stage)) progress = true;
      }
    }
    double busy = 0;
    for (int stage = 0; stage < in_.stages; ++stage) {
      const auto& ops = in_.schedule[Index(stage)];
      if (next_[Index(stage)] < ops.size()) return Stuck(stage, ops[next_[Index(stage)]]);
      for (const SimulatedOp& op : result_.timeline[Index(stage)]) busy += op.end - op.begin;
      result_.step_seconds = std::max(result_.step_seconds, free_at_[Index(stage)]);
    }
    if (result_.step_seconds > 0) {
      result_.bubble_fraction = 1.0 - busy / (in_.stages * result_.step_seconds);
    }
    return result_;
  }

 private:
  static size_t Index(int i) { return static_cast<size_t>(i); }
  Message& Done(Pass pass, int part, int micro_batch) {
    return done_[pass == Pass::kForward ? 0 : 1][Index(part)][Index(micro_batch)];
  }
  // Messages of a link in the order of their sending.
  std::vector<Message*>& Sent(Pass pass, int part) {
    return order_[pass == Pass::kForward ? 0 : 1][Index(part)];
  }
  bool OtherStage(int part, int peer) const { return part % in_.stages != peer % in_.stages; }
  // The part whose result an operation needs, -1 = none.
  int Source(Pass pass, int part) const {
    if (pass == Pass::kForward) return part - 1;
    return part + 1 < parts_ ? part + 1 : -1;
  }
  // The part that takes an operation's result, -1 = none.
  int Target(Pass pass, int part) const {
    if (pass == Pass::kForward) return part + 1 < parts_ ? part + 1 : -1;
    return part > 0 && in_.backward[Index(part - 1)] ? part - 1 : -1;
  }

  bool RunNext(int stage) {
    const auto& ops = in_.schedule[Index(stage)];
    size_t& next = next_[Index(stage)];
    if (next >= ops.size()) return false;
    const Op op = ops[next];
    const int part = op.chunk * in_.stages + stage;
    double begin = free_at_[Index(stage)];
    if (op.pass == Pass::kBackward && !Done(Pass::kForward, part, op.micro_batch).sent)
      return false;
    const int source = Source(op.pass, part);
    if (source >= 0) {
      const Message& input = Done(op.pass, source, op.micro_batch);
      if (!input.sent) return false;
      begin =
          std::max(begin, input.sent_at + (OtherStage(part, source) ? in_.transfer_seconds : 0));
    }
    // The sender of message n waits until message n - buffers has been taken.
    const int target = Target(op.pass, part);
    double accepted = 0;
    if (target >= 0 && OtherStage(part, target) && in_.buffers > 0) {
      const auto& sent = Sent(op.pass, part);
      if (sent.size() >= Index(in_.buffers)) {
        const Message* oldest = sent[sent.size() - Index(in_.buffers)];
        if (!oldest->taken) return false;
        accepted = oldest->taken_at;
      }
    }
    Finish(stage, part, op, begin, accepted);
    if (source >= 0) Take(Done(op.pass, source, op.micro_batch), begin);
    ++next;
    return true;
  }

  static void Take(Message& message, double at) {
    message.taken = true;
    message.taken_at = at;
  }

  void Finish(int stage, int part, const Op& op, double begin, double accepted) {
    const bool forward = op.pass == Pass::kForward;
    const double end = begin + (forward ? in_.forward_seconds : in_.backward_seconds)[Index(part)];
    Message& mine = Done(op.pass, part, op.micro_batch);
    mine.sent = true;
    mine.sent_at = std::max(end, accepted);
    Sent(op.pass, part).push_back(&mine);
    free_at_[Index(stage)] = mine.sent_at;
    result_.timeline[Index(stage)].push_back({op, begin, end});
    if (!in_.backward[Index(part)]) return;
    int& flying = flying_[Index(stage)];
    flying += forward ? 1 : -1;
    result_.in_flight[Index(stage)] = std::max(result_.in_flight[Index(stage)], flying);
  }

  absl::Status Stuck(int stage, const Op& op) const {
    return BugError(absl::StrCat("pipeline schedule: stage ", stage, " waits for ever before ",
                                 op.pass == Pass::kForward ? "forward" : "backward",
                                 " of micro-batch ", op.micro_batch, ", chunk ", op.chunk));
  }

  const SimulationInput& in_;
  int parts_;
  std::vector<size_t> next_;
  std::vector<double> free_at_;
  std::vector<int> flying_;
  std::vector<std::vector<Message>> done_[2];
  std::vector<std::vector<Message*>> order_[2];
  Simulation result_;
};

}  // namespace

const char* ScheduleName(ScheduleKind kind) {
  switch (kind) {
    case ScheduleKind::kGPipe:
      return "gpipe";
    case ScheduleKind::k1F1B:
      return "1f1b";
    case ScheduleKind::kInterleaved:
      return "interleaved";
  }
  return "";
}

absl::StatusOr<ScheduleKind> ParseSchedule(const std::string& name) {
  for (ScheduleKind kind :
       {ScheduleKind::kGPipe, ScheduleKind::k1F1B, ScheduleKind::kInterleaved}) {
    if (name == ScheduleName(kind)) return kind;
  }
  return RecipeError(
      absl::StrCat("parallel.schedule: found `", name, "`; allowed are 1f1b, gpipe, interleaved"));
}

absl::StatusOr<std::vector<std::vector<Op>>> BuildSchedule(const ScheduleShape& shape) {
  GRAFT_CHECK(shape.backward.size() == static_cast<size_t>(shape.stages * shape.chunks),
              absl::StrCat("backward facts for ", shape.backward.size(), " parts"));
  if (shape.chunks > 1 && shape.kind != ScheduleKind::kInterleaved) {
    return RecipeError(absl::StrCat("parallel.chunks: found ", shape.chunks, " with schedule ",
                                    ScheduleName(shape.kind), "; only interleaved has chunks"));
  }
  if (shape.chunks > 1 && AnyBackward(shape) && shape.micro_batches % shape.stages != 0) {
    return RecipeError(absl::StrCat(
        "parallel.schedule: interleaved needs a number of micro-batches per rank and step "
        "(optim.global_batch / parallel.data / optim.micro_batch) that parallel.pipeline = ",
        shape.stages, " divides; found ", shape.micro_batches));
  }
  std::vector<std::vector<Op>> schedule;
  for (int stage = 0; stage < shape.stages; ++stage) schedule.push_back(StageOps(shape, stage));
  return schedule;
}

absl::StatusOr<Simulation> Simulate(const SimulationInput& input) { return Simulator(input).Run(); }

}  // namespace graft::sharding
