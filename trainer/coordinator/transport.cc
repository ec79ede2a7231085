#include "trainer/coordinator/transport.h"

#include <deque>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "comm/monotonic.h"
#include "trainer/coordinator/bytes.h"

namespace graft::trainer {
namespace {

// What a queue between two ends holds; each end has one to write and one to read.
using Queue = std::deque<Message>;

class LocalTransport : public Transport {
 public:
  LocalTransport(std::shared_ptr<Queue> out, std::shared_ptr<Queue> in)
      : out_(std::move(out)), in_(std::move(in)) {}
  void Send(const Message& message) override { out_->push_back(message); }
  std::optional<Message> Receive() override {
    if (in_->empty()) return std::nullopt;
    Message message = std::move(in_->front());
    in_->pop_front();
    return message;
  }

 private:
  const std::shared_ptr<Queue> out_, in_;
};

}  // namespace

double MonotonicSeconds() { return comm::SecondsOf(comm::MonotonicNanos()); }

std::string EncodeMessage(const Message& message) {
  std::string out;
  AppendNumber(&out, static_cast<uint8_t>(message.kind));
  AppendNumber(&out, message.worker);
  AppendNumber(&out, message.item);
  AppendNumber(&out, message.epoch);
  AppendNumber(&out, message.start);
  AppendNumber(&out, message.progress);
  AppendNumber(&out, message.capacity);
  AppendNumber(&out, static_cast<uint8_t>(message.stop));
  AppendNumber(&out, static_cast<uint8_t>(message.numeric));
  AppendNumber(&out, message.seconds);
  AppendNumber(&out, static_cast<uint32_t>(message.held.size()));
  for (const HeldItem& held : message.held) {
    AppendNumber(&out, held.epoch);
    AppendNumber(&out, static_cast<uint8_t>(held.state));
  }
  return out + message.bytes;
}

absl::StatusOr<Message> DecodeMessage(const std::string& bytes) {
  ByteReader reader(bytes);
  Message message;
  const auto kind = reader.Number<uint8_t>();
  message.kind = static_cast<Message::Kind>(kind);
  message.worker = reader.Number<int32_t>();
  message.item = reader.Number<int32_t>();
  message.epoch = reader.Number<int64_t>();
  message.start = reader.Number<int64_t>();
  message.progress = reader.Number<int64_t>();
  message.capacity = reader.Number<int32_t>();
  message.stop = reader.Number<uint8_t>() != 0;
  message.numeric = reader.Number<uint8_t>() != 0;
  message.seconds = reader.Number<double>();
  const auto count = reader.Number<uint32_t>();
  for (uint32_t i = 0; i < count && reader.ok(); ++i) {
    HeldItem held;
    held.epoch = reader.Number<int64_t>();
    held.state = static_cast<HeldItem::State>(reader.Number<uint8_t>());
    message.held.push_back(held);
  }
  message.bytes = std::string(reader.rest());
  constexpr auto kLast = static_cast<uint8_t>(Message::Kind::kFinish);
  if (!reader.ok() || kind < 1 || kind > kLast) {
    return BugError(absl::StrCat("a message of ", bytes.size(), " bytes and kind ", kind,
                                 " is none of the coordinator's"));
  }
  return message;
}

std::pair<std::unique_ptr<Transport>, std::unique_ptr<Transport>> MakeLocalTransports() {
  auto to_worker = std::make_shared<Queue>(), to_coordinator = std::make_shared<Queue>();
  return {std::make_unique<LocalTransport>(to_worker, to_coordinator),
          std::make_unique<LocalTransport>(to_coordinator, to_worker)};
}

}  // namespace graft::trainer
