#include "comm/transfer_queue.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "comm/wait.h"

namespace graft::comm {
namespace {

constexpr int kSayingTag = 1;  // 0: the channels' ids

}  // namespace

void TransferQueue::Progress() {
  if (is_sender_) {
    while (!sayings_.empty() && sayings_.front()->request->Test()) sayings_.pop_front();
  }
  while (wire_.IsReady()) {
    if (in_call_ != nullptr) {
      wire_.NoteTaken(*in_call_);
      in_call_->handed_over = true;
      if (is_sender_ && announces_ && handed_over_ > 0) Say(*in_call_);
      ++handed_over_;
      in_call_ = nullptr;
    }
    if (waiting_.empty() || !MayHandOver(*waiting_.front())) return;
    in_call_ = std::move(waiting_.front());
    waiting_.pop_front();
    wire_.Call(*in_call_);
  }
}

bool TransferQueue::Settled() const {
  const bool connects = handed_over_ == 0;
  return connects || (in_call_ == nullptr && (waiting_.empty() || (announces_ && !is_sender_)));
}

TransferQueue::Announcement TransferQueue::Of(const QueuedTransfer& transfer,
                                              uint64_t number) const {
  return {number, transfer.data.bytes(), transfer.tag};
}

void TransferQueue::Say(const QueuedTransfer& transfer) {
  auto saying = std::make_unique<Saying>(Saying{Of(transfer, handed_over_), nullptr});
  saying->request =
      host_.StartSend({&saying->said, sizeof(Announcement), DType::kUint8, -1}, peer_, kSayingTag);
  sayings_.push_back(std::move(saying));
}

bool TransferQueue::MayHandOver(const QueuedTransfer& transfer) {
  if (is_sender_ || !announces_ || handed_over_ == 0) return true;
  if (sayings_.empty()) {
    auto next = std::make_unique<Saying>();
    next->request =
        host_.StartRecv({&next->said, sizeof(Announcement), DType::kUint8, -1}, peer_, kSayingTag);
    sayings_.push_back(std::move(next));
  }
  if (!sayings_.front()->request->Test()) return false;
  const Announcement found = sayings_.front()->said, want = Of(transfer, handed_over_);
  sayings_.pop_front();
  if (found.number == want.number && found.bytes == want.bytes && found.tag == want.tag)
    return true;
  const auto text = [](const Announcement& said) {
    return absl::StrCat("{number ", said.number, ", tag ", said.tag, ", bytes ", said.bytes, "}");
  };
  ThrowIfError(BugError(Describe(
      host_, "device transfer",
      absl::StrCat("expected ", text(want), " from rank ", peer_, ", it sends ", text(found)))));
  return false;
}

}  // namespace graft::comm
