#include "base/mapped_file.h"

#include <unistd.h>

#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_folder.h"

namespace graft {
namespace {

using testing::FailsWith;
using testing::IsOk;
using testing::TempFolder;

TEST(MappedFile, ShowsTheBytes) {
  const TempFolder folder;
  absl::StatusOr<std::unique_ptr<MappedFile>> file = MappedFile::Open(folder.Write("f", "abc"));
  ASSERT_THAT(file, IsOk());
  EXPECT_EQ(std::string(reinterpret_cast<const char*>((*file)->data()), (*file)->size()), "abc");
  file = MappedFile::Open(folder.Write("empty", ""));
  ASSERT_THAT(file, IsOk());
  EXPECT_EQ((*file)->size(), 0u);
  EXPECT_THAT(MappedFile::Open(folder.Path("absent")), FailsWith(ErrorKind::kInput, "absent"));
  EXPECT_THAT(MappedFile::Open(folder.path()), FailsWith(ErrorKind::kInput, "is a folder"));
}

void TouchATruncatedMapping(const std::string& path) {
  InstallBusErrorHandler();
  const auto file = MappedFile::Open(path);
  if (!file.ok() || ::truncate(path.c_str(), 0) != 0) ::_exit(1);
  const volatile uint8_t* const data = (*file)->data();
  ::_exit(data[100'000] == 'x' ? 2 : 3);
}

TEST(MappedFileDeathTest, AFileThatWasCutShortEndsWithItsName) {
  const TempFolder folder;
  const std::string path = folder.Write("weights.bin", std::string(200'000, 'x'));
  EXPECT_EXIT(TouchATruncatedMapping(path), ::testing::ExitedWithCode(74),
              "graft: error: io: .*weights.bin: could not be read any more");
}

}  // namespace
}  // namespace graft
