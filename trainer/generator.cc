#include "trainer/generator.h"

#include <memory>
#include <utility>

#include <ATen/ATen.h>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "comm/agree.h"
#include "models/backbone.h"
#include "sharding/buffer.h"
#include "trainer/data/batch_plan.h"

namespace graft::trainer {
namespace {

constexpr int64_t kWidth = 16;   // sequences that run at a time
constexpr int kHiddenTag = 100;  // + the virtual stage that takes the hidden state

using Candidates = std::vector<std::vector<BeamCandidate>>;  // of each request of a step

// This rank's part of one forward pass with caches; hidden states go from each virtual stage to the
// next.
class PipelinedForward {
 public:
  explicit PipelinedForward(LoadedModel& model)
      : model_(model), pipeline_(*model.groups().pipeline_group) {
    for (int chunk = 0; chunk < model.stage().num_chunks(); ++chunk) {
      caches_.push_back(model.stage().backbone(chunk).NewKvCache());
    }
  }

  // Logits of `rows`, (rows, V) float32 in host memory, on the last stage; undefined on the others.
  torch::Tensor Run(const models::MicroBatch& batch, const std::vector<int64_t>& rows) {
    torch::Tensor h, logits;
    const sharding::Plan& plan = model_.plan();
    for (size_t i = 0; i < plan.parts.size(); ++i) {
      const sharding::StageChunk& part = plan.parts[i];
      if (part.stage != pipeline_.rank()) continue;
      models::SiteContext context;
      context.batch = &batch;
      context.sequences = &states_;
      models::Backbone& backbone = model_.stage().backbone(part.chunk);
      h = part.embed ? backbone.Embed(context) : TakeHidden(plan, i, batch.boundary_rows(), h);
      h = backbone.Layers(h, context, caches_[static_cast<size_t>(part.chunk)].get());
      if (part.head)
        logits = backbone.Logits(h, rows).to(at::kCPU);
      else
        HandOn(plan, i, h);
    }
    return logits;
  }

  void Follow(const SequenceChange& change) {
    for (const auto& cache : caches_) {
      for (const int64_t sequence : change.ended) cache->Drop(sequence);
      cache->Fork(change.forks);
    }
    for (const int64_t sequence : change.ended) states_.Drop(sequence);
    states_.Fork(change.forks);
  }

 private:
  // `own`: what this rank made last, which is the input when the part before is its own too.
  torch::Tensor TakeHidden(const sharding::Plan& plan, size_t part, int64_t rows,
                           const torch::Tensor& own) {
    const int from = plan.parts[part - 1].stage;
    if (from == pipeline_.rank()) return own;
    const torch::Tensor h = at::empty({rows, model_.config().hidden_size}, model_.dtype());
    pipeline_.Recv(sharding::BufferOf(h), from, kHiddenTag + static_cast<int>(part));
    return h.to(model_.device());
  }

  void HandOn(const sharding::Plan& plan, size_t part, const torch::Tensor& h) {
    const int to = plan.parts[part + 1].stage;
    if (to == pipeline_.rank()) return;
    const torch::Tensor host = h.to(at::kCPU).contiguous();
    pipeline_.Send(sharding::BufferOf(host), to, kHiddenTag + static_cast<int>(part) + 1);
  }

  LoadedModel& model_;
  comm::Communicator& pipeline_;
  std::vector<std::unique_ptr<models::KvCache>> caches_;  // by chunk
  models::SequenceStates states_;
};

absl::StatusOr<std::vector<Prompt>> PromptsOf(const Dataset& data,
                                              const std::vector<std::vector<int64_t>>& samples) {
  std::vector<Prompt> prompts;
  for (const std::vector<int64_t>& batch : samples) {
    for (const int64_t index : batch) {
      const Sample sample = data.at(index);
      // An encoder reads the whole input; a decoder goes on behind the prompt.
      const auto ids = data.info().kind == DataKind::kSeq2Seq
                           ? sample.input_ids
                           : sample.input_ids.first(static_cast<size_t>(sample.prompt_length));
      if (ids.empty()) {
        return InputError(absl::StrCat("data.eval: ", data.folder(), ": prompt_lengths: sample ",
                                       sample.sample_id, " has 0, `generate` needs at least 1"));
      }
      prompts.push_back({sample.sample_id,
                         {ids.begin(), ids.end()},
                         sample.prompt_length,
                         {sample.encoder_ids.begin(), sample.encoder_ids.end()}});
    }
  }
  return prompts;
}

void RequireFinite(const torch::Tensor& logits, const Continuation& request) {
  const absl::Status status = CheckFinite(logits, request.sample_id);
  if (!status.ok()) throw StatusError(status);
}

std::vector<int64_t> ChooseTokens(const torch::Tensor& logits, const DecodingQueue& queue,
                                  const SamplingOptions& sampling) {
  std::vector<int64_t> tokens;
  for (size_t i = 0; i < queue.requests().size(); ++i) {
    const Continuation& request = queue.results()[static_cast<size_t>(queue.requests()[i])];
    const torch::Tensor row = logits[static_cast<int64_t>(i)];
    RequireFinite(row, request);
    const auto position = static_cast<int64_t>(request.prompt.size() + request.tokens.size());
    tokens.push_back(ChooseToken(row, sampling, request.sample_id, position));
  }
  return tokens;
}

// The `count` best continuations of each request, as numbers beam * V + token with their scores,
// request after request. A request that begins has one row, which stands for all its beams.
void FindCandidates(const torch::Tensor& logits, const DecodingQueue& queue, int64_t count,
                    std::vector<int64_t>* numbers, std::vector<float>* scores) {
  int64_t row = 0;
  for (const int64_t request : queue.requests()) {
    const std::vector<Beam>& beams = queue.search(request).running();
    const int64_t rows = beams[0].tokens.empty() ? 1 : static_cast<int64_t>(beams.size());
    const torch::Tensor own = logits.narrow(0, row, rows);
    RequireFinite(own, queue.results()[static_cast<size_t>(request)]);
    row += rows;
    for (const BeamCandidate& best : BestContinuations(own, beams, count)) {
      numbers->push_back(best.beam * logits.size(1) + best.token);
      scores->push_back(best.score);
    }
  }
}

Candidates ReadCandidates(const std::vector<int64_t>& numbers, const std::vector<float>& scores,
                          int64_t count, int64_t vocab_size) {
  Candidates candidates;
  for (size_t i = 0; i < numbers.size(); ++i) {
    if (i % static_cast<size_t>(count) == 0) candidates.emplace_back();
    candidates.back().push_back({numbers[i] / vocab_size, numbers[i] % vocab_size, scores[i]});
  }
  return candidates;
}

// The last stage chooses, all stages of the replica learn it. `logits` is undefined elsewhere.
SequenceChange Continue(comm::Communicator& pipeline, const torch::Tensor& logits,
                        const SamplingOptions& sampling, DecodingQueue* queue) {
  std::vector<int64_t> tokens(queue->rows().size());
  if (logits.defined()) tokens = ChooseTokens(logits, *queue, sampling);
  pipeline.Broadcast({.data = tokens.data(), .count = tokens.size(), .type = comm::DType::kInt64},
                     pipeline.size() - 1);
  return queue->Accept(tokens);
}

SequenceChange ContinueBeams(comm::Communicator& pipeline, const torch::Tensor& logits,
                             int64_t count, int64_t vocab_size, DecodingQueue* queue) {
  const size_t size = queue->requests().size() * static_cast<size_t>(count);
  std::vector<int64_t> numbers;
  std::vector<float> scores;
  if (logits.defined()) FindCandidates(logits, *queue, count, &numbers, &scores);
  numbers.resize(size);
  scores.resize(size);
  const int last = pipeline.size() - 1;
  pipeline.Broadcast({.data = numbers.data(), .count = size, .type = comm::DType::kInt64}, last);
  pipeline.Broadcast({.data = scores.data(), .count = size, .type = comm::DType::kFloat32}, last);
  return queue->Accept(ReadCandidates(numbers, scores, count, vocab_size));
}

absl::Status CheckBeams(int64_t beams, const models::ModelConfig& config) {
  const int64_t per_beam = BeamSearch::CandidatesPerStep(1, config.eos_token_ids);
  if (beams == 1 || beams * per_beam <= config.vocab_size) return absl::OkStatus();
  return RecipeError(absl::StrCat("generate.beams: found ", beams, ", a vocabulary of ",
                                  config.vocab_size, " tokens with ", config.eos_token_ids.size(),
                                  " end tokens serves up to ", config.vocab_size / per_beam));
}

}  // namespace

absl::StatusOr<std::vector<Continuation>> Generate(LoadedModel& model, const Dataset& data,
                                                   int64_t num_samples,
                                                   const GenerateOptions& options) {
  const models::ModelConfig& config = model.config();
  GRAFT_RETURN_IF_ERROR(CheckBeams(options.beams, config));
  const std::vector<std::vector<int64_t>> share =
      EvaluationMicroBatches(num_samples, kWidth, model.grid().data, model.data_rank());
  absl::StatusOr<std::vector<Prompt>> prompts = PromptsOf(data, share);
  GRAFT_RETURN_IF_ERROR(comm::AgreeOnStatus(model.world().all(), prompts.status()));
  DecodingQueue queue(*std::move(prompts),
                      {.max_new_tokens = options.max_new_tokens,
                       .max_positions = config.longest_sequence(),
                       .virtual_rows = model.method().virtual_rows(),
                       .end_tokens = config.eos_token_ids,
                       .decoder_start = config.has_encoder() ? config.decoder_start_token_id : -1,
                       .width = kWidth,
                       .beams = options.beams});
  at::NoGradGuard no_grad;
  PipelinedForward forward(model);
  comm::Communicator& pipeline = *model.groups().pipeline_group;
  const int64_t count = BeamSearch::CandidatesPerStep(options.beams, config.eos_token_ids);
  while (!queue.done()) {
    const models::MicroBatch batch = queue.Next();
    const torch::Tensor logits = forward.Run(batch, queue.rows());
    forward.Follow(options.beams == 1
                       ? Continue(pipeline, logits, options.sampling, &queue)
                       : ContinueBeams(pipeline, logits, count, config.vocab_size, &queue));
  }
  return queue.results();
}

}  // namespace graft::trainer
