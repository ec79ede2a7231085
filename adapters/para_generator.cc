#include "adapters/para_generator.h"

#include <numeric>

#include <ATen/ATen.h>

#include "absl/strings/str_cat.h"
#include "adapters/generator.h"
#include "adapters/row_scale.h"
#include "base/status.h"

namespace graft::adapters {

torch::Tensor Rational(const torch::Tensor& x, const torch::Tensor& a, const torch::Tensor& b) {
  // Horner: the highest power first.
  torch::Tensor above = a[5], below = b[3] * x;
  for (int64_t j = 4; j >= 0; --j) above = above * x + a[j];
  for (int64_t k = 2; k >= 0; --k) below = (below + b[k]) * x;
  return above / (1 + below.abs());
}

void ParaGenerator::Prepare(const models::SiteInput& own, models::SiteContext& context) const {
  // A decoder layer's prompt is the encoder's output over the source.
  const bool reads_source = context.source.defined();
  const models::SiteInput x = reads_source ? models::SiteInput{context.source, nullptr} : own;
  const models::MicroBatch& batch = reads_source ? *context.batch->source : *context.batch;
  const torch::Tensor scales = context.sequences == nullptr
                                   ? Generate(x, batch.segments, context)
                                   : GenerateOrRecall(x, batch.segments, context);
  int64_t begin = 0;
  for (size_t part = 0; part < options_.widths.size(); ++part) {
    context.scratch[{this, static_cast<int>(part)}] =
        scales.narrow(1, begin, options_.widths[part]);
    begin += options_.widths[part];
  }
}

int64_t ParaGenerator::FirstScale(size_t part) const {
  const auto first = options_.widths.begin();
  return std::accumulate(first, first + static_cast<std::ptrdiff_t>(part), int64_t{0});
}

torch::Tensor ParaGenerator::Scale(size_t part, const models::SiteInput& x,
                                   models::SiteContext& context) const {
  std::vector<int64_t> ends;
  for (const models::Segment& segment : context.batch->segments) {
    ends.push_back(segment.begin + segment.length);
  }
  return ScaleRows(x, context.scratch.at({this, static_cast<int>(part)}), std::move(ends));
}

torch::Tensor ParaGenerator::Generate(const models::SiteInput& x,
                                      const std::vector<models::Segment>& segments,
                                      const models::SiteContext& context) const {
  const ParaParameters& p = parameters_;
  const torch::Tensor pooled = GeneratorDropout(
      PoolPrompts(x, segments, options_.pooling, p.pool), segments, context.batch->step,
      {options_.layer, static_cast<models::Role>(kGeneratorSite)}, options_.seed,
      context.training ? options_.dropout : 0.0);
  torch::Tensor z = GeneratorLinear(pooled, p.down, p.down_bias, options_.compute_dtype);
  switch (options_.activation) {
    case Activation::kGelu:
      z = at::gelu(z);
      break;
    case Activation::kRelu:
      z = at::relu(z);
      break;
    case Activation::kRational:
      z = Rational(z, p.a, p.b);
  }
  return 1 + GeneratorLinear(z, p.up, p.up_bias, options_.compute_dtype);
}

torch::Tensor ParaGenerator::GenerateOrRecall(const models::SiteInput& x,
                                              const std::vector<models::Segment>& segments,
                                              const models::SiteContext& context) const {
  std::vector<models::Segment> beginning;
  for (const models::Segment& segment : segments) {
    if (segment.prompt_length > 0) beginning.push_back(segment);
  }
  if (!beginning.empty()) {
    const torch::Tensor made = Generate(x, beginning, context);
    for (size_t i = 0; i < beginning.size(); ++i) {
      context.sequences->Put(this, beginning[i].sample_id, made[static_cast<int64_t>(i)]);
    }
  }
  std::vector<torch::Tensor> rows;
  for (const models::Segment& segment : segments) {
    rows.push_back(context.sequences->Get(this, segment.sample_id));
    GRAFT_CHECK(rows.back().defined(),
                absl::StrCat("sequence ", segment.sample_id, " goes on without having begun"));
  }
  return at::stack(rows);
}

}  // namespace graft::adapters
