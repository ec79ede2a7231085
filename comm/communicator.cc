#include "comm/communicator.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "comm/flight_recorder.h"

namespace graft::comm {
namespace {

class DeferredAllReduce : public Request {
 public:
  DeferredAllReduce(Communicator& comm, Buffer inout, ReduceOp op)
      : comm_(comm), inout_(inout), op_(op) {}

  bool Test() override {
    Wait();
    return true;
  }
  void Wait() override {
    if (!std::exchange(done_, true)) comm_.AllReduce(inout_, op_);
  }

 private:
  Communicator& comm_;
  const Buffer inout_;
  const ReduceOp op_;
  bool done_ = false;
};

}  // namespace

std::size_t SizeOf(DType type) {
  switch (type) {
    case DType::kUint8:
      return 1;
    case DType::kBFloat16:
      return 2;
    case DType::kInt32:
    case DType::kFloat32:
      return 4;
    case DType::kInt64:
    case DType::kFloat64:
      return 8;
  }
  return 0;
}

std::unique_ptr<Request> Communicator::StartAllReduce(Buffer inout, ReduceOp op) {
  return std::make_unique<DeferredAllReduce>(*this, inout, op);
}

void Communicator::OpenBook(FlightRecorder* recorder, const std::string& name) {
  book_ = {.recorder = recorder, .name = name, .group = -1, .collectives = 0};
  if (recorder != nullptr) book_.group = recorder->AddGroup(name, rank(), size());
}

void Communicator::InheritFrom(const Communicator& parent, int color) {
  set_timeout(parent.timeout());
  if (parent.book_.recorder == nullptr) return;
  OpenBook(parent.book_.recorder, absl::StrCat(parent.book_.name, "/", name(), ":", color));
}

}  // namespace graft::comm
