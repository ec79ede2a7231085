#include "comm/node_board.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <new>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/status.h"

namespace graft::comm {
namespace {

static_assert(std::atomic<int32_t>::is_always_lock_free &&
                  std::atomic<int64_t>::is_always_lock_free,
              "atomics of shared memory must not need a lock");
constexpr std::size_t kSlotsOffset = 64;

}  // namespace

std::size_t NodeBoard::BytesFor(int slots) {
  return kSlotsOffset + sizeof(BoardSlot) * static_cast<std::size_t>(slots);
}

// The objects live in zeroed memory that several processes share: zero is their initial state and
// nobody may run a constructor over what another one has written.
NodeBoard::NodeBoard(void* memory, std::size_t bytes, int slots, bool mapped)
    : memory_(memory),
      bytes_(bytes),
      size_(slots),
      mapped_(mapped),
      alarm_(reinterpret_cast<std::atomic<int32_t>*>(memory)),
      slots_(reinterpret_cast<BoardSlot*>(static_cast<char*>(memory) + kSlotsOffset)) {}

NodeBoard::~NodeBoard() {
  if (mapped_) {
    ::munmap(memory_, bytes_);
  } else {
    ::operator delete(memory_);
  }
}

std::shared_ptr<NodeBoard> NodeBoard::InMemory(int slots) {
  const std::size_t bytes = BytesFor(slots);
  void* const memory = ::operator new(bytes);
  std::memset(memory, 0, bytes);
  return std::shared_ptr<NodeBoard>(new NodeBoard(memory, bytes, slots, /*mapped=*/false));
}

absl::StatusOr<std::shared_ptr<NodeBoard>> NodeBoard::Open(const std::string& name, int slots) {
  const std::size_t bytes = BytesFor(slots);
  const auto failed = [&](const char* call) {
    return IoError(absl::StrCat("shared memory ", name, ": ", call, ": ", std::strerror(errno)));
  };
  const UniqueFd file(::shm_open(("/" + name).c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0600));
  if (!file.valid()) return failed("shm_open");
  // All ranks ask for the same size, so who is second changes nothing.
  if (::ftruncate(file.get(), static_cast<off_t>(bytes)) != 0) return failed("ftruncate");
  void* const memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file.get(), 0);
  if (memory == MAP_FAILED) return failed("mmap");
  return std::shared_ptr<NodeBoard>(new NodeBoard(memory, bytes, slots, /*mapped=*/true));
}

void NodeBoard::Remove(const std::string& name) { ::shm_unlink(("/" + name).c_str()); }

bool NodeBoard::RaiseAlarm(int rank) {
  int32_t nobody = 0;
  return alarm_->compare_exchange_strong(nobody, rank + 1, std::memory_order_acq_rel);
}

}  // namespace graft::comm
