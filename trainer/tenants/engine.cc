#include "trainer/tenants/engine.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include <ATen/ATen.h>
#include <c10/core/StreamGuard.h>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "base/text.h"
#include "models/device.h"
#include "models/gpu_graph.h"

namespace graft::trainer {
namespace {

// The prompt as one segment that begins its sequence.
models::MicroBatch BatchOfPrompt(const std::vector<int64_t>& prompt, int64_t sequence,
                                 int64_t virtual_rows) {
  models::MicroBatch batch;
  const auto length = static_cast<int64_t>(prompt.size());
  batch.segments = {{.sample_id = sequence,
                     .begin = 0,
                     .length = virtual_rows + length,
                     .prompt_length = length,
                     .virtual_rows = virtual_rows}};
  batch.tokens.assign(static_cast<size_t>(virtual_rows), 0);
  batch.tokens.insert(batch.tokens.end(), prompt.begin(), prompt.end());
  batch.positions.resize(batch.tokens.size());
  std::iota(batch.positions.begin(), batch.positions.end(), 0);
  return batch;
}

absl::Status CheckIds(const std::vector<int64_t>& ids, int64_t vocab_size,
                      const std::string& origin, const char* field) {
  if (ids.empty())
    return InputError(absl::StrCat(origin, field, ": empty, needs a token at least"));
  for (const int64_t id : ids) {
    if (id >= 0 && id < vocab_size) continue;
    return InputError(
        absl::StrCat(origin, field, ": found token ", id, ", the vocabulary has ", vocab_size));
  }
  return absl::OkStatus();
}

}  // namespace

Engine::Engine(models::Backbone& backbone, TenantTable& tenants, Options options)
    : backbone_(backbone),
      tenants_(tenants),
      options_(std::move(options)),
      mixed_(options_.kernel, tenants.dtype(), backbone.device()) {
  const int64_t longest = backbone.config().longest_sequence();
  options_.max_rows = options_.max_rows == 0 ? longest : std::min(options_.max_rows, longest);
  if (models::UsesHostKernels(at::empty({0}, at::device(backbone.device())))) {
    cache_ = backbone.NewKvCache();
    return;
  }
  // What loaded the weights may have done so on another stream than that of the steps.
  models::WaitForDevice(backbone.device());
  cache_ = backbone.NewKvCache({options_.width, options_.max_rows});
  device_pass_ = std::make_unique<DevicePass>(backbone, *cache_, options_.width, options_.graphs);
  models::WaitForDevice(backbone.device());
}

int64_t Engine::Running::made() const {
  return static_cast<int64_t>(search ? search->running()[0].tokens.size() : tokens.size());
}

absl::Status Engine::Submit(TenantRequest request) {
  const std::string origin = absl::StrCat("request ", request.id, ": ");
  const models::ModelConfig& config = backbone_.config();
  int64_t virtual_rows = 0;
  if (!request.tenant.empty()) {
    GRAFT_RETURN_IF_ERROR(
        Annotate(tenants_.Check(request.tenant), absl::StrCat("request ", request.id)));
    virtual_rows = tenants_.VirtualRows(request.tenant);
  }
  GRAFT_RETURN_IF_ERROR(CheckIds(request.prompt, config.vocab_size, origin, "prompt"));
  if (request.max_new_tokens < 1) {
    return InputError(absl::StrCat(origin, "max_new_tokens: found ", request.max_new_tokens,
                                   ", must be at least 1"));
  }
  const auto before = virtual_rows + static_cast<int64_t>(request.prompt.size());
  if (before + request.max_new_tokens > options_.max_rows) {
    return InputError(absl::StrCat(origin, "found ", before, " rows of prompt and ",
                                   request.max_new_tokens,
                                   " new tokens, the cache of a sequence has ", options_.max_rows));
  }
  const int64_t candidates = BeamSearch::CandidatesPerStep(request.beams, options_.end_tokens);
  if (request.beams < 1 || request.beams > options_.width ||
      (request.beams > 1 && candidates > config.vocab_size)) {
    return RecipeError(absl::StrCat(origin, "beams: found ", request.beams, ", must be from 1 to ",
                                    std::min(options_.width, config.vocab_size)));
  }
  waiting_.push_back({std::move(request), Stopwatch()});
  return absl::OkStatus();
}

Engine::StepCost Engine::Step() {
  at::NoGradGuard no_grad;
  c10::OptionalStreamGuard on_stream;
  if (backbone_.device().is_cuda())
    on_stream.reset_stream(models::ServingStream(backbone_.device()));
  StepCost cost;
  Admit(&cost);
  Decode(&cost);
  return cost;
}

std::vector<TenantAnswer> Engine::TakeAnswers() { return std::exchange(answers_, {}); }

void Engine::Admit(StepCost* cost) {
  const Stopwatch clock;
  while (!waiting_.empty() && HasRoomFor(waiting_.front().request.beams)) {
    const std::string& name = waiting_.front().request.tenant;
    absl::StatusOr<std::shared_ptr<const ReadyTenant>> tenant = nullptr;
    if (!name.empty()) tenant = tenants_.Acquire(name);
    // Others hold the memory: it waits, and nobody overtakes it.
    if (tenant.ok() && *tenant == nullptr && !name.empty()) break;
    Waiting next = std::move(waiting_.front());
    waiting_.pop_front();
    const int64_t id = next.request.id;
    const absl::Status status =
        tenant.ok() ? Begin(std::move(next), *std::move(tenant)) : tenant.status();
    if (!status.ok()) answers_.push_back({.id = id, .status = status});
    ++cost->prompts;
  }
  cost->prompt_seconds = clock.Seconds();
}

absl::Status Engine::Begin(Waiting waiting, std::shared_ptr<const ReadyTenant> tenant) {
  Running running;
  running.request = std::move(waiting.request);
  running.tenant = std::move(tenant);
  running.first_sequence = next_sequence_;
  const TenantRequest& request = running.request;
  running.answer.id = request.id;
  const bool has_tenant = running.tenant != nullptr;
  const int64_t virtual_rows = has_tenant ? running.tenant->method().virtual_rows() : 0;
  running.rows_before = virtual_rows + static_cast<int64_t>(request.prompt.size());
  models::MicroBatch batch = BatchOfPrompt(request.prompt, running.first_sequence, virtual_rows);
  if (has_tenant && running.tenant->method().prompt_encoder() != nullptr) {
    GRAFT_RETURN_IF_ERROR(CheckIds(request.encoder_ids,
                                   running.tenant->method().prompt_encoder()->facts.vocab_size,
                                   absl::StrCat("request ", request.id, ": "), "encoder_ids"));
    batch.prompts = std::make_shared<const models::MicroBatch>(
        BatchOfPrompt(request.encoder_ids, running.first_sequence, 0));
  }
  if (request.beams > 1) {
    running.search.emplace(BeamSearch::Options{.beams = request.beams,
                                               .max_new_tokens = request.max_new_tokens,
                                               .end_tokens = options_.end_tokens});
  }
  const RowOutputs outputs =
      Run(batch, has_tenant ? &running.tenant->prompt_hooks() : nullptr, {running.rows_before - 1});
  next_sequence_ += request.beams;
  sequences_ += request.beams;
  SequenceChange change;
  const bool ended = Continue(outputs, &running, &change);
  running.answer.first_token_seconds = waiting.clock.Seconds();
  Follow(change);
  if (ended) {
    answers_.push_back(std::move(running.answer));
  } else {
    running_.push_back(std::move(running));
  }
  return absl::OkStatus();
}

void Engine::Decode(StepCost* cost) {
  if (running_.empty()) return;
  const Stopwatch clock;
  std::vector<size_t> order;
  std::vector<TenantRows> groups;
  const models::MicroBatch batch = BatchOfRunning(&order, &groups);
  const RowOutputs outputs = RunDecoding(batch, std::move(groups), &cost->graph);
  SequenceChange change;
  std::vector<bool> ended(running_.size());
  int64_t row = 0;
  for (const size_t index : order) {
    const int64_t count = running_[index].request.beams;
    ended[index] = Continue(outputs.Of(row, count), &running_[index], &change);
    row += count;
  }
  Follow(change);
  std::vector<Running> remaining;
  for (size_t i = 0; i < running_.size(); ++i) {
    if (ended[i]) {
      answers_.push_back(std::move(running_[i].answer));
    } else {
      remaining.push_back(std::move(running_[i]));
    }
  }
  if (remaining.size() < running_.size()) mixed_.Forget();
  running_ = std::move(remaining);
  cost->rows = batch.num_rows();
  cost->decode_seconds = clock.Seconds();
}

models::MicroBatch Engine::BatchOfRunning(std::vector<size_t>* order,
                                          std::vector<TenantRows>* groups) {
  order->resize(running_.size());
  std::iota(order->begin(), order->end(), size_t{0});
  // Tenants in the order of their first request.
  std::vector<const ReadyTenant*> tenants;
  for (const Running& running : running_) {
    if (std::find(tenants.begin(), tenants.end(), running.tenant.get()) == tenants.end())
      tenants.push_back(running.tenant.get());
  }
  const auto place = [&](size_t index) {
    return std::find(tenants.begin(), tenants.end(), running_[index].tenant.get());
  };
  std::stable_sort(order->begin(), order->end(),
                   [&](size_t a, size_t b) { return place(a) < place(b); });
  models::MicroBatch batch;
  for (const size_t index : *order) {
    const Running& running = running_[index];
    if (running.tenant != nullptr && (groups->empty() || groups->back().tenant != running.tenant)) {
      groups->push_back({running.tenant, batch.num_rows(), {}});
    }
    for (int64_t beam = 0; beam < running.request.beams; ++beam) {
      const int64_t sequence = running.first_sequence + beam;
      batch.segments.push_back({.sample_id = sequence, .begin = batch.num_rows(), .length = 1});
      const auto number = static_cast<size_t>(beam);
      batch.tokens.push_back(running.search ? running.search->running()[number].tokens.back()
                                            : running.tokens.back());
      batch.positions.push_back(running.rows_before + running.made() - 1);
      if (running.tenant != nullptr) groups->back().sequences.push_back(sequence);
    }
  }
  return batch;
}

Engine::RowOutputs Engine::RowOutputs::Of(int64_t first, int64_t count) const {
  RowOutputs part{logits.narrow(0, first, count)};
  if (!tokens.empty()) part.tokens.assign(tokens.begin() + first, tokens.begin() + first + count);
  return part;
}

Engine::RowOutputs Engine::Run(const models::MicroBatch& batch, const models::SiteTable* guests,
                               const std::vector<int64_t>& rows) {
  models::SiteContext context;
  context.batch = &batch;
  context.sequences = &states_;
  context.guests = guests;
  const torch::Tensor h = backbone_.Layers(backbone_.Embed(context), context, cache_.get());
  RowOutputs outputs{backbone_.Logits(h, rows)};
  if (device_pass_ != nullptr) outputs.tokens = HostTokens(GreedyTokens(outputs.logits));
  return outputs;
}

Engine::RowOutputs Engine::RunDecoding(const models::MicroBatch& batch,
                                       std::vector<TenantRows> groups, GraphUse* graph) {
  std::vector<int64_t> rows(static_cast<size_t>(batch.num_rows()));
  std::iota(rows.begin(), rows.end(), 0);
  const bool bare = groups.empty();
  const models::SiteTable* guests =
      bare ? nullptr : &mixed_.Arrange(batch, std::move(groups), states_);
  if (device_pass_ == nullptr) return Run(batch, guests, rows);
  const std::vector<int64_t> bare_layout = {batch.num_rows()};
  DevicePass::Result result =
      device_pass_->Run(batch, guests, bare ? &bare_layout : mixed_.layout(), states_);
  *graph = result.graph;
  return {result.logits, std::move(result.tokens)};
}

absl::StatusOr<int64_t> Engine::NextToken(const RowOutputs& row, const Running& running) const {
  const TenantRequest& request = running.request;
  if (!row.tokens.empty() && request.sampling.temperature <= 0) {
    if (row.tokens[0] < 0) return NotFinite(request.id);
    return row.tokens[0];
  }
  const torch::Tensor logits = row.logits.cpu();
  GRAFT_RETURN_IF_ERROR(CheckFinite(logits, request.id));
  const auto position = static_cast<int64_t>(request.prompt.size() + running.tokens.size());
  return ChooseToken(logits[0], request.sampling, request.id, position);
}

bool Engine::Continue(const RowOutputs& rows, Running* running, SequenceChange* change) {
  const TenantRequest& request = running->request;
  const int64_t first = running->first_sequence;
  TenantAnswer& answer = running->answer;
  bool ended = false;
  if (running->search) {
    BeamSearch& search = *running->search;
    const torch::Tensor logits = rows.logits.cpu();
    answer.status = CheckFinite(logits, request.id);
    if (answer.status.ok()) {
      search.Advance(
          BestContinuations(logits, search.running(),
                            BeamSearch::CandidatesPerStep(request.beams, options_.end_tokens)));
    }
    ended = !answer.status.ok() || search.done();
    if (ended && answer.status.ok()) answer.tokens = search.answer();
  } else {
    const absl::StatusOr<int64_t> token = NextToken(rows, *running);
    answer.status = token.status();
    if (token.ok()) running->tokens.push_back(*token);
    ended = !token.ok() || running->made() >= request.max_new_tokens ||
            std::count(options_.end_tokens.begin(), options_.end_tokens.end(), *token) != 0;
    if (ended && token.ok()) answer.tokens = running->tokens;
  }
  if (ended) {
    for (int64_t beam = 0; beam < request.beams; ++beam) change->ended.push_back(first + beam);
    sequences_ -= request.beams;
  } else if (running->search) {
    int64_t child = first;
    for (const Beam& beam : running->search->running())
      change->forks.push_back({first + beam.parent, child++});
  }
  return ended;
}

void Engine::Follow(const SequenceChange& change) {
  for (const int64_t sequence : change.ended) {
    cache_->Drop(sequence);
    states_.Drop(sequence);
  }
  cache_->Fork(change.forks);
  states_.Fork(change.forks);
}

}  // namespace graft::trainer
