// The meeting point of backbones and methods: a layer calls its table at each named site; a method hangs hooks into the table.
// A backbone never names a method, a method never names an architecture. adapters/ sees of models/ only this header (and what it includes).
//
// Hooks keep no per-call state: micro-batches interleave (1F1B) and recomputation calls a layer twice. What travels between the
// sites of one forward pass lives in the SiteContext.
#pragma once

#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include <torch/types.h>

#include "models/micro_batch.h"
#include "models/role.h"
#include "models/sequence_fork.h"

namespace graft::models {

// Rebuilds a tensor that autograd must not keep (a normed input, silu(gate) * up) from what is kept anyway.
// The first Get() in a backward pass computes, later ones share; the producing Function calls Release() in its own backward.
class Rebuilder {
 public:
  virtual ~Rebuilder() = default;
  virtual torch::Tensor Get() = 0;   // (N, in), detached, same values and dtype as the forward value
  virtual void Release() = 0;
};

// A linear's input: its value for the forward pass (differentiable) and how to have it again in the backward pass.
struct SiteInput {
  torch::Tensor value;                   // (N, in)
  std::shared_ptr<Rebuilder> rebuilder;  // null: `value` itself may be saved (it is kept anyway)
};

// Generation: what a method computes once for a running sequence and keeps beside its keys and values (PARA's vectors). Lives as
// long as the caches; a sequence is named by Segment::sample_id, as there.
class SequenceStates {
 public:
  void Put(const void* owner, int64_t sequence, torch::Tensor state);
  // Undefined when there is none.
  torch::Tensor Get(const void* owner, int64_t sequence) const;
  void Drop(int64_t sequence);
  // Beams of a request share what was made from its prompt: children hold the same tensors.
  void Fork(const std::vector<SequenceFork>& forks);

 private:
  std::map<int64_t, std::map<const void*, torch::Tensor>> states_;
};

// Scoring: where a method's edit of a linear shows (methods.md 16.1). LoRA's hooks obey; other methods are not scored.
struct SiteGates {
  bool open = true;  // at every linear that `rows` does not name
  // (N) float32 of 0 and 1 each: the rows that get the edit. May require grad; its gradient is <edit of the row, dLoss/dy of the row>.
  std::map<SiteId, torch::Tensor> rows;
};

// Serving on a device only: the numbers of a decoding step, which has one row of each running sequence, where the device reads them. Their
// addresses stay, so that a step can be replayed with other numbers (models/gpu_graph.h).
struct DecodingInputs {
  torch::Tensor tokens, positions, places;  // (N) int64 each; places: of the sequences in the cache (KvCache::Place)
};

// A training pass that is recorded (sharding/step_graph.h): what differs between micro-batches of one layout, where the device reads it.
// Addresses stay, as those of DecodingInputs.
struct BatchInputs {
  torch::Tensor tokens;          // (N) int64
  torch::Tensor target_ids;      // (P) int64, one for each target row
  torch::Tensor labels, values;  // (S) int64, (S) float32; undefined where the batch has none
};

class SiteTable;

// Lives for one forward pass of one micro-batch through this stage (and is re-made for a recomputation).
struct SiteContext {
  const MicroBatch* batch = nullptr;
  bool training = false;   // dropout on
  int layer = 0;           // set by the layer before it calls its table
  // Layers of a decoder that reads an encoder: the encoder's output, rows of batch->source. Else undefined.
  torch::Tensor source;
  // Generation only, else null. A segment with a prompt_length begins its sequence here; one without goes on with it.
  SequenceStates* sequences = nullptr;
  // Scoring only: null = every edit shows. Must outlive the backward pass.
  const SiteGates* gates = nullptr;
  // Scoring only: layers outside [first_layer, end_layer) are passed over, for it enters and leaves a backbone in the middle.
  int first_layer = 0;
  int end_layer = std::numeric_limits<int>::max();
  // Serving only: hooks of this pass alone, called behind the backbone's own (trainer/tenants). Null: none.
  const SiteTable* guests = nullptr;
  // A decoding step on a device with a cache of fixed room: instead of the batch's tokens and positions. Null: any other pass.
  const DecodingInputs* decoding = nullptr;
  // A recorded training pass: instead of the batch's tokens, target ids, labels and values. Null: any other pass.
  const BatchInputs* inputs = nullptr;
  // For methods: tensors that travel between sites, keyed by hook owner and a slot number of its own.
  std::map<std::pair<const void*, int>, torch::Tensor> scratch;
};

// What a hook does to one row of a running sequence (not to its prompt), said so that rows of many adapters can be edited in one go.
struct RowEdit {
  enum class Kind {
    kOther,    // cannot be said: the hook is called
    kNothing,  // such a row passes as it is
    kVectors,  // v' = scale (.) v + bias
    kLowRank,  // y' = y + factor b (a x)
  };
  Kind kind = Kind::kOther;
  bool at_input = false;      // kVectors: v is what enters the linear, not what leaves it
  torch::Tensor scale = {}, bias = {};  // (width) float32; undefined = 1, 0
  // Where the scale is the sequence's own: numbers [begin, begin + width) of what `owner` keeps of it in SequenceStates.
  const void* owner = nullptr;
  int64_t begin = 0, width = 0;
  torch::Tensor a = {}, b = {};  // (r, in), (out, r) float32
  double factor = 1;
};

class SiteHook {
 public:
  virtual ~SiteHook() = default;
  virtual RowEdit EditOfRow() const { return {}; }  // of a decoding step with rows of many tenants; default: it is called
  // Linear sites, before the matrix product. Default: unchanged.
  virtual SiteInput EditInput(const SiteInput& x, SiteContext& /*context*/) { return x; }
  // Linear sites: y = x W^T + b, may be edited in place (nothing saves it). Hidden-state sites: x.value is undefined and
  // y is the hidden state, which must NOT be edited in place. Returns the new y, same shape and dtype.
  virtual torch::Tensor EditOutput(const SiteInput& /*x*/, torch::Tensor y, SiteContext& /*context*/) { return y; }
};

// The hooks of one stage, by (layer, role), called in the order in which they were added.
class SiteTable {
 public:
  void Add(SiteId site, std::shared_ptr<SiteHook> hook);
  // In front of those that are there: it sees what they edit.
  void AddFirst(SiteId site, std::shared_ptr<SiteHook> hook);
  bool empty() const { return hooks_.empty(); }
  bool Has(int layer, Role role) const { return hooks_.count({layer, role}) != 0; }
  // True when any site of the layer has a hook.
  bool HasLayer(int layer) const;
  SiteInput EditInput(Role role, SiteInput x, SiteContext& context) const;
  torch::Tensor EditOutput(Role role, const SiteInput& x, torch::Tensor y, SiteContext& context) const;
  // Hidden-state sites.
  torch::Tensor EditHidden(Role role, torch::Tensor h, SiteContext& context) const;

 private:
  const std::vector<std::shared_ptr<SiteHook>>* Find(Role role, const SiteContext& context) const;
  std::map<SiteId, std::vector<std::shared_ptr<SiteHook>>> hooks_;
};

}  // namespace graft::models
