#include "trainer/coordinator/journal.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <random>

#include "absl/strings/str_cat.h"
#include "base/hash.h"
#include "comm/crc32c.h"
#include "tests/sharding/power_loss.h"
#include "tests/testing/fault_io.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_folder.h"
#include "trainer/coordinator/bytes.h"

namespace graft::trainer {
namespace {

using ::graft::testing::FailsWith;
using ::graft::testing::FaultIo;
using ::graft::testing::IsOk;
using ::graft::testing::PowerLossIo;
using ::graft::testing::ScopedIo;
using ::graft::testing::TempFolder;

// Thousands of fsyncs: in memory, where the order of calls is the same and no disk is waited for.
const bool kInMemory = ::setenv("TMPDIR", "/dev/shm", 1) == 0;

const std::string kKey = Sha256Hex("run");

std::string Id(int item) { return Sha256Hex(absl::StrCat("item ", item)); }
std::string ResultOf(int item) { return absl::StrCat("result ", item, std::string(50, 'x')); }

std::unique_ptr<Journal> Open(const TempFolder& folder) {
  auto journal = Journal::Open(folder.path(), kKey);
  EXPECT_THAT(journal, IsOk());
  return journal.ok() ? std::move(*journal) : nullptr;
}

// Appends the results of [begin, end), each with an fsync of its own.
void Fill(Journal& journal, int begin, int end) {
  for (int item = begin; item < end; ++item) {
    journal.Append(Id(item), item % 7, ResultOf(item));
    ASSERT_THAT(journal.Sync(), IsOk());
  }
}

// How many results it holds: of the first ones, and with the right bytes.
int CheckedCount(const Journal& journal) {
  int count = 0;
  int worker = -1;
  while (const std::string* const result = journal.Find(Id(count), &worker)) {
    EXPECT_EQ(*result, ResultOf(count));
    EXPECT_EQ(worker, count % 7);
    ++count;
  }
  EXPECT_EQ(journal.num_results(), count);
  return count;
}

TEST(Journal, KeepsResultsAndCountsStarts) {
  ASSERT_TRUE(kInMemory);
  const TempFolder folder;
  {
    const auto journal = Open(folder);
    EXPECT_EQ(journal->start(), 1);
    Fill(*journal, 0, 20);
    journal->Append(Id(20), 6, ResultOf(20));
    EXPECT_TRUE(journal->dirty());
  }  // not synced: not kept
  const auto journal = Open(folder);
  EXPECT_EQ(journal->start(), 2);
  EXPECT_EQ(CheckedCount(*journal), 20);
  EXPECT_FALSE(journal->dirty());
}

TEST(Journal, LargeAndEmptyResultsComeBack) {
  const TempFolder folder;
  std::string large(5 << 20, '\0');
  std::mt19937 random(1);
  for (char& c : large) c = static_cast<char>(random());
  {
    const auto journal = Open(folder);
    journal->Append(Id(0), 1, large);
    journal->Append(Id(1), 2, "");
    ASSERT_THAT(journal->Sync(), IsOk());
  }
  const auto journal = Open(folder);
  ASSERT_NE(journal->Find(Id(0), nullptr), nullptr);
  EXPECT_TRUE(*journal->Find(Id(0), nullptr) == large);
  EXPECT_EQ(*journal->Find(Id(1), nullptr), "");
}

TEST(Journal, IsForOneProcessAtATime) {
  const TempFolder folder;
  const auto journal = Open(folder);
  const pid_t child = ::fork();
  if (child == 0) ::_exit(Journal::Open(folder.path(), kKey).status().ok() ? 0 : 74);
  int status = 0;
  ::waitpid(child, &status, 0);
  EXPECT_EQ(WEXITSTATUS(status), 74);
}

TEST(Journal, AnotherRunsJournalIsRefused) {
  const TempFolder folder;
  Open(folder).reset();
  EXPECT_THAT(Journal::Open(folder.path(), Sha256Hex("other")),
              FailsWith(ErrorKind::kIo, "holds results of another run"));
}

TEST(Journal, ForeignAndNewerFilesAreRefused) {
  const TempFolder folder;
  Open(folder).reset();
  const std::string good = folder.Read("journal.bin");
  for (const std::string& bad : {std::string(), std::string("x"), std::string(200, 'x'),
                                 good.substr(0, 40), std::string(100, '\0')}) {
    folder.Write("journal.bin", bad);
    EXPECT_THAT(Journal::Open(folder.path(), kKey), FailsWith(ErrorKind::kIo, "is not a journal"));
    EXPECT_EQ(folder.Read("journal.bin"), bad);
  }
}

// A whole record, as a disk does not damage it but a stranger may write it.
TEST(Journal, NumbersThatAreNoStartAreRefused) {
  const TempFolder folder;
  Open(folder).reset();
  const std::string good = folder.Read("journal.bin");
  for (const int64_t start : {INT64_MIN, int64_t{0}, INT64_MAX}) {
    std::string payload;
    AppendNumber(&payload, uint8_t{1});
    AppendNumber(&payload, uint32_t{sizeof(start)});
    AppendNumber(&payload, start);
    std::string record;
    AppendNumber(&record, static_cast<uint32_t>(payload.size()));
    AppendNumber(&record, comm::Crc32c(payload.data(), payload.size()));
    folder.Write("journal.bin", good + record + payload);
    EXPECT_THAT(Journal::Open(folder.path(), kKey),
                FailsWith(ErrorKind::kIo, absl::StrCat(start, " is no number of a start")));
  }
}

TEST(Journal, EveryTornEndIsCutAndTheRestIsKept) {
  const TempFolder folder;
  std::vector<size_t> ends;  // of the file after each result
  {
    const auto journal = Open(folder);
    for (int item = 0; item < 4; ++item) {
      Fill(*journal, item, item + 1);
      ends.push_back(std::filesystem::file_size(folder.Path("journal.bin")));
    }
  }
  const std::string whole = folder.Read("journal.bin");
  for (size_t size = ends[1]; size <= whole.size(); size += 3) {
    folder.Write("journal.bin", whole.substr(0, size));
    const auto journal = Open(folder);
    EXPECT_EQ(CheckedCount(*journal), size < ends[2] ? 2 : size < ends[3] ? 3 : 4) << size;
    Fill(*journal, static_cast<int>(journal->num_results()), 5);
  }
  EXPECT_EQ(CheckedCount(*Open(folder)), 5);
}

TEST(Journal, ZerosAtTheEndAreATornEnd) {
  const TempFolder folder;
  {
    const auto journal = Open(folder);
    Fill(*journal, 0, 3);
  }
  folder.Write("journal.bin", folder.Read("journal.bin") + std::string(8192, '\0'));
  EXPECT_EQ(CheckedCount(*Open(folder)), 3);
}

// F1 for the journal: a flipped bit costs the last record or stops the run, and never gives a wrong
// result.
TEST(Journal, EveryFlippedBitIsFound) {
  const TempFolder folder;
  {
    const auto journal = Open(folder);
    Fill(*journal, 0, 3);
  }
  const std::string good = folder.Read("journal.bin");
  const size_t last = good.size() - (good.size() - 80 - 21) / 3;  // inside the last record
  for (size_t bit = 0; bit < 8 * good.size(); ++bit) {
    std::string bad = good;
    bad[bit / 8] = static_cast<char>(bad[bit / 8] ^ (1 << (bit % 8)));
    folder.Write("journal.bin", bad);
    const auto journal = Journal::Open(folder.path(), kKey);
    if (journal.ok()) {
      EXPECT_GE(bit / 8, last) << "bit " << bit;
      EXPECT_EQ(CheckedCount(**journal), 2) << "bit " << bit;
    } else {
      EXPECT_EQ(KindOf(journal.status()), ErrorKind::kIo) << "bit " << bit;
    }
  }
}

TEST(Journal, AHundredThousandRecordsAreReplayedInTwoSeconds) {
  const TempFolder folder;
  class NoSync : public IoCalls {
    int Fsync(int) override { return 0; }
  } fast;
  constexpr int kRecords = 100'000;
  const std::string result(512, 'r');
  {
    const ScopedIo scoped(&fast);
    const auto journal = Open(folder);
    for (int item = 0; item < kRecords; ++item) {
      journal->Append(Id(item), 0, result);
      ASSERT_THAT(journal->Sync(), IsOk());
    }
  }
  const auto begin = std::chrono::steady_clock::now();
  const auto journal = Open(folder);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  EXPECT_EQ(journal->num_results(), kRecords);
  std::printf("replay of %d records: %.2f s\n", kRecords, seconds.count());
  // Five times the promise: machines that test are busy.
  EXPECT_LT(seconds.count(), 10);
}

// Opens the journal in `folder`, keeps ten results, three to an fsync; returns how many were
// acknowledged before it ended or died.
int KeepTen(const std::string& folder, int pipe = -1) {
  auto journal = Journal::Open(folder, kKey);
  if (!journal.ok()) return 0;
  int kept = static_cast<int>((*journal)->num_results());
  for (int item = kept; item < 10; ++item) {
    (*journal)->Append(Id(item), item % 7, ResultOf(item));
    if (item % 3 != 2 && item != 9) continue;
    if (!(*journal)->Sync().ok()) return kept;
    kept = item + 1;
    if (pipe >= 0 && ::write(pipe, &kept, sizeof(kept)) < 0) ::_exit(1);
  }
  return kept;
}

TEST(Journal, AKillAtAnySystemCallLosesNothingThatWasAcknowledged) {
  int calls = 0;
  {
    const TempFolder folder;
    FaultIo io(FaultIo::Fault::kNone, -1);
    const ScopedIo scoped(&io);
    ASSERT_EQ(KeepTen(folder.path()), 10);
    calls = io.count();
  }
  ASSERT_GT(calls, 10);
  for (int at = 0; at < calls; ++at) {
    const TempFolder folder;
    int ends[2];
    ASSERT_EQ(::pipe(ends), 0);
    const pid_t child = ::fork();
    if (child == 0) {
      FaultIo io(FaultIo::Fault::kKill, at);
      const ScopedIo scoped(&io);
      KeepTen(folder.path(), ends[1]);
      ::_exit(0);
    }
    ::close(ends[1]);
    int acknowledged = 0;
    for (int kept = 0; ::read(ends[0], &kept, sizeof(kept)) == sizeof(kept);) acknowledged = kept;
    ::close(ends[0]);
    ::waitpid(child, nullptr, 0);
    EXPECT_GE(CheckedCount(*Open(folder)), acknowledged) << "call " << at;
    EXPECT_EQ(KeepTen(folder.path()), 10) << "call " << at;
  }
}

TEST(Journal, AfterAFailedCallTheNextStartGoesOn) {
  for (const int error : {ENOSPC, EIO, EDQUOT, EROFS}) {
    for (int at = 0;; ++at) {
      const TempFolder folder;
      int kept = 0;
      bool reached = false;
      {
        FaultIo io(FaultIo::Fault::kError, at, error);
        const ScopedIo scoped(&io);
        kept = KeepTen(folder.path());
        reached = io.count() > at;
      }
      if (!reached) break;
      EXPECT_GE(CheckedCount(*Open(folder)), kept) << "call " << at;
      EXPECT_EQ(KeepTen(folder.path()), 10) << "call " << at;
    }
  }
}

TEST(Journal, InterruptedAndShortWritesAreContinued) {
  for (int at = 0; at < 20; ++at) {
    const TempFolder folder;
    {
      FaultIo io(FaultIo::Fault::kShort, at);
      const ScopedIo scoped(&io);
      EXPECT_EQ(KeepTen(folder.path()), 10);
    }
    EXPECT_EQ(CheckedCount(*Open(folder)), 10);
  }
}

TEST(Journal, NothingIsWrittenBehindHalfARecord) {
  const TempFolder folder;
  const auto journal = Open(folder);
  Fill(*journal, 0, 1);
  {
    FaultIo io(FaultIo::Fault::kError, 0, ENOSPC);
    const ScopedIo scoped(&io);
    journal->Append(Id(1), 1, ResultOf(1));
    EXPECT_THAT(journal->Sync(), FailsWith(ErrorKind::kIo, "No space left"));
  }
  journal->Append(Id(2), 2, ResultOf(2));
  EXPECT_THAT(journal->Sync(), FailsWith(ErrorKind::kIo, "No space left"));
}

TEST(Journal, PowerLossKeepsWhatWasAcknowledged) {
  const TempFolder folder;
  const std::string root = folder.Path("run");
  std::filesystem::create_directory(root);
  PowerLossIo io(root);
  std::vector<std::pair<size_t, int>> acknowledged;  // size of the log -> results
  {
    const ScopedIo scoped(&io);
    auto journal = Journal::Open(root, kKey);
    ASSERT_THAT(journal, IsOk());
    for (int item = 0; item < 10; ++item) {
      (*journal)->Append(Id(item), item % 7, ResultOf(item));
      ASSERT_THAT((*journal)->Sync(), IsOk());
      acknowledged.push_back({io.size(), item + 1});
    }
  }
  std::mt19937 random(5);
  for (int round = 0; round < 100; ++round) {
    const size_t end =
        acknowledged.front().first + random() % (io.size() + 1 - acknowledged.front().first);
    const std::string after = folder.Path("after");
    std::filesystem::remove_all(after);
    io.Rebuild(end, random, after);
    int least = 0;
    for (const auto& [size, results] : acknowledged) {
      if (size <= end) least = results;
    }
    auto journal = Journal::Open(after, kKey);
    ASSERT_THAT(journal, IsOk());
    EXPECT_GE(CheckedCount(**journal), least);
  }
}

}  // namespace
}  // namespace graft::trainer
