#include "trainer/data/batch_plan.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/hash.h"
#include "base/philox.h"
#include "base/status.h"
#include "trainer/data/packing.h"

namespace graft::trainer {
namespace {

// What an epoch's random order is drawn for, in the place of the layer in the key.
constexpr uint64_t kSampleOrder = 0;
constexpr uint64_t kRowOrder = 1;

// 0..count-1 sorted by one random number each, so that the place of i follows from the key and i.
std::vector<int64_t> RandomOrder(int64_t count, uint64_t key) {
  std::vector<std::pair<uint64_t, int64_t>> drawn;
  drawn.reserve(static_cast<std::size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    const auto number = static_cast<uint64_t>(i);
    const PhiloxBlock block =
        Philox(key, {static_cast<uint32_t>(number), static_cast<uint32_t>(number >> 32), 0, 0});
    drawn.emplace_back(uint64_t{block[1]} << 32 | block[0], i);
  }
  std::sort(drawn.begin(), drawn.end());
  std::vector<int64_t> order;
  order.reserve(drawn.size());
  for (const auto& [value, index] : drawn) order.push_back(index);
  return order;
}

absl::Status Refuse(const char* key, int64_t found, const std::string& allowed) {
  return RecipeError(absl::StrCat(key, ": found ", found, ", ", allowed));
}

absl::Status CheckOptions(const BatchPlanOptions& options) {
  if (options.num_samples < 1)
    return Refuse("data.train", options.num_samples, "must hold at least 1 sample");
  if (options.global_batch < 1)
    return Refuse("optim.global_batch", options.global_batch, "must be at least 1");
  if (options.micro_batch < 1)
    return Refuse("optim.micro_batch", options.micro_batch, "must be at least 1");
  if (options.data_ranks < 1 || options.global_batch % options.data_ranks != 0) {
    return Refuse("optim.global_batch", options.global_batch,
                  absl::StrCat("must be divisible by parallel.data, ", options.data_ranks));
  }
  if (options.steps < 0) return Refuse("optim.steps", options.steps, "must not be negative");
  if (options.steps == 0 && options.epochs < 1) {
    return Refuse("optim.epochs", options.epochs, "must be at least 1 when steps is 0");
  }
  return absl::OkStatus();
}

absl::Status CheckLengths(const BatchPlanOptions& options) {
  GRAFT_CHECK(static_cast<int64_t>(options.lengths.size()) >= options.num_samples,
              absl::StrCat(options.lengths.size(), " lengths of ", options.num_samples));
  for (int64_t i = 0; i < options.num_samples; ++i) {
    const int64_t length = options.lengths[static_cast<std::size_t>(i)];
    if (length > options.row_length) {
      return Refuse("data.row_length", options.row_length,
                    absl::StrCat("sample ", i, " has ", length, " tokens and must fit a row"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<BatchPlan> BatchPlan::Create(BatchPlanOptions options) {
  if (options.max_samples > 0) {
    options.num_samples = std::min(options.num_samples, options.max_samples);
  }
  GRAFT_RETURN_IF_ERROR(CheckOptions(options));
  if (options.row_length > 0) GRAFT_RETURN_IF_ERROR(CheckLengths(options));
  BatchPlan plan(std::move(options));
  plan.num_steps_ = plan.options_.steps;
  if (plan.num_steps_ > 0) return plan;
  const bool epochs_differ = plan.options_.shuffle && plan.options_.row_length > 0;
  int64_t rows = 0;
  if (!epochs_differ &&
      __builtin_mul_overflow(plan.rows_in_epoch(0), plan.options_.epochs, &rows)) {
    return Refuse("optim.epochs", plan.options_.epochs, "asks for more rows than can be counted");
  }
  for (int64_t epoch = 0; epochs_differ && epoch < plan.options_.epochs; ++epoch) {
    rows += plan.rows_in_epoch(epoch);
  }
  plan.num_steps_ = rows / plan.options_.global_batch + (rows % plan.options_.global_batch != 0);
  return plan;
}

std::span<const int64_t> BatchPlan::EpochRows::Row(int64_t index) const {
  const auto row = static_cast<std::size_t>(index);
  const std::span<const int64_t> all(samples);
  if (row_begin.empty()) return all.subspan(row, 1);
  return all.subspan(row_begin[row], row_begin[row + 1] - row_begin[row]);
}

BatchPlan::EpochRows BatchPlan::MakeEpoch(int64_t epoch) const {
  const auto key = [&](uint64_t what) {
    return PhiloxKey(options_.seed, RandomPurpose::kShuffle, static_cast<uint64_t>(epoch), what, 0);
  };
  std::vector<int64_t> order;
  if (options_.shuffle) {
    order = RandomOrder(options_.num_samples, key(kSampleOrder));
  } else {
    order.resize(static_cast<std::size_t>(options_.num_samples));
    std::iota(order.begin(), order.end(), int64_t{0});
  }
  if (options_.row_length == 0) return {std::move(order), {}};

  const auto rows = PackRows(order, options_.lengths, options_.row_length);
  std::vector<int64_t> row_order(rows.size());
  std::iota(row_order.begin(), row_order.end(), int64_t{0});
  // Long samples open the rows of a window: mix the rows again.
  if (options_.shuffle) row_order = RandomOrder(static_cast<int64_t>(rows.size()), key(kRowOrder));
  EpochRows result;
  result.row_begin = {0};
  for (const int64_t row : row_order) {
    const std::vector<int64_t>& samples = rows[static_cast<std::size_t>(row)];
    result.samples.insert(result.samples.end(), samples.begin(), samples.end());
    result.row_begin.push_back(result.samples.size());
  }
  return result;
}

const BatchPlan::EpochRows& BatchPlan::Epoch(int64_t epoch) {
  if (!options_.shuffle) epoch = 0;  // all epochs are equal
  const auto found = epochs_.find(epoch);
  if (found != epochs_.end()) return found->second;
  std::erase_if(epochs_, [&](const auto& entry) {
    return entry.first != epoch - 1 && entry.first != epoch + 1;
  });
  return epochs_.emplace(epoch, MakeEpoch(epoch)).first->second;
}

int64_t BatchPlan::rows_in_epoch(int64_t epoch) {
  if (options_.row_length == 0) return options_.num_samples;
  return static_cast<int64_t>(Epoch(epoch).row_begin.size()) - 1;
}

BatchPlan::Position BatchPlan::PositionOf(int64_t row) {
  if (options_.row_length == 0) return {row / options_.num_samples, row % options_.num_samples};
  while (first_row_.back() <= row) {
    first_row_.push_back(first_row_.back() +
                         rows_in_epoch(static_cast<int64_t>(first_row_.size()) - 1));
  }
  const auto after = std::upper_bound(first_row_.begin(), first_row_.end(), row);
  const auto epoch = after - first_row_.begin() - 1;
  return {epoch, row - first_row_[static_cast<std::size_t>(epoch)]};
}

std::span<const int64_t> BatchPlan::Row(int64_t row) {
  const Position position = PositionOf(row);
  return Epoch(position.epoch).Row(position.cursor);
}

BatchPlan::Position BatchPlan::After(int64_t steps) {
  return PositionOf(steps * options_.global_batch);
}

std::string BatchPlan::EpochSha256(int64_t epoch) {
  const EpochRows& rows = Epoch(epoch);
  Sha256 hash;
  for (int64_t row = 0; row < rows_in_epoch(epoch); ++row) {
    const std::span<const int64_t> samples = rows.Row(row);
    const auto count = static_cast<int64_t>(samples.size());
    hash.Update(&count, sizeof(count));
    hash.Update(samples.data(), samples.size_bytes());
  }
  return hash.HexDigest();
}

std::vector<int64_t> BatchPlan::SamplesOfRows(int64_t begin, int64_t end) {
  std::vector<int64_t> samples;
  for (int64_t row = begin; row < end; ++row) {
    const std::span<const int64_t> more = Row(row);
    samples.insert(samples.end(), more.begin(), more.end());
  }
  return samples;
}

std::vector<int64_t> BatchPlan::GlobalBatch(int64_t k) {
  return SamplesOfRows(k * options_.global_batch, (k + 1) * options_.global_batch);
}

std::vector<std::vector<int64_t>> BatchPlan::MicroBatches(int64_t k, int64_t data_rank) {
  const int64_t share = options_.global_batch / options_.data_ranks;
  const int64_t begin = k * options_.global_batch + data_rank * share;
  std::vector<std::vector<int64_t>> micro_batches;
  for (int64_t row = begin; row < begin + share; row += options_.micro_batch) {
    micro_batches.push_back(
        SamplesOfRows(row, std::min(row + options_.micro_batch, begin + share)));
  }
  return micro_batches;
}

int64_t BatchPlan::micro_batches_per_step() const {
  const int64_t share = options_.global_batch / options_.data_ranks;
  return (share - 1) / options_.micro_batch + 1;
}

std::vector<std::vector<int64_t>> EvaluationMicroBatches(int64_t num_samples, int64_t micro_batch,
                                                         int64_t data_ranks, int64_t data_rank) {
  const int64_t share = num_samples / data_ranks;
  const int64_t larger = num_samples % data_ranks;  // the first ranks take one sample more
  const int64_t begin = data_rank * share + std::min(data_rank, larger);
  const int64_t end = begin + share + (data_rank < larger ? 1 : 0);
  std::vector<std::vector<int64_t>> micro_batches;
  for (int64_t first = begin; first < end; first += micro_batch) {
    std::vector<int64_t>& samples = micro_batches.emplace_back();
    for (int64_t i = first; i < std::min(first + micro_batch, end); ++i) samples.push_back(i);
  }
  return micro_batches;
}

}  // namespace graft::trainer
