#include "sharding/gather.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "base/status.h"
#include "comm/agree.h"
#include "sharding/buffer.h"

namespace graft::sharding {
namespace {

constexpr int kTag = 29990;

// What travels ahead of a flat float32 buffer: [[name, layer, [shape]], ...].
nlohmann::json Entry(const std::string& name, int layer, const torch::Tensor& tensor) {
  return {name, layer, tensor.sizes().vec()};
}

struct Piece {
  std::string name;
  int layer = 0;
  torch::Tensor value;
};

int64_t CountOf(const nlohmann::json& entry) {
  int64_t count = 1;
  for (int64_t dim : entry[2].get<std::vector<int64_t>>()) count *= dim;
  return count;
}

std::vector<Piece> CutFlat(const nlohmann::json& entries, const torch::Tensor& flat) {
  std::vector<Piece> pieces;
  int64_t offset = 0;
  for (const nlohmann::json& entry : entries) {
    const auto shape = entry[2].get<std::vector<int64_t>>();
    const int64_t count = CountOf(entry);
    pieces.push_back({entry[0].get<std::string>(), entry[1].get<int>(),
                      flat.narrow(0, offset, count).view(shape)});
    offset += count;
  }
  return pieces;
}

int64_t CountAll(const nlohmann::json& entries) {
  int64_t count = 0;
  for (const nlohmann::json& entry : entries) count += CountOf(entry);
  return count;
}

}  // namespace

NamedTensors GatherParameters(comm::Communicator& pipeline, const adapters::AdapterSet& set) {
  return GatherValues(pipeline, set, set.values().detach());
}

NamedTensors GatherValues(comm::Communicator& pipeline, const adapters::AdapterSet& set,
                          const torch::Tensor& values) {
  nlohmann::json mine = nlohmann::json::array();
  const torch::Tensor host = values.to(at::kCPU);
  std::vector<torch::Tensor> parts;
  for (size_t i = 0; i < set.parameters().size(); ++i) {
    const adapters::NamedParameter& parameter = set.parameters()[i];
    mine.push_back(Entry(parameter.name, parameter.layer, parameter.value));
    parts.push_back(host.narrow(0, set.offset(i), parameter.value.numel()));
  }
  const std::vector<std::string> all = comm::AllGatherStrings(pipeline, mine.dump());
  torch::Tensor flat = parts.empty() ? at::empty({0}) : at::cat(parts);
  if (pipeline.rank() > 0) {
    pipeline.Send(BufferOf(flat), 0, kTag);
    return {};
  }
  std::vector<Piece> pieces = CutFlat(mine, flat);
  for (int stage = 1; stage < pipeline.size(); ++stage) {
    const nlohmann::json entries = nlohmann::json::parse(all[static_cast<size_t>(stage)]);
    torch::Tensor received = at::empty({CountAll(entries)});
    pipeline.Recv(BufferOf(received), stage, kTag);
    for (Piece& piece : CutFlat(entries, received)) pieces.push_back(std::move(piece));
  }
  // The chunks of an interleaved schedule lie apart.
  std::stable_sort(pieces.begin(), pieces.end(),
                   [](const Piece& a, const Piece& b) { return a.layer < b.layer; });
  NamedTensors tensors;
  for (Piece& piece : pieces) tensors.emplace_back(piece.name, piece.value);
  return tensors;
}

absl::Status ScatterParameters(comm::Communicator& comm, const NamedTensors& tensors,
                               adapters::AdapterSet& set) {
  nlohmann::json entries = nlohmann::json::array();
  torch::Tensor flat = at::empty({0});
  if (comm.rank() == 0) {
    std::vector<torch::Tensor> values;
    for (const auto& [name, tensor] : tensors) {
      entries.push_back(Entry(name, 0, tensor));
      values.push_back(tensor.detach().to(at::kCPU, at::kFloat).reshape({-1}));
    }
    if (!values.empty()) flat = at::cat(values);
  }
  entries = nlohmann::json::parse(comm::BroadcastString(comm, entries.dump(), 0));
  if (comm.rank() > 0) flat = at::empty({CountAll(entries)});
  comm.Broadcast(BufferOf(flat), 0);
  NamedTensors received;
  for (Piece& piece : CutFlat(entries, flat)) received.emplace_back(piece.name, piece.value);
  return comm::AgreeOnStatus(comm, set.Load(received));
}

models::QuantizationReport GatherQuantization(comm::Communicator& pipeline,
                                              const models::QuantizationReport& mine) {
  const nlohmann::json entry = {mine.matrices, mine.error_sum, mine.largest, mine.largest_matrix};
  models::QuantizationReport all;
  for (const std::string& text : comm::AllGatherStrings(pipeline, entry.dump())) {
    const nlohmann::json stage = nlohmann::json::parse(text);
    all.Append({.matrices = stage[0].get<int64_t>(),
                .error_sum = stage[1].get<double>(),
                .largest = stage[2].get<double>(),
                .largest_matrix = stage[3].get<std::string>()});
  }
  return all;
}

}  // namespace graft::sharding
