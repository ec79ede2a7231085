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

TEST(MappedFileTest, DroppedPagesReadAgainAsTheFileIs) {
  const TempFolder folder;
  const auto file = MappedFile::Open(folder.Write("weights.bin", std::string(200'000, 'x')));
  ASSERT_THAT(file, IsOk());
  DropPages((*file)->data() + 100, (*file)->size() - 100);
  DropPages((*file)->data(), 10);  // less than a page: nothing
  for (const size_t at : {size_t{0}, size_t{100'000}, size_t{199'999}}) {
    EXPECT_EQ((*file)->data()[at], 'x');
  }
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
