#include "trainer/coordinator/rank_link.h"

#include <cstddef>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "comm/crc32c.h"

namespace graft::trainer {
namespace {

// Of messages between coordinator and workers.
constexpr int kMessageTag = 0;

comm::Buffer BytesOf(void* data, std::size_t bytes) {
  return {data, bytes, comm::DType::kUint8, -1};
}

}  // namespace

RankLink::RankLink(comm::Communicator& comm, int peer, int tag)
    : comm_(comm), peer_(peer), tag_(tag) {}

uint32_t RankLink::ChecksumOf(const Head& head) {
  return comm::Crc32c(&head, offsetof(Head, checksum));
}

void RankLink::Send(std::string body) {
  auto message = std::make_unique<Outgoing>();
  message->body = std::move(body);
  message->head.bytes = static_cast<uint32_t>(message->body.size());
  message->head.checksum = ChecksumOf(message->head);
  message->head_request = comm_.StartSend(BytesOf(&message->head, sizeof(Head)), peer_, tag_);
  message->body_request =
      comm_.StartSend(BytesOf(message->body.data(), message->body.size()), peer_, tag_ + 1);
  outgoing_.push_back(std::move(message));
}

std::optional<std::string> RankLink::Receive() {
  // Testing is what moves the sends on, too.
  while (!outgoing_.empty() && outgoing_.front()->head_request->Test() &&
         outgoing_.front()->body_request->Test()) {
    outgoing_.pop_front();
  }
  if (body_request_ == nullptr) {
    if (head_request_ == nullptr) {
      head_request_ = comm_.StartRecv(BytesOf(&head_, sizeof(Head)), peer_, tag_);
    }
    if (!head_request_->Test()) return std::nullopt;
    head_request_.reset();
    CheckHead();
    body_.resize(head_.bytes);
    body_request_ = comm_.StartRecv(BytesOf(body_.data(), body_.size()), peer_, tag_ + 1);
  }
  if (!body_request_->Test()) return std::nullopt;
  body_request_.reset();
  return std::move(body_);
}

void RankLink::CheckHead() const {
  GRAFT_CHECK(head_.magic == Head::kMagic && head_.checksum == ChecksumOf(head_),
              absl::StrCat("rank ", peer_, " sent something else than a message of scoring (magic ",
                           absl::Hex(head_.magic), ", ", head_.bytes, " bytes)"));
}

void RankLink::Flush() {
  while (!outgoing_.empty()) {
    outgoing_.front()->head_request->Wait();
    outgoing_.front()->body_request->Wait();
    outgoing_.pop_front();
  }
}

RankWorkerTransport::RankWorkerTransport(comm::Communicator& comm) : link_(comm, 0, kMessageTag) {}

void RankWorkerTransport::Send(const Message& message) { link_.Send(EncodeMessage(message)); }

std::optional<Message> RankWorkerTransport::Receive() {
  const std::optional<std::string> bytes = link_.Receive();
  if (!bytes.has_value()) return std::nullopt;
  return ValueOrThrow(DecodeMessage(*bytes));
}

RankCoordinatorTransport::RankCoordinatorTransport(comm::Communicator& comm, int num_workers,
                                                   int stride,
                                                   std::unique_ptr<Transport> to_own_worker)
    : own_(std::move(to_own_worker)) {
  for (int worker = 1; worker < num_workers; ++worker) {
    links_.emplace(std::piecewise_construct, std::forward_as_tuple(worker),
                   std::forward_as_tuple(comm, worker * stride, kMessageTag));
  }
  next_ = links_.begin();
}

void RankCoordinatorTransport::Send(const Message& message) {
  if (message.worker == 0) return own_->Send(message);
  links_.at(message.worker).Send(EncodeMessage(message));
}

std::optional<Message> RankCoordinatorTransport::Receive() {
  if (std::optional<Message> message = own_->Receive()) return message;
  // Once around, from where the last message came: nobody is served last for ever.
  for (size_t i = 0; i < links_.size(); ++i) {
    if (next_ == links_.end()) next_ = links_.begin();
    auto& [worker, link] = *next_++;
    if (said_bye_[worker]) continue;
    const std::optional<std::string> bytes = link.Receive();
    if (!bytes.has_value()) continue;
    Message message = ValueOrThrow(DecodeMessage(*bytes));
    GRAFT_CHECK(message.worker == worker,
                absl::StrCat("worker ", worker, " sent a message of ", message.worker));
    said_bye_[worker] = message.kind == Message::Kind::kBye;
    ++num_received_;
    return message;
  }
  return std::nullopt;
}

void RankCoordinatorTransport::Flush() {
  for (auto& [worker, link] : links_) link.Flush();
}

}  // namespace graft::trainer
