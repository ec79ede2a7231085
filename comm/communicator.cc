#include "comm/communicator.h"

#include "absl/strings/str_cat.h"
#include "comm/flight_recorder.h"

namespace graft::comm {

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
