// Records what this rank does in a few steps and writes one file for all ranks (chrome_trace.h):
// `log.trace` of the recipe, docs/measuring.md. Compute comes from the executor's timeline,
// transfers and collectives from the flight recorder, the rest from Scope. A trainer without a
// trace has none of these objects, so a step pays a null check.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "comm/flight_recorder.h"
#include "comm/world.h"
#include "sharding/executor.h"
#include "trainer/chrome_trace.h"

namespace graft::trainer {

class StepTrace {
 public:
  // Of `steps` steps, but not the first one that this process takes: that one packs weights and
  // faults memory in. `world` must outlive the trace.
  StepTrace(comm::World& world, std::string label, int64_t steps);

  // Around a part of a step; a null trace records nothing. `name` and `category` are literals.
  class Scope {
   public:
    Scope(StepTrace* trace, const char* name, const char* category);
    ~Scope();
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    StepTrace* const trace_;
    const char *const name_, *const category_;
    int64_t begin_ns_ = 0;
  };

  // Around all of a step. Rank-local, the main thread.
  void BeginStep(int64_t step);
  void EndStep(const sharding::StepResult& result);

  // Every rank says the same.
  bool full() const { return recorded_ == wanted_; }
  bool empty() const { return recorded_ == 0; }
  // Rank 0 writes `folder`/steps-FIRST-LAST.json. All ranks must call, once. Kind io, on rank 0
  // alone. Throws kind peer.
  absl::Status Write(const std::string& folder);

 private:
  void AddOps(const sharding::StepResult& result);
  void AddCommunication(const comm::FlightEntry& entry,
                        const std::vector<comm::FlightGroup>& groups);
  void AddBeside(const comm::FlightEntry& entry, const char* name, const char* waiting,
                 std::vector<std::pair<const char*, int64_t>> arguments);
  void SendEvents();

  comm::World& world_;
  const int64_t wanted_;
  bool warm_ = false;
  bool recording_ = false;
  int64_t recorded_ = 0;
  int64_t first_step_ = 0, last_step_ = 0;
  int64_t begin_ns_ = 0;
  RankTrace spans_;
};

}  // namespace graft::trainer
