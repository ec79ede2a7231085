#include "comm/stage_link.h"

#include <bit>
#include <cstddef>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status.h"
#include "comm/crc32c.h"
#include "comm/flight_recorder.h"

namespace graft::comm {
namespace {

static_assert(std::endian::native == std::endian::little,
              "the header travels as it lies in memory");

// A tensor's header and payload travel under neighbouring tags, so that an unexpected payload
// length can never be taken for a header.
int HeaderTag(const TransferId& id) { return 2 * static_cast<int>(id.tensor); }
int PayloadTag(const TransferId& id) { return HeaderTag(id) + 1; }

Buffer BytesOf(StageHeader* header) { return {header, sizeof(StageHeader), DType::kUint8, -1}; }

class SendRequest : public Request {
 public:
  SendRequest(Communicator& comm, Buffer data, int to, const TransferId& id,
              const StageHeader& header)
      : header_(header),
        header_request_(comm.StartSend(BytesOf(&header_), to, HeaderTag(id))),
        payload_request_(comm.StartSend(data, to, PayloadTag(id))) {}

  bool Test() override {
    // Both: testing is what moves them on.
    const bool header_done = header_request_->Test();
    return payload_request_->Test() && header_done;
  }
  void Wait() override {
    header_request_->Wait();
    payload_request_->Wait();
  }

 private:
  StageHeader header_;
  std::unique_ptr<Request> header_request_;
  std::unique_ptr<Request> payload_request_;
};

class RecvRequest : public Request {
 public:
  RecvRequest(Communicator& comm, Buffer data, int from, const TransferId& id,
              const StageHeader& expected)
      : from_(from),
        expected_(expected),
        header_request_(comm.StartRecv(BytesOf(&found_), from, HeaderTag(id))),
        payload_request_(comm.StartRecv(data, from, PayloadTag(id))) {}

  bool Test() override {
    if (!checked_ && !header_request_->Test()) return false;
    Check();
    return payload_request_->Test();
  }
  void Wait() override {
    if (!checked_) header_request_->Wait();
    Check();
    payload_request_->Wait();
  }

 private:
  void Check() {
    if (checked_) return;
    ThrowIfError(CheckStageHeader(expected_, found_, from_));
    checked_ = true;
  }

  const int from_;
  const StageHeader expected_;
  StageHeader found_;
  bool checked_ = false;
  std::unique_ptr<Request> header_request_;
  std::unique_ptr<Request> payload_request_;
};

uint32_t PayloadBytes(const Buffer& data) {
  GRAFT_CHECK(data.bytes() <= std::numeric_limits<uint32_t>::max(),
              absl::StrCat("a stage transfer of ", data.bytes(), " bytes, allowed 4294967295"));
  return static_cast<uint32_t>(data.bytes());
}

// Transfers started in its scope are booked as this micro-batch's.
class MicroBatchScope {
 public:
  MicroBatchScope(FlightRecorder* recorder, int64_t micro_batch) : recorder_(recorder) {
    if (recorder_ != nullptr) recorder_->set_micro_batch(micro_batch);
  }
  ~MicroBatchScope() {
    if (recorder_ != nullptr) recorder_->set_micro_batch(-1);
  }

 private:
  FlightRecorder* const recorder_;
};

}  // namespace

StageHeader MakeStageHeader(uint32_t plan_hash, const TransferId& id, uint32_t bytes) {
  StageHeader header;
  header.plan_hash = plan_hash;
  header.step = id.step;
  header.micro_batch = id.micro_batch;
  header.tensor = id.tensor;
  header.bytes = bytes;
  header.checksum = Crc32c(&header, offsetof(StageHeader, checksum));
  return header;
}

std::string ToString(const StageHeader& header) {
  return absl::StrFormat(
      "{magic %08x, plan %08x, step %d, micro-batch %d, tensor %d, bytes %d, crc %08x}",
      header.magic, header.plan_hash, header.step, header.micro_batch, header.tensor, header.bytes,
      header.checksum);
}

absl::Status CheckStageHeader(const StageHeader& expected, const StageHeader& found, int from) {
  // `expected` has a correct checksum over all other fields, so equal fields with a wrong checksum
  // differ too.
  const bool same = expected.magic == found.magic && expected.plan_hash == found.plan_hash &&
                    expected.step == found.step && expected.micro_batch == found.micro_batch &&
                    expected.tensor == found.tensor && expected.bytes == found.bytes &&
                    expected.checksum == found.checksum;
  if (same) return absl::OkStatus();
  return BugError(absl::StrCat("stage transfer from stage ", from, ": expected ",
                               ToString(expected), ", received ", ToString(found)));
}

StageLink::StageLink(Communicator& pipeline, uint32_t plan_hash)
    : pipeline_(pipeline), plan_hash_(plan_hash) {}

std::unique_ptr<Request> StageLink::StartSend(Buffer data, int to, const TransferId& id) {
  GRAFT_CHECK(id.tensor <= TransferId::kMaxTensor, absl::StrCat("tensor number ", id.tensor));
  const MicroBatchScope scope(pipeline_.book().recorder, id.micro_batch);
  if (data.device >= 0) return pipeline_.StartSend(data, to, PayloadTag(id));
  return std::make_unique<SendRequest>(pipeline_, data, to, id,
                                       MakeStageHeader(plan_hash_, id, PayloadBytes(data)));
}

std::unique_ptr<Request> StageLink::StartRecv(Buffer data, int from, const TransferId& id) {
  GRAFT_CHECK(id.tensor <= TransferId::kMaxTensor, absl::StrCat("tensor number ", id.tensor));
  const MicroBatchScope scope(pipeline_.book().recorder, id.micro_batch);
  if (data.device >= 0) return pipeline_.StartRecv(data, from, PayloadTag(id));
  return std::make_unique<RecvRequest>(pipeline_, data, from, id,
                                       MakeStageHeader(plan_hash_, id, PayloadBytes(data)));
}

}  // namespace graft::comm
