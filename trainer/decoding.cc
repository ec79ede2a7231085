#include "trainer/decoding.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace graft::trainer {

DecodingQueue::DecodingQueue(std::vector<Prompt> prompts, Options options)
    : options_(std::move(options)) {
  results_.reserve(prompts.size());
  for (Prompt& prompt : prompts)
    results_.push_back({prompt.sample_id, std::move(prompt.tokens), {}});
}

models::MicroBatch DecodingQueue::Next() {
  while (static_cast<int64_t>(running_.size()) < options_.width && next_ < results_.size()) {
    running_.push_back(static_cast<int64_t>(next_++));
  }
  models::MicroBatch batch;
  rows_.clear();
  for (const int64_t number : running_) {
    const Continuation& sequence = results_[static_cast<size_t>(number)];
    const bool begins = sequence.tokens.empty();
    const auto prompt_length = static_cast<int64_t>(sequence.prompt.size());
    models::Segment segment;
    segment.sample_id = number;
    segment.begin = batch.num_rows();
    segment.virtual_rows = begins ? options_.virtual_rows : 0;
    segment.length = segment.virtual_rows + (begins ? prompt_length : 1);
    segment.prompt_length = begins ? prompt_length : 0;
    batch.segments.push_back(segment);
    const std::vector<int64_t> last = {begins ? 0 : sequence.tokens.back()};
    const std::vector<int64_t>& ids = begins ? sequence.prompt : last;
    batch.tokens.insert(batch.tokens.end(), static_cast<size_t>(segment.virtual_rows), 0);
    batch.tokens.insert(batch.tokens.end(), ids.begin(), ids.end());
    const int64_t position = begins ? 0
                                    : options_.virtual_rows + prompt_length +
                                          static_cast<int64_t>(sequence.tokens.size()) - 1;
    batch.positions.resize(batch.tokens.size());
    std::iota(batch.positions.begin() + segment.begin, batch.positions.end(), position);
    rows_.push_back(segment.begin + segment.length - 1);
  }
  return batch;
}

std::vector<int64_t> DecodingQueue::Accept(const std::vector<int64_t>& tokens) {
  std::vector<int64_t> ended, remaining;
  for (size_t i = 0; i < running_.size(); ++i) {
    Continuation& sequence = results_[static_cast<size_t>(running_[i])];
    sequence.tokens.push_back(tokens[i]);
    (Ended(sequence) ? ended : remaining).push_back(running_[i]);
  }
  running_ = std::move(remaining);
  return ended;
}

bool DecodingQueue::Ended(const Continuation& sequence) const {
  const auto made = static_cast<int64_t>(sequence.tokens.size());
  if (made >= options_.max_new_tokens) return true;
  const auto prompt = options_.virtual_rows + static_cast<int64_t>(sequence.prompt.size());
  if (prompt + made >= options_.max_positions) return true;
  return std::find(options_.end_tokens.begin(), options_.end_tokens.end(),
                   sequence.tokens.back()) != options_.end_tokens.end();
}

}  // namespace graft::trainer
