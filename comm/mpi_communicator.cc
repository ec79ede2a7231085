#include "comm/mpi_communicator.h"

#include <mpi.h>
#include <unistd.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "comm/host_communicator.h"
#include "comm/mpi_embed.h"
#include "comm/world.h"

namespace graft::comm {
namespace {

// How long an abandoned receive may take to be cancelled. MPI answers at once unless it has lost
// its peer.
constexpr absl::Duration kCancelLimit = absl::Seconds(1);

std::string MpiErrorText(int code) {
  char text[MPI_MAX_ERROR_STRING] = "";
  int length = 0;
  MPI_Error_string(code, text, &length);
  std::string line(text, static_cast<std::size_t>(length));
  std::replace(line.begin(), line.end(), '\n', ' ');
  return line;
}

bool IsMpiFinalised() {
  int finalised = 0;
  MPI_Finalized(&finalised);
  return finalised != 0;
}

class MpiCommunicator : public HostCommunicator {
 public:
  // Takes `comm` over.
  MpiCommunicator(MPI_Comm comm, const MpiOptions& options);
  ~MpiCommunicator() override;

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  const char* backend() const override { return "mpi"; }
  std::unique_ptr<Communicator> Split(int color, int key, const std::string& name) override;
  [[noreturn]] void Abort(int exit_code) override;

  // Throws kind peer, or kind bug for a message of the wrong size, when `code` is an error.
  void Check(int code, const char* operation, int peer) const;

 protected:
  std::unique_ptr<HostRequest> PostSend(const void* data, std::size_t bytes, int to,
                                        int tag) override;
  std::unique_ptr<HostRequest> PostRecv(void* data, std::size_t bytes, int from, int tag) override;
  bool HasUnclaimed(int from, int tag) override;

 private:
  MPI_Comm comm_;
  std::size_t piece_bytes_;
  int rank_ = 0;
  int size_ = 1;
};

// One message: as many MPI messages as it takes.
class MpiRequest : public HostRequest {
 public:
  MpiRequest(MpiCommunicator* comm, const char* operation, int peer, bool is_send)
      : HostRequest(comm, operation, peer), mpi_(comm), is_send_(is_send) {}

  ~MpiRequest() override {
    if (next_ == pieces_.size() || IsMpiFinalised()) return;
    for (; next_ < pieces_.size(); ++next_) Abandon(&pieces_[next_].request);
  }

  MPI_Request* AddPiece(int bytes) {
    pieces_.push_back({MPI_REQUEST_NULL, bytes});
    return &pieces_.back().request;
  }

  bool Test() override {
    for (; next_ < pieces_.size(); ++next_) {
      int done = 0;
      MPI_Status status;
      mpi_->Check(MPI_Test(&pieces_[next_].request, &done, &status), operation(), peer());
      if (!done) return false;
      if (!is_send_) CheckLength(status);
    }
    return true;
  }

 private:
  struct Piece {
    MPI_Request request;
    int bytes;
  };

  void CheckLength(const MPI_Status& status) const {
    int received = 0;
    MPI_Get_count(&status, MPI_BYTE, &received);
    GRAFT_CHECK(received == pieces_[next_].bytes,
                Describe(*comm_, operation(),
                         absl::StrCat("rank ", peer(), " sent ", received, " bytes, expected ",
                                      pieces_[next_].bytes)));
  }

  // A receive is cancelled. A send cannot be: it gets the communicator's time to leave, then MPI
  // keeps the memory in use, and the peer error that is on its way up ends the job.
  void Abandon(MPI_Request* request) {
    if (*request == MPI_REQUEST_NULL) return;
    if (!is_send_) MPI_Cancel(request);
    Waiter waiter(is_send_ && !std::uncaught_exceptions() ? comm_->timeout() : kCancelLimit);
    int done = 0;
    while (!done) {
      if (MPI_Test(request, &done, MPI_STATUS_IGNORE) != MPI_SUCCESS) return;
      if (!done && !waiter.Pause()) break;
    }
    if (!done) MPI_Request_free(request);
  }

  MpiCommunicator* const mpi_;
  const bool is_send_;
  std::vector<Piece> pieces_;
  std::size_t next_ = 0;
};

MpiCommunicator::MpiCommunicator(MPI_Comm comm, const MpiOptions& options)
    : HostCommunicator(options.name), comm_(comm), piece_bytes_(options.piece_bytes) {
  GRAFT_CHECK(piece_bytes_ >= 1 && piece_bytes_ <= std::numeric_limits<int>::max(),
              absl::StrCat("piece_bytes ", piece_bytes_, ", allowed 1 to 2147483647"));
  MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN);
  MPI_Comm_rank(comm_, &rank_);
  MPI_Comm_size(comm_, &size_);
}

MpiCommunicator::~MpiCommunicator() {
  // MPI_Comm_free is collective; when an error unwinds this rank the others are elsewhere.
  if (IsMpiFinalised() || std::uncaught_exceptions()) return;
  // Messages that nobody took, after collectives in a wrong order, would reach whichever
  // communicator MPI gives the same number next.
  int left = 0;
  MPI_Iprobe(MPI_ANY_SOURCE, MPI_ANY_TAG, comm_, &left, MPI_STATUS_IGNORE);
  if (left == 0) MPI_Comm_free(&comm_);
}

void MpiCommunicator::Check(int code, const char* operation, int peer) const {
  if (code == MPI_SUCCESS) return;
  int error_class = 0;
  MPI_Error_class(code, &error_class);
  const std::string text =
      Describe(*this, operation, absl::StrCat("with rank ", peer, ": ", MpiErrorText(code)));
  GRAFT_CHECK(error_class != MPI_ERR_TRUNCATE, text);
  throw StatusError(PeerError(text));
}

std::unique_ptr<HostRequest> MpiCommunicator::PostSend(const void* data, std::size_t bytes, int to,
                                                       int tag) {
  auto request = std::make_unique<MpiRequest>(this, "Send", to, /*is_send=*/true);
  std::size_t begin = 0;
  do {
    const int piece = static_cast<int>(std::min(bytes - begin, piece_bytes_));
    Check(MPI_Isend(static_cast<const char*>(data) + begin, piece, MPI_BYTE, to,
                    tag + kReservedTags, comm_, request->AddPiece(piece)),
          "Send", to);
    begin += static_cast<std::size_t>(piece);
  } while (begin < bytes);
  return request;
}

std::unique_ptr<HostRequest> MpiCommunicator::PostRecv(void* data, std::size_t bytes, int from,
                                                       int tag) {
  auto request = std::make_unique<MpiRequest>(this, "Recv", from, /*is_send=*/false);
  std::size_t begin = 0;
  do {
    const int piece = static_cast<int>(std::min(bytes - begin, piece_bytes_));
    Check(MPI_Irecv(static_cast<char*>(data) + begin, piece, MPI_BYTE, from, tag + kReservedTags,
                    comm_, request->AddPiece(piece)),
          "Recv", from);
    begin += static_cast<std::size_t>(piece);
  } while (begin < bytes);
  return request;
}

bool MpiCommunicator::HasUnclaimed(int from, int tag) {
  int found = 0;
  Check(MPI_Iprobe(from, tag + kReservedTags, comm_, &found, MPI_STATUS_IGNORE), "Probe", from);
  return found != 0;
}

std::unique_ptr<Communicator> MpiCommunicator::Split(int color, int key, const std::string& name) {
  // MPI_Comm_split blocks without a deadline: make sure first that everybody is here.
  Barrier();
  MPI_Comm part = MPI_COMM_NULL;
  Check(MPI_Comm_split(comm_, color, key, &part), "Split", 0);
  auto split = std::make_unique<MpiCommunicator>(part, MpiOptions{name, piece_bytes_});
  split->InheritFrom(*this, color);
  return split;
}

void MpiCommunicator::Abort(int exit_code) {
  int is_main = 0;
  if (!IsMpiFinalised()) MPI_Is_thread_main(&is_main);
  // Other threads may not call MPI. A rank that exits with an error ends the job as well: the
  // launcher sees to that.
  if (is_main) MPI_Abort(comm_, exit_code);
  _exit(exit_code);
}

}  // namespace

std::unique_ptr<Communicator> AdoptMpi(MPI_Comm comm, const MpiOptions& options) {
  MPI_Comm copy = MPI_COMM_NULL;
  const int code = MPI_Comm_dup(comm, &copy);
  if (code != MPI_SUCCESS) {
    throw StatusError(PeerError(absl::StrCat("MPI_Comm_dup: ", MpiErrorText(code))));
  }
  return std::make_unique<MpiCommunicator>(copy, options);
}

absl::StatusOr<std::unique_ptr<Communicator>> InitialiseMpi() {
  int provided = MPI_THREAD_SINGLE;
  // Not FUNNELED: on a GPU autograd runs backward passes, which gather shared weights, on a thread
  // of its own while the main thread waits.
  const int code = MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &provided);
  if (code != MPI_SUCCESS) return PeerError(absl::StrCat("MPI_Init_thread: ", MpiErrorText(code)));
  if (provided < MPI_THREAD_SERIALIZED) {
    return PeerError(
        absl::StrCat("MPI offers thread level ", provided, " (", MpiVersion(),
                     "), needed MPI_THREAD_SERIALIZED; use an MPI built with threads"));
  }
  MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
  try {
    return AdoptMpi(MPI_COMM_WORLD);
  } catch (const StatusError& error) {
    return error.status();
  }
}

void FinaliseMpi() { MPI_Finalize(); }

const char* MpiVersion() {
  static const std::string version = [] {
    char text[MPI_MAX_LIBRARY_VERSION_STRING] = "";
    int length = 0;
    MPI_Get_library_version(text, &length);
    const std::string all(text, static_cast<std::size_t>(length));
    return all.substr(0, all.find_first_of(",\n"));
  }();
  return version.c_str();
}

}  // namespace graft::comm
