#include "sharding/transfers.h"

#include <chrono>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <ATen/ATen.h>

#include "base/status.h"
#include "sharding/buffer.h"

namespace graft::sharding {
namespace {

// No flow of a plan has it.
constexpr int kConnectTag = 2 * (comm::TransferId::kMaxTensor + 1);

uint32_t ShortHash(const Plan& plan) {
  return static_cast<uint32_t>(std::stoul(plan.Hash().substr(0, 8), nullptr, 16));
}

}  // namespace

StageTransfers::StageTransfers(const Plan& plan, int stage, comm::Communicator& pipeline)
    : plan_(plan),
      stage_(stage),
      pipeline_(pipeline),
      moves_device_memory_(std::string_view(pipeline.backend()) == "nccl"),
      link_(pipeline, ShortHash(plan)) {}

void StageTransfers::Connect(torch::Device device) {
  if (!moves_device_memory_) return;
  std::set<std::pair<int, int>> ways;  // (from, to)
  for (size_t part = 1; part < plan_.parts.size(); ++part) {
    const int below = plan_.parts[part - 1].stage, above = plan_.parts[part].stage;
    if (below == above) continue;
    ways.emplace(below, above);
    if (plan_.parts[part].input_gradient) ways.emplace(above, below);
  }
  std::vector<Transfer> open;
  for (const auto& [from, to] : ways) {
    if (from != stage_ && to != stage_) continue;
    Transfer& transfer = open.emplace_back();
    transfer.tensor = at::zeros({1}, torch::TensorOptions(torch::kUInt8).device(device));
    const comm::Buffer data = BufferOf(transfer.tensor);
    transfer.request = from == stage_ ? pipeline_.StartSend(data, to, kConnectTag)
                                      : pipeline_.StartRecv(data, from, kConnectTag);
  }
  for (Transfer& transfer : open) transfer.request->Wait();
}

bool StageTransfers::Travels(const torch::Tensor& tensor) const {
  return tensor.is_cpu() || moves_device_memory_;
}

int StageTransfers::SourcePart(const FlowKey& key) const {
  return key.pass == Pass::kForward ? key.part - 1 : key.part + 1;
}

comm::TransferId StageTransfers::Id(const FlowKey& key) const {
  // Boundary b lies between the parts b and b + 1.
  const int flow = key.pass == Pass::kForward ? 2 * (key.part - 1) : 2 * key.part + 1;
  return {step_, static_cast<uint32_t>(key.micro_batch), static_cast<uint32_t>(flow)};
}

void StageTransfers::Post(const FlowKey& key, torch::Tensor buffer) {
  const int from = plan_.parts[static_cast<size_t>(SourcePart(key))].stage;
  if (from == stage_) return;
  Transfer& transfer = incoming_[key];
  transfer.device = buffer.device();
  transfer.tensor = Travels(buffer) ? std::move(buffer)
                                    : at::empty(buffer.sizes(), buffer.options().device(at::kCPU));
  transfer.request = link_.StartRecv(BufferOf(transfer.tensor), from, Id(key));
}

torch::Tensor StageTransfers::Take(const FlowKey& key) {
  if (auto local = handed_over_.extract(key)) return std::move(local.mapped());
  const auto found = incoming_.find(key);
  GRAFT_CHECK(found != incoming_.end(), "a stage input was neither posted nor handed over");
  Wait(found->second);
  torch::Tensor tensor = found->second.tensor.to(found->second.device);
  incoming_.erase(found);
  return tensor;
}

void StageTransfers::Give(const FlowKey& key, torch::Tensor tensor) {
  const int to = plan_.parts[static_cast<size_t>(key.part)].stage;
  if (to == stage_) {
    handed_over_[key] = std::move(tensor);
    return;
  }
  const comm::TransferId id = Id(key);
  std::deque<Transfer>& open = outgoing_[id.tensor];
  while (open.size() >= kept_ahead()) {
    Wait(open.front());
    open.pop_front();
  }
  Transfer& transfer = open.emplace_back();
  transfer.tensor = Travels(tensor) ? std::move(tensor) : tensor.to(at::kCPU);
  transfer.request = link_.StartSend(BufferOf(transfer.tensor), to, id);
}

void StageTransfers::Progress() {
  for (auto& [key, transfer] : incoming_) transfer.request->Test();
  for (auto& [flow, open] : outgoing_) {
    while (!open.empty() && open.front().request->Test()) open.pop_front();
  }
}

void StageTransfers::FinishStep() {
  for (auto& [flow, open] : outgoing_) {
    for (Transfer& transfer : open) Wait(transfer);
    open.clear();
  }
}

void StageTransfers::Wait(Transfer& transfer) {
  const auto begin = std::chrono::steady_clock::now();
  transfer.request->Wait();
  blocked_seconds_ +=
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

}  // namespace graft::sharding
