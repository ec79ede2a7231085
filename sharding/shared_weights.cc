#include "sharding/shared_weights.h"

#include <ATen/ATen.h>
#include <nlohmann/json.hpp>

#include <map>

#include "comm/agree.h"
#include "sharding/buffer.h"

namespace graft::sharding {
namespace {

constexpr int kGradientTag = 29970, kValueTag = 29971;

// Ranks of a pipeline hand these over through host memory: once a step, and seldom many.
void SendTensor(comm::Communicator& pipeline, const torch::Tensor& tensor, int to, int tag) {
  const torch::Tensor host = tensor.detach().to(torch::kCPU);
  pipeline.Send(BufferOf(host), to, tag);
}

torch::Tensor ReceiveLike(comm::Communicator& pipeline, const torch::Tensor& like, int from,
                          int tag) {
  const torch::Tensor host = at::empty(like.sizes(), like.scalar_type());
  pipeline.Recv(BufferOf(host), from, tag);
  return host.to(like.device());
}

torch::Tensor GradientOf(const torch::Tensor& leaf) {
  return leaf.grad().defined() ? leaf.grad().contiguous() : at::zeros_like(leaf);
}

}  // namespace

SharedWeights::SharedWeights(comm::Communicator& pipeline, Stage& stage) : pipeline_(pipeline) {
  nlohmann::json mine = {{"owned", nlohmann::json::array()}, {"copies", nlohmann::json::array()}};
  std::map<std::string, torch::Tensor> owned;
  for (const adapters::NamedParameter& parameter : stage.adapters().parameters()) {
    owned[parameter.name] = parameter.value;
    mine["owned"].push_back(parameter.name);
  }
  for (const auto& [name, leaf] : stage.weight_copies()) mine["copies"].push_back(name);
  std::map<std::string, int> owner_of;
  const std::vector<std::string> all = comm::AllGatherStrings(pipeline, mine.dump());
  std::vector<nlohmann::json> ranks;
  for (const std::string& text : all) ranks.push_back(nlohmann::json::parse(text));
  for (int rank = 0; rank < pipeline.size(); ++rank) {
    for (const auto& name : ranks[static_cast<size_t>(rank)]["owned"]) owner_of[name] = rank;
  }
  for (int rank = 0; rank < pipeline.size(); ++rank) {
    size_t number = 0;
    for (const auto& name : ranks[static_cast<size_t>(rank)]["copies"]) {
      Pair pair{name, owner_of.at(name), rank, {}, {}};
      if (pair.owner == pipeline.rank()) pair.owned = owned.at(pair.name);
      if (rank == pipeline.rank()) pair.copied = stage.weight_copies()[number++].second;
      pairs_.push_back(std::move(pair));
    }
  }
}

std::set<std::string> SharedWeights::owned() const {
  std::set<std::string> names;
  for (const Pair& pair : pairs_) {
    if (pair.owned.defined()) names.insert(pair.name);
  }
  return names;
}

void SharedWeights::CollectGradients() {
  at::NoGradGuard no_grad;
  for (Pair& pair : pairs_) {
    torch::Tensor gradient;
    if (pair.copied.defined()) {
      gradient = GradientOf(pair.copied);
      pair.copied.mutable_grad() = torch::Tensor();
      if (!pair.owned.defined()) SendTensor(pipeline_, gradient, pair.owner, kGradientTag);
    } else if (pair.owned.defined()) {
      gradient = ReceiveLike(pipeline_, pair.owned, pair.copy, kGradientTag);
    }
    if (pair.owned.defined()) pair.owned.mutable_grad().add_(gradient);
  }
}

void SharedWeights::SpreadValues() {
  at::NoGradGuard no_grad;
  for (Pair& pair : pairs_) {
    if (pair.owned.defined() && pair.copied.defined()) {
      pair.copied.copy_(pair.owned);
    } else if (pair.owned.defined()) {
      SendTensor(pipeline_, pair.owned, pair.copy, kValueTag);
    } else if (pair.copied.defined()) {
      pair.copied.copy_(ReceiveLike(pipeline_, pair.copied, pair.owner, kValueTag));
    }
  }
}

}  // namespace graft::sharding
