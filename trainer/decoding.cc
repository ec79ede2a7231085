#include "trainer/decoding.h"

#include <algorithm>
#include <memory>
#include <numeric>
#include <utility>

namespace graft::trainer {

DecodingQueue::DecodingQueue(std::vector<Prompt> prompts, Options options)
    : options_(std::move(options)) {
  results_.reserve(prompts.size());
  for (Prompt& prompt : prompts) {
    has_encoder_ids_ = has_encoder_ids_ || !prompt.encoder_ids.empty();
    results_.push_back({prompt.sample_id, std::move(prompt.tokens), {}});
  }
  prompts_ = std::move(prompts);
}

models::MicroBatch DecodingQueue::Next() {
  const int64_t room = std::max<int64_t>(1, options_.width / options_.beams);
  while (static_cast<int64_t>(running_.size()) < room && next_ < results_.size()) {
    Begin(static_cast<int64_t>(next_++));
  }
  models::MicroBatch batch, source, prompts;
  rows_.clear();
  for (const int64_t request : running_) {
    const int64_t made = Made(request);
    if (made == 0) {
      AppendPrompt(request, &batch, &source);
      if (has_encoder_ids_)
        AppendSegment(request, prompts_[static_cast<size_t>(request)].encoder_ids, 0, 0, 0,
                      &prompts);
      continue;
    }
    int64_t sequence = request * options_.beams;
    for (const int64_t token : LastTokens(request)) {
      if (has_encoder()) AppendSegment(sequence, {}, 0, 0, 0, &source);
      if (has_encoder_ids_) AppendSegment(request, {}, 0, 0, 0, &prompts);
      rows_.push_back(
          AppendSegment(sequence++, {token}, 0, 0, RowsBeforeAnswer(request) + made - 1, &batch));
    }
  }
  if (has_encoder_ids_) {
    (has_encoder() ? source : batch).prompts =
        std::make_shared<const models::MicroBatch>(std::move(prompts));
  }
  if (has_encoder()) {
    for (int64_t& row : rows_) row += source.num_rows();
    batch.source = std::make_shared<const models::MicroBatch>(std::move(source));
  }
  return batch;
}

void DecodingQueue::Begin(int64_t request) {
  running_.push_back(request);
  if (options_.beams == 1) return;
  searches_.emplace(request, BeamSearch({.beams = options_.beams,
                                         .max_new_tokens = LongestAnswer(request),
                                         .end_tokens = options_.end_tokens}));
}

// Tokens of each of its sequences.
int64_t DecodingQueue::Made(int64_t request) const {
  const std::vector<int64_t>& tokens = options_.beams == 1
                                           ? results_[static_cast<size_t>(request)].tokens
                                           : search(request).running()[0].tokens;
  return static_cast<int64_t>(tokens.size());
}

std::vector<int64_t> DecodingQueue::LastTokens(int64_t request) const {
  if (options_.beams == 1) return {results_[static_cast<size_t>(request)].tokens.back()};
  std::vector<int64_t> tokens;
  for (const Beam& beam : search(request).running()) tokens.push_back(beam.tokens.back());
  return tokens;
}

void DecodingQueue::AppendPrompt(int64_t request, models::MicroBatch* batch,
                                 models::MicroBatch* source) {
  const auto index = static_cast<size_t>(request);
  const int64_t sequence = request * options_.beams;
  const int64_t last =
      AppendSegment(sequence, results_[index].prompt, options_.virtual_rows,
                    prompts_[index].prompt_length, 0, has_encoder() ? source : batch);
  rows_.push_back(has_encoder() ? AppendSegment(sequence, {options_.decoder_start}, 0, 0, 0, batch)
                                : last);
}

int64_t DecodingQueue::AppendSegment(int64_t sequence, const std::vector<int64_t>& ids,
                                     int64_t virtual_rows, int64_t prompt_length, int64_t position,
                                     models::MicroBatch* batch) {
  models::Segment segment;
  segment.sample_id = sequence;
  segment.begin = batch->num_rows();
  segment.virtual_rows = virtual_rows;
  segment.length = virtual_rows + static_cast<int64_t>(ids.size());
  segment.prompt_length = prompt_length;
  batch->segments.push_back(segment);
  batch->tokens.insert(batch->tokens.end(), static_cast<size_t>(virtual_rows), 0);
  batch->tokens.insert(batch->tokens.end(), ids.begin(), ids.end());
  batch->positions.resize(batch->tokens.size());
  std::iota(batch->positions.begin() + segment.begin, batch->positions.end(), position);
  return segment.begin + segment.length - 1;
}

SequenceChange DecodingQueue::Accept(const std::vector<int64_t>& tokens) {
  SequenceChange change;
  std::vector<int64_t> remaining;
  for (size_t i = 0; i < running_.size(); ++i) {
    const int64_t request = running_[i];
    results_[static_cast<size_t>(request)].tokens.push_back(tokens[i]);
    (Ended(request) ? change.ended : remaining).push_back(request);
  }
  running_ = std::move(remaining);
  return change;
}

SequenceChange DecodingQueue::Accept(const std::vector<std::vector<BeamCandidate>>& candidates) {
  SequenceChange change;
  std::vector<int64_t> remaining;
  for (size_t i = 0; i < running_.size(); ++i) {
    const int64_t request = running_[i], first = request * options_.beams;
    BeamSearch& search = searches_.at(request);
    search.Advance(candidates[i]);
    if (search.done()) {
      results_[static_cast<size_t>(request)].tokens = search.answer();
      searches_.erase(request);
      for (int64_t beam = 0; beam < options_.beams; ++beam) change.ended.push_back(first + beam);
      continue;
    }
    remaining.push_back(request);
    int64_t child = first;
    for (const Beam& beam : search.running())
      change.forks.push_back({first + beam.parent, child++});
  }
  running_ = std::move(remaining);
  return change;
}

int64_t DecodingQueue::RowsBeforeAnswer(int64_t request) const {
  if (has_encoder()) return 1;
  return options_.virtual_rows +
         static_cast<int64_t>(results_[static_cast<size_t>(request)].prompt.size());
}

int64_t DecodingQueue::LongestAnswer(int64_t request) const {
  const int64_t room = options_.max_positions - RowsBeforeAnswer(request);
  return std::max<int64_t>(1, std::min(options_.max_new_tokens, room));
}

bool DecodingQueue::Ended(int64_t request) const {
  const int64_t last = results_[static_cast<size_t>(request)].tokens.back();
  return Made(request) >= LongestAnswer(request) ||
         std::find(options_.end_tokens.begin(), options_.end_tokens.end(), last) !=
             options_.end_tokens.end();
}

}  // namespace graft::trainer
