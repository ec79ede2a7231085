#include "base/status.h"

#include "tests/testing/status_matchers.h"

namespace graft {
namespace {

TEST(Status, KindsHaveTheExitCodesAndNamesOfTheInterface) {
  const struct {
    absl::Status status;
    int code;
    const char* name;
  } rows[] = {
      {UsageError("x"), 64, "usage"},   {InputError("x"), 65, "input"},
      {BugError("x"), 70, "bug"},       {IoError("x"), 74, "io"},
      {PeerError("x"), 76, "peer"},     {NumericError("x"), 77, "numeric"},
      {RecipeError("x"), 78, "recipe"}, {MakeError(ErrorKind::kStopped, "x"), 75, "stopped"},
  };
  for (const auto& row : rows) {
    EXPECT_EQ(ExitCodeOf(row.status), row.code);
    EXPECT_STREQ(KindName(KindOf(row.status)), row.name);
  }
  EXPECT_EQ(ExitCodeOf(absl::OkStatus()), 0);
  EXPECT_EQ(ExitCodeOf(absl::UnavailableError("not made by graft")), 70);
}

TEST(Status, AnnotateKeepsTheKindAndPutsTextInFront) {
  const absl::Status status = Annotate(RecipeError("found 3"), "a.yaml");
  EXPECT_EQ(KindOf(status), ErrorKind::kRecipe);
  EXPECT_EQ(std::string(status.message()), "a.yaml: found 3");
  EXPECT_TRUE(Annotate(absl::OkStatus(), "a.yaml").ok());
}

TEST(Status, ThrownAndReturnedErrorsCarryTheSameStatus) {
  try {
    ThrowIfError(PeerError("rank 3 is gone"));
    FAIL() << "did not throw";
  } catch (const StatusError& error) {
    EXPECT_EQ(error.status(), PeerError("rank 3 is gone"));
    EXPECT_STREQ(error.what(), "rank 3 is gone");
  }
  EXPECT_EQ(ValueOrThrow(absl::StatusOr<int>(7)), 7);
  EXPECT_THROW(ValueOrThrow(absl::StatusOr<int>(InputError("x"))), StatusError);
}

absl::StatusOr<int> Half(int value) {
  if (value % 2 != 0) return InputError("odd");
  return value / 2;
}

absl::StatusOr<int> Quarter(int value) {
  GRAFT_ASSIGN_OR_RETURN(const int half, Half(value));
  GRAFT_ASSIGN_OR_RETURN(const int quarter, Half(half));
  return quarter;
}

TEST(Status, AssignOrReturnGivesTheValueOrTheFirstError) {
  EXPECT_EQ(*Quarter(12), 3);
  EXPECT_EQ(KindOf(Quarter(6).status()), ErrorKind::kInput);
}

TEST(Status, ABrokenInvariantSaysWhereAndWhat) {
  const auto check = [](int count) {
    GRAFT_CHECK(count == 2, "count is " + std::to_string(count));
  };
  EXPECT_NO_THROW(check(2));
  try {
    check(3);
    FAIL() << "did not throw";
  } catch (const StatusError& error) {
    EXPECT_EQ(KindOf(error.status()), ErrorKind::kBug);
    EXPECT_THAT(error.what(), ::testing::HasSubstr("status_test.cc"));
    EXPECT_THAT(error.what(), ::testing::HasSubstr("count == 2 does not hold: count is 3"));
  }
}

}  // namespace
}  // namespace graft
