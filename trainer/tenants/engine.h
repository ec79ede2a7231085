// Answers requests of many tenants on one backbone: each row of a decoding step has its own adapter
// or none. A new request's prompt runs alone, through its adapter's own hooks, which make what the
// method keeps of a request; then its rows join those that are running, and leave at their end. So
// what a request gets does not depend on what runs beside it. One rank with the whole model, a
// decoder; one thread calls. Used by `bench tenants`.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <torch/types.h>

#include "absl/status/status.h"
#include "models/backbone.h"
#include "models/site.h"
#include "trainer/beam_search.h"
#include "trainer/decoding.h"
#include "trainer/stopwatch.h"
#include "trainer/tenants/device_pass.h"
#include "trainer/tenants/mixed_rows.h"
#include "trainer/tenants/tenant_table.h"
#include "trainer/token_choice.h"

namespace graft::trainer {

struct TenantRequest {
  int64_t id = 0;           // the caller's; draws of sampling depend on it
  std::string tenant = {};  // empty: the bare backbone
  std::vector<int64_t> prompt = {};
  std::vector<int64_t> encoder_ids =
      {};  // the prompt in the vocabulary of a separate prompt encoder
  int64_t max_new_tokens = 128;
  SamplingOptions sampling = {};  // of one sequence
  int64_t beams = 1;              // above 1: beam search, sampling is not looked at
};

struct TenantAnswer {
  int64_t id = 0;
  // Kind numeric: logits that are not finite; kind input: its tenant went before it began.
  absl::Status status = absl::OkStatus();
  std::vector<int64_t> tokens = {};  // the end token included when there is one
  double first_token_seconds = 0;    // from Submit
};

class Engine {
 public:
  struct Options {
    // Rows of a decoding step, at most. In float32 what a row gets is the same bit for bit whatever
    // runs beside it (models/layers/float_products.h); in bfloat16 to rounding.
    int64_t width = 16;
    // Of the cache of one sequence; 0 = the model's longest sequence. On a device the room for all
    // is taken at once.
    int64_t max_rows = 0;
    std::vector<int64_t> end_tokens = {};  // any of them ends a sequence
    TenantKernel kernel = TenantKernel::kGrouped;
    bool graphs = true;  // on a GPU: replay decoding steps as CUDA graphs
  };
  // What a step did; seconds of its prompts, and of its one pass over all running rows.
  struct StepCost {
    int64_t prompts = 0, rows = 0;
    double prompt_seconds = 0, decode_seconds = 0;
    GraphUse graph = GraphUse::kNone;  // of the pass
  };
  // Both must outlive the engine.
  Engine(models::Backbone& backbone, TenantTable& tenants, Options options);

  // Error kind input, naming the request: an unknown tenant, an empty prompt, a token that the
  // model has not, or more rows than the cache has; kind recipe: more beams than width or
  // vocabulary serve. Other requests go on.
  absl::Status Submit(TenantRequest request);
  bool idle() const { return waiting_.empty() && running_.empty(); }
  // Lets in what has room, in the order of submission, then makes one token of each running
  // request.
  StepCost Step();
  // Those that have ended since the last call, in the order in which they did.
  std::vector<TenantAnswer> TakeAnswers();

 private:
  struct Waiting {
    TenantRequest request;
    Stopwatch clock;
  };
  struct Running {
    TenantRequest request;
    std::shared_ptr<const ReadyTenant> tenant;  // null: none
    int64_t first_sequence = 0;                 // its beams are the next ones
    int64_t rows_before = 0;                    // in front of the answer
    std::vector<int64_t> tokens;                // without beams
    std::optional<BeamSearch> search;
    TenantAnswer answer;
    int64_t made() const;
  };
  void Admit(StepCost* cost);
  absl::Status Begin(Waiting waiting, std::shared_ptr<const ReadyTenant> tenant);
  void Decode(StepCost* cost);
  // Rows of all running requests, those of a tenant together. `order`: the requests in that order.
  models::MicroBatch BatchOfRunning(std::vector<size_t>* order, std::vector<TenantRows>* groups);
  // What a pass says of some rows: their logits (rows, V) and, on a device, the greedy choices.
  struct RowOutputs {
    torch::Tensor logits;
    std::vector<int64_t> tokens = {};
    RowOutputs Of(int64_t first, int64_t count) const;
  };
  // Through the backbone as it is; on a device, prompts only.
  RowOutputs Run(const models::MicroBatch& batch, const models::SiteTable* guests,
                 const std::vector<int64_t>& rows);
  RowOutputs RunDecoding(const models::MicroBatch& batch, std::vector<TenantRows> groups,
                         GraphUse* graph);
  // Goes on with what its rows say; true when the request has ended.
  bool Continue(const RowOutputs& rows, Running* running, SequenceChange* change);
  absl::StatusOr<int64_t> NextToken(const RowOutputs& row, const Running& running) const;
  void Follow(const SequenceChange& change);
  bool HasRoomFor(int64_t sequences) const { return sequences_ + sequences <= options_.width; }

  models::Backbone& backbone_;
  TenantTable& tenants_;
  Options options_;
  std::unique_ptr<models::KvCache> cache_;
  models::SequenceStates states_;
  MixedRows mixed_;
  std::unique_ptr<DevicePass> device_pass_;  // null on the host
  std::deque<Waiting> waiting_;
  std::vector<Running> running_;
  std::vector<TenantAnswer> answers_;
  int64_t sequences_ = 0;  // of running requests
  int64_t next_sequence_ = 0;
};

}  // namespace graft::trainer
