// What every communicator must do, checked against closed formulas. A case is a function that all
// ranks run together; the programs beside this file run them over threads, MPI and NCCL. Buffers go
// through ContractMemory, so that the same checks serve device memory.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "base/status.h"
#include "comm/communicator.h"

namespace graft::testing {

// Where a case's buffers lie; the default is host memory.
struct ContractMemory {
  int device = -1;
  std::function<void*(std::size_t)> allocate;
  std::function<void(void*)> release;
  std::function<void(void* to, const void* from, std::size_t bytes)> copy;
};

struct ContractContext {
  comm::Communicator& comm;
  const ContractMemory& memory;
  int rank() const { return comm.rank(); }
  int size() const { return comm.size(); }
};

// Throws unless `call` throws a StatusError; returns its status.
absl::Status ErrorOf(const std::function<void()>& call);

// Values of one type in the memory of the context.
class ContractBuffer {
 public:
  ContractBuffer(const ContractContext& context, comm::DType type, std::vector<double> values);
  ~ContractBuffer();
  ContractBuffer(const ContractBuffer&) = delete;
  ContractBuffer& operator=(const ContractBuffer&) = delete;
  comm::Buffer get() { return {data_, count_, type_, memory_.device}; }
  std::vector<double> values() const;

 private:
  const ContractMemory& memory_;
  const comm::DType type_;
  const std::size_t count_;
  std::vector<char> host_;
  void* data_;
};

struct ContractCase {
  const char* name;
  void (*run)(const ContractContext& context);
};

// Holds for all backends.
const std::vector<ContractCase>& CommonContract();
// Also for the host backends: rank order to the bit, tags, sizes, deadlines.
const std::vector<ContractCase>& HostContract();

}  // namespace graft::testing
