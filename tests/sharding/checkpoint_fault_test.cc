// What a checkpoint promises when calls fail, processes die, power goes and bytes rot
// (reliability.md 8: K2, K3, F1, F2, F3). Writer and validator alone. `--long` runs the full
// counts.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <functional>
#include <random>

#include "base/file.h"
#include "base/hash.h"
#include "tests/sharding/power_loss.h"
#include "tests/sharding/tiny_run.h"
#include "tests/testing/fault_io.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_folder.h"

namespace graft::sharding {
namespace {

using ::graft::testing::FailsWith;
using ::graft::testing::FaultIo;
using ::graft::testing::IsOk;
using ::graft::testing::NewestValid;
using ::graft::testing::PowerLossIo;
using ::graft::testing::SaveTiny;
using ::graft::testing::ScopedIo;
using ::graft::testing::TempFolder;
using ::testing::AnyOf;
using ::testing::Eq;

bool g_long = false;

int Count(int in_long_form, int in_short_form) { return g_long ? in_long_form : in_short_form; }

std::string StepPath(const TempFolder& temp, int64_t step) {
  return temp.Path(StepFolderName(step));
}

// The calls of the second save into a folder, whose retention removes the first.
int CallsOfASave() {
  const TempFolder temp;
  EXPECT_THAT(SaveTiny(temp.path(), 1, 5, 1), IsOk());
  FaultIo io(FaultIo::Fault::kNone, 0);
  const ScopedIo scoped(&io);
  EXPECT_THAT(SaveTiny(temp.path(), 2, 5, 1), IsOk());
  return io.count();
}

// Runs `body` in a process of its own; its wait status.
int InChild(const std::function<void()>& body) {
  std::fflush(nullptr);
  const pid_t child = ::fork();
  if (child == 0) {
    body();
    ::_exit(0);
  }
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  return status;
}

// What the next start does: clean up and save again.
void ExpectGoesOn(const TempFolder& temp) {
  ASSERT_THAT(RemoveLeftovers(temp.path()), IsOk());
  for (const auto& entry : std::filesystem::directory_iterator(temp.path())) {
    const std::string name = entry.path().filename().string();
    EXPECT_TRUE(name == "LATEST" || ParseStepFolderName(name).has_value()) << name;
  }
  ASSERT_THAT(SaveTiny(temp.path(), 2), IsOk());
  EXPECT_EQ(NewestValid(temp.path()), 2);
}

TEST(CheckpointFaults, KillAtEveryCallLeavesTheOldOrTheNewOne) {  // K2
  const int calls = CallsOfASave();
  ASSERT_GT(calls, 40);
  int old_ones = 0;
  for (int repeat = 0; repeat < Count(3, 1); ++repeat) {
    for (int at = 0; at < calls; ++at) {
      const TempFolder temp;
      ASSERT_THAT(SaveTiny(temp.path(), 1, 5, 1), IsOk());
      const int status = InChild([&] {
        FaultIo io(FaultIo::Fault::kKill, at);
        const ScopedIo scoped(&io);
        SaveTiny(temp.path(), 2, 5, 1).IgnoreError();
      });
      ASSERT_TRUE(WIFSIGNALED(status)) << at;
      const int64_t newest = NewestValid(temp.path());
      ASSERT_THAT(newest, AnyOf(Eq(1), Eq(2))) << at;
      old_ones += newest == 1 ? 1 : 0;
      ExpectGoesOn(temp);
    }
  }
  EXPECT_GT(old_ones, 0);
  std::printf("K2: killed at each of %d calls, %d times\n", calls, Count(3, 1));
}

TEST(CheckpointFaults, PowerLossLeavesTheOldOrTheNewOne) {  // K3
  const TempFolder temp;
  PowerLossIo io(temp.path());
  size_t first = 0;
  {
    const ScopedIo scoped(&io);
    ASSERT_THAT(SaveTiny(temp.path(), 1, 5, 1), IsOk());
    first = io.size();
    ASSERT_THAT(SaveTiny(temp.path(), 2, 5, 1), IsOk());
  }
  std::mt19937 random(7);
  int new_ones = 0;
  const int crashes = Count(500, 50);
  for (int crash = 0; crash < crashes; ++crash) {
    const TempFolder rebuilt;
    const size_t end = first + random() % (io.size() - first + 1);
    io.Rebuild(end, random, rebuilt.path());
    const int64_t newest = NewestValid(rebuilt.path());
    ASSERT_THAT(newest, AnyOf(Eq(1), Eq(2))) << end << " of " << io.size();
    new_ones += newest == 2 ? 1 : 0;
    ExpectGoesOn(rebuilt);
  }
  EXPECT_GT(new_ones, 0);
  EXPECT_LT(new_ones, crashes);
  std::printf("K3: %d power losses, %d with the new checkpoint\n", crashes, new_ones);
}

// The model itself finds a writer that forgets an fsync.
class NoFsync : public PowerLossIo {
 public:
  using PowerLossIo::PowerLossIo;
  int Fsync(int) override { return 0; }
};

TEST(CheckpointFaults, ThePowerLossModelFindsAMissingFsync) {
  const TempFolder temp;
  NoFsync io(temp.path());
  {
    const ScopedIo scoped(&io);
    ASSERT_THAT(SaveTiny(temp.path(), 1), IsOk());
  }
  std::mt19937 random(7);
  int lost = 0;
  for (int crash = 0; crash < 20; ++crash) {
    const TempFolder rebuilt;
    io.Rebuild(io.size(), random, rebuilt.path());
    lost += NewestValid(rebuilt.path()) == -1 ? 1 : 0;
  }
  EXPECT_GT(lost, 10);
}

// Two checkpoints of which the newer one is damaged again and again.
class Damage : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_THAT(SaveTiny(temp_.path(), 1), IsOk());
    ASSERT_THAT(SaveTiny(temp_.path(), 2), IsOk());
    for (const auto& entry : std::filesystem::recursive_directory_iterator(StepPath(temp_, 2))) {
      if (!entry.is_regular_file()) continue;
      const std::string name = std::filesystem::relative(entry.path(), temp_.path()).string();
      files_.push_back(name);
      contents_.push_back(temp_.Read(name));
    }
    ASSERT_EQ(files_.size(), 5u);
  }
  // Puts `bytes` in the place of file `i` and expects that the older checkpoint is the newest
  // valid.
  void ExpectFound(size_t i, const std::string& bytes, const std::string& what) {
    ASSERT_NE(bytes, contents_[i]);
    temp_.Write(files_[i], bytes);
    EXPECT_EQ(NewestValid(temp_.path()), 1) << files_[i] << " " << what;
    temp_.Write(files_[i], contents_[i]);
  }
  size_t Pick() { return random_() % files_.size(); }

  TempFolder temp_;
  std::vector<std::string> files_, contents_;
  std::mt19937 random_{11};
};

TEST_F(Damage, EveryFlippedBitIsFound) {  // F1
  const int flips = Count(10'000, 500);
  for (int i = 0; i < flips; ++i) {
    const size_t file = Pick();
    std::string bytes = contents_[file];
    const size_t at = random_() % bytes.size();
    bytes[at] = static_cast<char>(bytes[at] ^ (1 << random_() % 8));
    ExpectFound(file, bytes, "bit flip at " + std::to_string(at));
  }
  EXPECT_EQ(NewestValid(temp_.path()), 2);
  std::printf("F1: %d bit flips found\n", flips);
}

TEST_F(Damage, EveryTruncationIsFound) {  // F2
  const int cuts = Count(1'000, 100);
  for (int i = 0; i < cuts; ++i) {
    const size_t file = Pick(), length = random_() % contents_[file].size();
    ExpectFound(file, contents_[file].substr(0, length), "cut to " + std::to_string(length));
  }
  std::printf("F2: %d truncations found\n", cuts);
}

TEST_F(Damage, ZeroedBlocksSwapsAndStrangersAreFound) {  // F2
  for (int i = 0; i < Count(200, 20); ++i) {
    const size_t file = Pick();
    std::string bytes = contents_[file];
    const size_t at = random_() % bytes.size(), end = std::min(bytes.size(), at + 4096);
    bytes.replace(at, end - at, end - at, '\0');
    if (bytes != contents_[file]) ExpectFound(file, bytes, "zeroed block");
  }
  for (int i = 0; i < Count(100, 10); ++i) {  // another file's bytes: swapped shards among them
    const size_t file = Pick(), other = Pick();
    if (file != other) ExpectFound(file, contents_[other], "the bytes of " + files_[other]);
  }
  for (size_t file = 0; file < files_.size(); ++file) {  // the same file of another step
    std::string other = files_[file];
    other.replace(other.find("00000002"), 8, "00000001");
    if (temp_.Read(other) != contents_[file]) ExpectFound(file, temp_.Read(other), "of step 1");
  }
  EXPECT_EQ(NewestValid(temp_.path()), 2);
}

TEST_F(Damage, MissingFilesAndForeignFoldersAreFound) {
  for (const std::string& file : files_) {
    std::filesystem::rename(temp_.Path(file), temp_.Path("aside"));
    EXPECT_EQ(NewestValid(temp_.path()), 1) << file;
    std::filesystem::rename(temp_.Path("aside"), temp_.Path(file));
  }
  // A folder under the name of another step is no checkpoint of that step.
  std::filesystem::copy(StepPath(temp_, 2), StepPath(temp_, 9),
                        std::filesystem::copy_options::recursive);
  EXPECT_EQ(NewestValid(temp_.path()), 2);
  // Under any other name it is what it was.
  std::filesystem::rename(StepPath(temp_, 9), temp_.Path("copied"));
  EXPECT_THAT(ValidateCheckpoint(temp_.Path("copied")), IsOk());
}

// A shard whose header names another tensor, listed with its right size and hash.
TEST_F(Damage, AnotherTensorIsFoundEvenWithRightHashes) {
  const std::string shard = StepFolderName(2) + "/shards/layer-0000.safetensors";
  std::string bytes = temp_.Read(shard);
  const size_t at = bytes.find("exp_avg_sq/");
  ASSERT_NE(at, std::string::npos);
  bytes.replace(at, 11, "exp_avg_sp/");
  temp_.Write(shard, bytes);
  Manifest manifest = ValueOrThrow(
      ParseManifest(temp_.Read(StepFolderName(2) + "/manifest.json"), "manifest.json"));
  for (CheckpointFile& file : manifest.files) {
    if (file.file == "shards/layer-0000.safetensors") file.sha256 = Sha256Hex(bytes);
  }
  temp_.Write(StepFolderName(2) + "/manifest.json", ManifestText(manifest));
  EXPECT_EQ(NewestValid(temp_.path()), 1);
}

// A failed save leaves the old checkpoint as it was, says errno and path, and the next one works.
void ExpectSaveFailsCleanly(const TempFolder& temp, FaultIo& io, const std::string& what) {
  absl::Status status;
  {
    const ScopedIo scoped(&io);
    status = SaveTiny(temp.path(), 2);
  }
  if (!status.ok()) {
    EXPECT_THAT(status, FailsWith(ErrorKind::kIo, temp.path())) << what;
  }
  ASSERT_THAT(ValidateCheckpoint(StepPath(temp, 1)), IsOk()) << what;
  const int64_t newest = NewestValid(temp.path());
  EXPECT_TRUE(newest == 1 || newest == 2) << what;
  if (status.ok()) {
    EXPECT_EQ(newest, 2) << what;
  }
  ExpectGoesOn(temp);
}

class FailingCalls : public ::testing::TestWithParam<int> {};

TEST_P(FailingCalls, AtEveryCallTheOldCheckpointStays) {  // F3
  const int calls = CallsOfASave();
  for (const bool lasting : {false, true}) {
    const int stride = g_long || !lasting ? 1 : 5;
    for (int at = 0; at < calls; at += stride) {
      const TempFolder temp;
      ASSERT_THAT(SaveTiny(temp.path(), 1), IsOk());
      FaultIo io(FaultIo::Fault::kError, at, GetParam());
      // A call that is interrupted for ever would be asked for ever.
      io.set_lasting(lasting && GetParam() != EINTR);
      ExpectSaveFailsCleanly(temp, io, "call " + std::to_string(at));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Errors, FailingCalls,
                         ::testing::Values(ENOSPC, EDQUOT, EIO, EINTR, ESTALE, EROFS, EMFILE),
                         [](const ::testing::TestParamInfo<int>& row) {
                           return "Errno" + std::to_string(row.param);
                         });

TEST(CheckpointFaults, ShortWritesAreContinued) {  // F3
  const int calls = CallsOfASave();
  for (int at = 0; at < calls; ++at) {
    const TempFolder temp;
    FaultIo io(FaultIo::Fault::kShort, at);
    const ScopedIo scoped(&io);
    ASSERT_THAT(SaveTiny(temp.path(), 1), IsOk());
    EXPECT_EQ(NewestValid(temp.path()), 1);
  }
}

// The kernel's own refusal: a file may not grow beyond 4 KiB.
TEST(CheckpointFaults, AFileSizeLimitIsAnErrorAndNoSignal) {  // F3
  const TempFolder temp;
  ASSERT_THAT(SaveTiny(temp.path(), 1), IsOk());
  const int status = InChild([&] {
    ::signal(SIGXFSZ, SIG_IGN);
    const struct rlimit limit { 4096, 4096 };
    ::setrlimit(RLIMIT_FSIZE, &limit);
    const absl::Status saved = SaveTiny(temp.path(), 2, 5000);
    ::_exit(!saved.ok() && KindOf(saved) == ErrorKind::kIo ? 0 : 1);
  });
  EXPECT_EQ(status, 0);
  EXPECT_EQ(NewestValid(temp.path()), 1);
  ExpectGoesOn(temp);
}

// A real full disk, where the test may mount one: a checkpoint fits once, not twice.
TEST(CheckpointFaults, AFullDiskLeavesTheOldCheckpoint) {  // F3
  for (const int mebibytes : {1, 4, 16}) {
    const TempFolder temp;
    const std::string size = "size=" + std::to_string(mebibytes) + "m";
    const bool mounted = ::mount("graft-test", temp.path().c_str(), "tmpfs", 0, size.c_str()) == 0;
    if (!mounted) {
      ASSERT_TRUE(errno == EPERM || errno == EACCES) << errno;
      continue;  // only root may; AFileSizeLimit... covers a kernel that refuses
    }
    // 9 tensors of 4 bytes a number: two thirds of the disk.
    const int64_t numbers = int64_t{mebibytes} * (1 << 20) * 2 / 3 / 36;
    EXPECT_THAT(SaveTiny(temp.path(), 1, numbers), IsOk());
    EXPECT_THAT(CheckRoom(temp.path(), numbers * 36), FailsWith(ErrorKind::kIo, "are free"));
    EXPECT_THAT(SaveTiny(temp.path(), 2, numbers),
                FailsWith(ErrorKind::kIo, "No space left on device"));
    EXPECT_EQ(NewestValid(temp.path()), 1);
    EXPECT_THAT(RemoveLeftovers(temp.path()), IsOk());
    EXPECT_THAT(SaveTiny(temp.path(), 2), IsOk());
    EXPECT_EQ(NewestValid(temp.path()), 2);
    EXPECT_EQ(::umount(temp.path().c_str()), 0);
  }
}

TEST(CheckpointFaults, AFolderThatGoesAwayIsAnError) {  // F3
  const TempFolder temp;
  std::filesystem::create_directory(temp.Path("run"));
  ASSERT_THAT(SaveTiny(temp.Path("run"), 1), IsOk());
  std::filesystem::rename(temp.Path("run"), temp.Path("aside"));
  temp.Write("run", "a file in its place");
  EXPECT_THAT(SaveTiny(temp.Path("run"), 2), FailsWith(ErrorKind::kIo, "run"));
  EXPECT_EQ(NewestValid(temp.Path("aside")), 1);
}

}  // namespace
}  // namespace graft::sharding

int main(int argc, char** argv) {
  ::testing::InitGoogleMock(&argc, argv);
  // Thousands of saves: where fsync costs nothing. What it orders is counted, not measured.
  if (::access("/dev/shm", W_OK) == 0) ::setenv("TMPDIR", "/dev/shm", 0);
  for (int i = 1; i < argc; ++i) {
    if (std::string(argv[i]) == "--long") graft::sharding::g_long = true;
  }
  return RUN_ALL_TESTS();
}
