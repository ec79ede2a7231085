#include "comm/booking.h"

#include <exception>
#include <utility>

#include "comm/flight_recorder.h"
#include "comm/ordered_reduce.h"

namespace graft::comm {
namespace {

FlightEntry EntryOf(const FlightBook& book, const char* operation, const Buffer& buffer, int peer) {
  FlightEntry entry;
  entry.group = book.group;
  entry.op = operation;
  entry.type = NameOf(buffer.type);
  entry.peer = peer;
  entry.bytes = static_cast<int64_t>(buffer.bytes());
  return entry;
}

class BookedRequest : public Request {
 public:
  BookedRequest(FlightRecorder* recorder, int64_t sequence, std::unique_ptr<Request> request)
      : recorder_(recorder), sequence_(sequence), request_(std::move(request)) {}

  bool Test() override {
    const bool done = request_->Test();
    if (done) Finish();
    return done;
  }
  void Wait() override {
    if (!finished_) recorder_->Wait(sequence_);
    request_->Wait();
    Finish();
  }

 private:
  void Finish() {
    if (!finished_) recorder_->Finish(sequence_);
    finished_ = true;
  }

  FlightRecorder* const recorder_;
  const int64_t sequence_;
  const std::unique_ptr<Request> request_;
  bool finished_ = false;
};

}  // namespace

BookedCollective::BookedCollective(Communicator& comm, const char* operation, const Buffer& buffer,
                                   int peer)
    : recorder_(comm.book().recorder), exceptions_(std::uncaught_exceptions()) {
  if (recorder_ == nullptr) return;
  FlightEntry entry = EntryOf(comm.book(), operation, buffer, peer);
  entry.number = ++comm.book().collectives;
  sequence_ = recorder_->Begin(entry);
  recorder_->Wait(sequence_);
}

BookedCollective::~BookedCollective() {
  if (recorder_ != nullptr && std::uncaught_exceptions() == exceptions_)
    recorder_->Finish(sequence_);
}

std::unique_ptr<Request> BookTransfer(Communicator& comm, const char* operation,
                                      const Buffer& buffer, int peer,
                                      std::unique_ptr<Request> request) {
  FlightRecorder* const recorder = comm.book().recorder;
  if (recorder == nullptr) return request;
  const int64_t sequence = recorder->Begin(EntryOf(comm.book(), operation, buffer, peer));
  return std::make_unique<BookedRequest>(recorder, sequence, std::move(request));
}

std::unique_ptr<Request> BookStarted(Communicator& comm, const char* operation,
                                     const Buffer& buffer,
                                     const std::function<std::unique_ptr<Request>()>& start) {
  FlightRecorder* const recorder = comm.book().recorder;
  if (recorder == nullptr) return start();
  FlightEntry entry = EntryOf(comm.book(), operation, buffer, /*peer=*/-1);
  entry.number = ++comm.book().collectives;
  const int64_t sequence = recorder->Begin(entry);
  recorder->Wait(sequence);
  std::unique_ptr<Request> request = start();
  recorder->StopWaiting(sequence);
  return std::make_unique<BookedRequest>(recorder, sequence, std::move(request));
}

}  // namespace graft::comm
