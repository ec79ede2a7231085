#include "sharding/gradient_reduction.h"

#include <algorithm>
#include <string_view>

#include <ATen/ATen.h>

#include "sharding/buffer.h"

namespace graft::sharding {
namespace {

constexpr int kWholePass = -1;

// The layer whose end makes a parameter's gradient final (NamedParameter::layer).
int FinalWith(const adapters::NamedParameter& parameter, int num_layers,
              const std::set<std::string>& late) {
  const bool in_front = parameter.layer == num_layers;
  return in_front || late.contains(parameter.name) ? kWholePass : parameter.layer;
}

}  // namespace

GradientReduction::GradientReduction(const adapters::AdapterSet& adapters, int num_layers,
                                     comm::Communicator& data_group,
                                     const std::set<std::string>& late, int64_t piece_bytes)
    : gradients_(adapters.gradients()),
      group_(data_group),
      through_host_(!gradients_.is_cpu() && std::string_view(data_group.backend()) != "nccl") {
  if (group_.size() == 1) return;
  const int64_t piece_numbers = piece_bytes / gradients_.element_size();
  // From the end of the buffer, where the layers are that a backward pass comes to first.
  for (size_t i = adapters.parameters().size(); i-- > 0;) {
    const int layer = FinalWith(adapters.parameters()[i], num_layers, late);
    const int64_t begin = adapters.offset(i);
    const bool joins = !pieces_.empty() && layer <= pieces_.back().lowest_layer &&
                       pieces_.back().end - pieces_.back().begin < piece_numbers;
    if (!joins)
      pieces_.push_back({begin, begin + adapters.parameters()[i].value.numel(), layer, nullptr});
    pieces_.back().begin = begin;
    pieces_.back().lowest_layer = layer;
  }
  std::stable_sort(pieces_.begin(), pieces_.end(),
                   [](const Piece& a, const Piece& b) { return a.lowest_layer > b.lowest_layer; });
}

void GradientReduction::Connect() {
  if (pieces_.empty() || through_host_ || gradients_.is_cpu()) return;
  const torch::Tensor nothing = at::zeros({1}, gradients_.options());
  group_.AllReduce(BufferOf(nothing), comm::ReduceOp::kSum);
}

void GradientReduction::Start(Piece* piece) {
  piece->request =
      group_.StartAllReduce(BufferOf(gradients_.narrow(0, piece->begin, piece->end - piece->begin)),
                            comm::ReduceOp::kSum);
  ++started_;
}

void GradientReduction::LayersDone(int layer) {
  if (through_host_) return;
  while (started_ < pieces_.size() && pieces_[started_].lowest_layer >= layer)
    Start(&pieces_[started_]);
}

void GradientReduction::Finish() {
  if (pieces_.empty()) return;
  if (through_host_) return ReduceThroughHost();
  while (started_ < pieces_.size()) Start(&pieces_[started_]);
  for (Piece& piece : pieces_) {
    piece.request->Wait();
    piece.request.reset();
  }
  started_ = 0;
}

void GradientReduction::ReduceThroughHost() {
  const torch::Tensor host = gradients_.to(torch::kCPU);
  group_.AllReduce(BufferOf(host), comm::ReduceOp::kSum);
  gradients_.copy_(host);
}

}  // namespace graft::sharding
