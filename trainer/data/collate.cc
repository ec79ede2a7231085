#include "trainer/data/collate.h"

namespace graft::trainer {
namespace {

// `begin`: the row of its first token.
void AppendTargets(const Sample& sample, int64_t begin, models::MicroBatch* batch) {
  for (std::size_t t = 1; t < sample.loss_mask.size(); ++t) {
    if (sample.loss_mask[t] == 0) continue;
    batch->target_rows.push_back(begin + static_cast<int64_t>(t) - 1);
    batch->target_ids.push_back(sample.input_ids[t]);
  }
}

}  // namespace

models::MicroBatch Collate(const Dataset& data, const std::vector<int64_t>& samples, int64_t step,
                           int64_t index, int64_t virtual_rows) {
  models::MicroBatch batch;
  batch.step = step;
  batch.index = index;
  for (const int64_t number : samples) {
    const Sample sample = data.at(number);
    models::Segment segment;
    segment.sample_id = sample.sample_id;
    segment.begin = batch.num_rows();
    segment.length = virtual_rows + static_cast<int64_t>(sample.input_ids.size());
    segment.prompt_length = sample.prompt_length;
    segment.virtual_rows = virtual_rows;
    batch.segments.push_back(segment);
    batch.tokens.insert(batch.tokens.end(), static_cast<std::size_t>(virtual_rows), 0);
    batch.tokens.insert(batch.tokens.end(), sample.input_ids.begin(), sample.input_ids.end());
    for (int64_t t = 0; t < segment.length; ++t) batch.positions.push_back(t);
    AppendTargets(sample, segment.prompt_begin(), &batch);
    if (data.info().kind == DataKind::kClassification) batch.labels.push_back(sample.label);
    if (data.info().kind == DataKind::kRegression) batch.values.push_back(sample.value);
  }
  return batch;
}

int64_t CountTrainedTokens(const Dataset& data, const std::vector<int64_t>& samples) {
  int64_t count = 0;
  for (const int64_t sample : samples) count += data.trained_tokens(sample);
  return count;
}

int64_t CountTokens(const Dataset& data, const std::vector<int64_t>& samples) {
  int64_t count = 0;
  for (const int64_t sample : samples) count += data.total_tokens(sample);
  return count;
}

}  // namespace graft::trainer
