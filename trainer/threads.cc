#include "trainer/threads.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <mutex>
#include <thread>

#include <ATen/Parallel.h>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "base/logging.h"
#include "base/status.h"
#include "comm/agree.h"

namespace graft::trainer {
namespace {

RankCores OwnCores() {
  char host[256] = {};
  ::gethostname(host, sizeof(host) - 1);
  RankCores mine{host, {}};
  cpu_set_t mask;
  CPU_ZERO(&mask);
  if (::sched_getaffinity(0, sizeof(mask), &mask) == 0) {
    for (int core = 0; core < CPU_SETSIZE; ++core) {
      if (CPU_ISSET(core, &mask)) mine.cores.push_back(core);
    }
  } else {  // more cores than the mask has bits
    for (unsigned core = 0; core < std::thread::hardware_concurrency(); ++core)
      mine.cores.push_back(static_cast<int>(core));
  }
  return mine;
}

RankCores ParseCores(const std::string& text) {
  const std::vector<std::string> parts = absl::StrSplit(text, '\n');
  GRAFT_CHECK(parts.size() == 2, text);
  RankCores cores{parts[0], {}};
  for (const std::string& number :
       std::vector<std::string>(absl::StrSplit(parts[1], ',', absl::SkipEmpty()))) {
    int core = 0;
    GRAFT_CHECK(absl::SimpleAtoi(number, &core), number);
    cores.cores.push_back(core);
  }
  return cores;
}

bool Share(const RankCores& a, const RankCores& b) {
  if (a.host != b.host) return false;
  std::vector<int> both;
  std::set_intersection(a.cores.begin(), a.cores.end(), b.cores.begin(), b.cores.end(),
                        std::back_inserter(both));
  return !both.empty();
}

int RanksSharing(const std::vector<RankCores>& ranks, int mine) {
  const RankCores& own = ranks[static_cast<size_t>(mine)];
  return static_cast<int>(std::count_if(
      ranks.begin(), ranks.end(), [&own](const RankCores& other) { return Share(own, other); }));
}

}  // namespace

int ThreadsOf(const std::vector<RankCores>& ranks, int mine, int64_t requested) {
  if (requested > 0) return static_cast<int>(requested);
  const int cores = static_cast<int>(ranks[static_cast<size_t>(mine)].cores.size());
  return std::max(1, cores / std::max(1, RanksSharing(ranks, mine)));
}

bool Oversubscribed(const std::vector<RankCores>& ranks, int mine, int threads) {
  return RanksSharing(ranks, mine) * threads >
         static_cast<int>(ranks[static_cast<size_t>(mine)].cores.size());
}

int SetUpThreads(comm::Communicator& all, int64_t requested) {
  const RankCores mine = OwnCores();
  std::vector<RankCores> ranks;
  for (const std::string& text :
       comm::AllGatherStrings(all, absl::StrCat(mine.host, "\n", absl::StrJoin(mine.cores, ",")))) {
    ranks.push_back(ParseCores(text));
  }
  const int threads = ThreadsOf(ranks, all.rank(), requested);
  at::set_num_threads(threads);
  static std::once_flag once;  // LibTorch accepts the inter-op number only once in a process
  std::call_once(once, [] { at::set_num_interop_threads(1); });
  if (Oversubscribed(ranks, all.rank(), threads)) {
    LOG(WARNING) << "parallel.threads: " << threads << " on each of "
                 << RanksSharing(ranks, all.rank()) << " ranks that share " << mine.cores.size()
                 << " cores of " << mine.host << "; ranks will wait for cores";
  }
  return threads;
}

}  // namespace graft::trainer
