// Messages of any length between ranks that never block: what the coordinator's transports are made
// of in a real job. Each frame is a 16-byte head (magic, length, crc32c of the head) and its body;
// what arrives is checked, so that two ranks which drifted apart stop with kind bug. A receive is
// posted by Receive alone: who knows that nothing more comes does not call it and leaves nothing
// behind.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "comm/communicator.h"
#include "trainer/coordinator/transport.h"

namespace graft::trainer {

class RankLink {
 public:
  // Uses the tags `tag` and tag + 1 between this rank and `peer`. `comm` must outlive the link.
  RankLink(comm::Communicator& comm, int peer, int tag);

  void Send(std::string body);
  std::optional<std::string> Receive();
  // Waits until everything has left. Throws kind peer.
  void Flush();

 private:
  struct Head {
    static constexpr uint32_t kMagic = 0x53465247;  // "GRFS"
    uint32_t magic = kMagic;
    uint32_t bytes = 0;
    uint32_t zero = 0;
    uint32_t checksum = 0;
  };
  static_assert(sizeof(Head) == 16);
  struct Outgoing {
    Head head;
    std::string body;
    std::unique_ptr<comm::Request> head_request, body_request;  // end before what they send
  };
  static uint32_t ChecksumOf(const Head& head);
  void CheckHead() const;

  comm::Communicator& comm_;
  const int peer_;
  const int tag_;
  std::deque<std::unique_ptr<Outgoing>> outgoing_;
  Head head_;
  std::string body_;
  std::unique_ptr<comm::Request> head_request_, body_request_;
};

// A worker's end; the coordinator is on rank 0 of `comm`.
class RankWorkerTransport : public Transport {
 public:
  explicit RankWorkerTransport(comm::Communicator& comm);
  void Send(const Message& message) override;
  std::optional<Message> Receive() override;

 private:
  RankLink link_;
};

// The coordinator's end, on rank 0. Worker w sits on rank w * stride; worker 0 in this process.
class RankCoordinatorTransport : public Transport {
 public:
  RankCoordinatorTransport(comm::Communicator& comm, int num_workers, int stride,
                           std::unique_ptr<Transport> to_own_worker);
  void Send(const Message& message) override;
  std::optional<Message> Receive() override;
  void Flush();
  // Messages that came from other ranks so far.
  int64_t num_received() const { return num_received_; }

 private:
  std::unique_ptr<Transport> own_;
  std::map<int, RankLink> links_;  // by worker
  std::map<int, RankLink>::iterator next_;
  std::map<int, bool> said_bye_;
  int64_t num_received_ = 0;
};

}  // namespace graft::trainer
