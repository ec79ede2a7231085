#include "trainer/data/collate.h"

#include <memory>
#include <span>
#include <utility>

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

// A segment of `virtual_rows` rows with id 0 and the ids behind them.
models::Segment& AppendSegment(int64_t sample_id, int64_t virtual_rows,
                               std::span<const int32_t> ids, models::MicroBatch* batch) {
  models::Segment segment;
  segment.sample_id = sample_id;
  segment.begin = batch->num_rows();
  segment.length = virtual_rows + static_cast<int64_t>(ids.size());
  segment.virtual_rows = virtual_rows;
  batch->tokens.insert(batch->tokens.end(), static_cast<std::size_t>(virtual_rows), 0);
  batch->tokens.insert(batch->tokens.end(), ids.begin(), ids.end());
  for (int64_t t = 0; t < segment.length; ++t) batch->positions.push_back(t);
  batch->segments.push_back(segment);
  return batch->segments.back();
}

// What the decoder of a seq2seq sample reads and must say.
void AppendDecoder(const Sample& sample, int64_t decoder_start, models::MicroBatch* batch) {
  std::vector<int32_t> inputs{static_cast<int32_t>(decoder_start)};
  inputs.insert(inputs.end(), sample.target_ids.begin(), sample.target_ids.end());
  inputs.pop_back();
  const models::Segment& segment = AppendSegment(sample.sample_id, 0, inputs, batch);
  for (int64_t t = 0; t < segment.length; ++t) {
    batch->target_rows.push_back(segment.begin + t);
    batch->target_ids.push_back(sample.target_ids[static_cast<std::size_t>(t)]);
  }
}

}  // namespace

models::MicroBatch Collate(const Dataset& data, const std::vector<int64_t>& samples, int64_t step,
                           int64_t index, int64_t virtual_rows, int64_t decoder_start) {
  const DataKind kind = data.info().kind;
  models::MicroBatch batch;
  batch.step = step;
  batch.index = index;
  models::MicroBatch source = batch, prompts = batch;
  models::MicroBatch& inputs = kind == DataKind::kSeq2Seq ? source : batch;
  const bool has_encoder_ids = data.has_encoder_ids();
  for (const int64_t number : samples) {
    const Sample sample = data.at(number);
    models::Segment& segment =
        AppendSegment(sample.sample_id, virtual_rows, sample.input_ids, &inputs);
    segment.prompt_length = sample.prompt_length;
    if (has_encoder_ids) AppendSegment(sample.sample_id, 0, sample.encoder_ids, &prompts);
    AppendTargets(sample, segment.prompt_begin(), &batch);
    if (kind == DataKind::kClassification) batch.labels.push_back(sample.label);
    if (kind == DataKind::kRegression) batch.values.push_back(sample.value);
    if (kind == DataKind::kSeq2Seq) AppendDecoder(sample, decoder_start, &batch);
  }
  if (has_encoder_ids) {
    inputs.prompts = std::make_shared<const models::MicroBatch>(std::move(prompts));
  }
  if (kind == DataKind::kSeq2Seq) {
    batch.source = std::make_shared<const models::MicroBatch>(std::move(source));
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
