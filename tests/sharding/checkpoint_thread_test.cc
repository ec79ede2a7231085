// Saves on background threads, as the checkpointer runs them: copy, write, gather, commit, while
// the training goes on with the live state. A program of its own, for ThreadSanitizer.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/background_task.h"
#include "base/status.h"
#include "tests/sharding/tiny_run.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_folder.h"

namespace graft::sharding {
namespace {

using ::graft::testing::IsOk;
using ::graft::testing::NewestValid;
using ::graft::testing::TempFolder;
using ::graft::testing::TinyManifest;

constexpr int64_t kSize = 2000;

// One owner of a unit: live state, its copy, what its writer left.
struct Owner {
  std::vector<float> live = std::vector<float>(3 * kSize, 1.0f), copy = live;
  std::vector<WrittenShard> written;
  BackgroundTask writer;  // last: joined first
};

TEST(CheckpointThreads, TrainingGoesOnWhileOwnersWriteAndRankZeroCommits) {
  const TempFolder temp;
  std::vector<Owner> owners(3);
  BackgroundTask committer;
  for (int64_t step = 1; step <= 6; ++step) {
    auto job = std::make_shared<CommitJob>();
    job->checkpoints = temp.path();
    job->temp = StepFolderName(step) + kTempMark + std::string("0001");
    job->manifest = TinyManifest(step);
    job->recipe = "run: {}\n";
    ASSERT_THAT(MakeTempFolder(temp.path(), job->temp), IsOk());
    for (size_t i = 0; i < owners.size(); ++i) {
      Owner& owner = owners[i];
      owner.copy = owner.live;
      const ParameterShape parameter{std::string(1, static_cast<char>('a' + i)), {kSize}};
      job->expected.push_back(parameter);
      owner.writer.Start([&owner, parameter, i, folder = temp.Path(job->temp)]() -> absl::Status {
        const float* const data = owner.copy.data();
        GRAFT_ASSIGN_OR_RETURN(
            WrittenShard shard,
            WriteShard(folder, UnitOf(parameter.name, static_cast<int>(i), 3),
                       {{parameter, i * kSize, data, data + kSize, data + 2 * kSize}}));
        owner.written = {std::move(shard)};
        return absl::OkStatus();
      });
    }
    // The live state moves on until all are done.
    const auto done = [&] {
      return std::all_of(owners.begin(), owners.end(),
                         [](const Owner& owner) { return owner.writer.finished(); });
    };
    do {
      for (Owner& owner : owners) {
        for (float& number : owner.live) number += 1;
      }
    } while (!done());
    for (Owner& owner : owners) {
      ASSERT_THAT(owner.writer.Take(), IsOk());
      job->shards.insert(job->shards.end(), owner.written.begin(), owner.written.end());
    }
    committer.Start([job] { return CommitCheckpoint(*job).status(); });
    ASSERT_THAT(committer.Take(), IsOk());
    EXPECT_EQ(NewestValid(temp.path()), step);
  }
}

}  // namespace
}  // namespace graft::sharding
