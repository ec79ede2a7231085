#include "base/file.h"

#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>

#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_folder.h"

namespace graft {
namespace {

namespace fs = std::filesystem;
using testing::FailsWith;
using testing::IsOk;
using testing::TempFolder;

TEST(CheckBasename, KeepsPathsOut) {
  EXPECT_THAT(CheckBasename("model-00001-of-00002.safetensors", "index"), IsOk());
  EXPECT_THAT(CheckBasename(std::string(255, 'a'), "index"), IsOk());
  for (const std::string& name :
       {std::string(), std::string("."), std::string(".."), std::string("../../x"),
        std::string("/etc/passwd"), std::string("a b"), std::string("a\0b", 3),
        std::string("caf\xC3\xA9"), std::string(256, 'a')}) {
    EXPECT_THAT(CheckBasename(name, "index"), FailsWith(ErrorKind::kInput, "index: file name"));
  }
}

TEST(ReadFile, ReadsWholeFilesUpToALimit) {
  const TempFolder folder;
  const std::string contents("a\0b", 3);
  const std::string path = folder.Write("f", contents);
  EXPECT_EQ(*ReadFile(path, 3), contents);
  EXPECT_THAT(ReadFile(path, 2), FailsWith(ErrorKind::kInput, "f: has 3 bytes, at most 2"));
  EXPECT_EQ(*ReadFile(folder.Write("empty", ""), 10), "");
}

TEST(ReadFile, RefusesWhatIsNotARegularFile) {
  const TempFolder folder;
  fs::create_directory(folder.Path("dir"));
  ASSERT_EQ(::mkfifo(folder.Path("pipe").c_str(), 0600), 0);
  EXPECT_THAT(ReadFile(folder.Path("absent"), 10), FailsWith(ErrorKind::kInput, "No such file"));
  EXPECT_THAT(ReadFile(folder.Path("dir"), 10), FailsWith(ErrorKind::kInput, "dir: is a folder"));
  EXPECT_THAT(ReadFile(folder.Path("pipe"), 10),
              FailsWith(ErrorKind::kInput, "must be a regular file"));
  EXPECT_THAT(ReadFile("/dev/zero", 10), FailsWith(ErrorKind::kInput, "must be a regular file"));
}

TEST(ReadFile, FollowsLinksOnlyInsideOfTheParent) {
  const TempFolder folder;
  folder.Write("outside/secret", "s");
  folder.Write("models/m/config.json", "c");
  folder.Write("models/other/shared", "o");
  fs::create_symlink("../../outside/secret", folder.Path("models/m/leaves"));
  fs::create_symlink("../other/shared", folder.Path("models/m/sibling"));
  fs::create_symlink("config.json", folder.Path("models/m/same"));
  fs::create_symlink("nowhere", folder.Path("models/m/broken"));
  EXPECT_EQ(*ReadFile(folder.Path("models/m/sibling"), 10), "o");
  EXPECT_EQ(*ReadFile(folder.Path("models/m/same"), 10), "c");
  EXPECT_THAT(ReadFile(folder.Path("models/m/leaves"), 10),
              FailsWith(ErrorKind::kInput, "lies outside of"));
  EXPECT_THAT(ReadFile(folder.Path("models/m/broken"), 10), FailsWith(ErrorKind::kInput, "broken"));
  ReadOptions anywhere;
  anywhere.follow_links = true;
  EXPECT_EQ(*ReadFile(folder.Path("models/m/leaves"), 10, anywhere), "s");
}

TEST(ReadFile, FollowsTheBlobsOfAHuggingFaceCache) {
  const TempFolder folder;
  folder.Write("hub/models--a--b/blobs/123", "blob");
  folder.Write("hub/models--c--d/blobs/456", "other");
  fs::create_directories(folder.Path("hub/models--a--b/snapshots/rev"));
  fs::create_symlink("../../blobs/123", folder.Path("hub/models--a--b/snapshots/rev/config.json"));
  fs::create_symlink("../../../models--c--d/blobs/456",
                     folder.Path("hub/models--a--b/snapshots/rev/foreign"));
  EXPECT_EQ(*ReadFile(folder.Path("hub/models--a--b/snapshots/rev/config.json"), 10), "blob");
  EXPECT_FALSE(ReadFile(folder.Path("hub/models--a--b/snapshots/rev/foreign"), 10).ok());
}

TEST(Paths, JoinAndSplit) {
  EXPECT_EQ(JoinPath("a", "b"), "a/b");
  EXPECT_EQ(JoinPath("a/", "b"), "a/b");
  EXPECT_EQ(JoinPath("", "b"), "b");
  EXPECT_EQ(Basename("a/b.c"), "b.c");
  EXPECT_EQ(FolderOf("a/b/c"), "a/b");
  EXPECT_EQ(FolderOf("c"), ".");
  EXPECT_EQ(FolderOf("/c"), "/");
}

TEST(Folders, AreMadeListedAndRemoved) {
  const TempFolder folder;
  const std::string deep = folder.Path("x/y/z");
  ASSERT_THAT(MakeDirs(deep), IsOk());
  ASSERT_THAT(MakeDirs(deep), IsOk());
  EXPECT_TRUE(IsFolder(deep));
  folder.Write("x/b", "");
  folder.Write("x/a", "");
  EXPECT_EQ(*ListFolder(folder.Path("x")), (std::vector<std::string>{"a", "b", "y"}));
  folder.Write("keep/file", "k");
  fs::create_symlink("../../keep", folder.Path("x/y/link"));
  EXPECT_THAT(RemoveTree(folder.Path("x")), IsOk());
  EXPECT_FALSE(PathExists(folder.Path("x")));
  EXPECT_EQ(folder.Read("keep/file"), "k");
  EXPECT_THAT(RemoveTree(folder.Path("x")), IsOk());
  EXPECT_THAT(MakeDirs(folder.Path("keep/file")), FailsWith(ErrorKind::kIo, "not a folder"));
  EXPECT_THAT(MakeDirs(folder.Path("keep/file/below")), FailsWith(ErrorKind::kIo, "keep/file"));
  EXPECT_THAT(ListFolder(folder.Path("absent")), FailsWith(ErrorKind::kInput, "absent"));
}

TEST(AtomicFile, AppearsCompleteOrNotAtAll) {
  const TempFolder folder;
  folder.Write("f", "old");
  {
    absl::StatusOr<std::unique_ptr<AtomicFile>> file = AtomicFile::Create(folder.Path("f"));
    ASSERT_THAT(file, IsOk());
    ASSERT_THAT((*file)->Write("new", 3), IsOk());
    EXPECT_EQ(folder.Read("f"), "old");
  }
  EXPECT_EQ(*ListFolder(folder.path()), std::vector<std::string>{"f"});
  EXPECT_EQ(folder.Read("f"), "old");
  ASSERT_THAT(AtomicWriteFile(folder.Path("f"), "newer"), IsOk());
  EXPECT_EQ(folder.Read("f"), "newer");
  EXPECT_EQ(*ListFolder(folder.path()), std::vector<std::string>{"f"});
  struct stat info {};
  ASSERT_EQ(::stat(folder.Path("f").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0137u, 0u);  // 0640 at most
  EXPECT_THAT(AtomicWriteFile(folder.Path("no/such"), "x"), FailsWith(ErrorKind::kIo, "no/such"));
}

// A file size limit stands for a full disk: write fails with EFBIG after a short write.
TEST(AtomicFile, ReportsAFailedWriteAndKeepsTheOldFile) {
  const TempFolder folder;
  folder.Write("f", "old");
  struct rlimit before {};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  struct rlimit small = before;
  small.rlim_cur = 1000;
  const auto handler = ::signal(SIGXFSZ, SIG_IGN);
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const absl::Status status = AtomicWriteFile(folder.Path("f"), std::string(2000, 'x'));
  ::setrlimit(RLIMIT_FSIZE, &before);
  ::signal(SIGXFSZ, handler);
  EXPECT_THAT(status, FailsWith(ErrorKind::kIo, "File too large"));
  EXPECT_EQ(folder.Read("f"), "old");
  EXPECT_EQ(*ListFolder(folder.path()), std::vector<std::string>{"f"});
}

// In a child process: an fcntl lock belongs to a process.
int LockInChild(const std::string& path) {
  const pid_t child = ::fork();
  if (child == 0) {
    const auto lock = FileLock::Acquire(path, absl::Milliseconds(120));
    ::_exit(lock.ok() ? 0 : ExitCodeOf(lock.status()));
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

TEST(FileLock, KeepsOtherProcessesOutUntilItIsReleased) {
  const TempFolder folder;
  absl::StatusOr<std::unique_ptr<FileLock>> lock =
      FileLock::Acquire(folder.Path("lock"), absl::ZeroDuration());
  ASSERT_THAT(lock, IsOk());
  EXPECT_EQ(LockInChild(folder.Path("lock")), 74);
  lock->reset();
  EXPECT_EQ(LockInChild(folder.Path("lock")), 0);
}

}  // namespace
}  // namespace graft
