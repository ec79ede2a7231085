#include "trainer/coordinator/work_item.h"

#include <gtest/gtest.h>

#include <functional>
#include <set>
#include <vector>

namespace graft::trainer {
namespace {

TEST(WorkItem, EverythingThatAResultDependsOnIsInItsId) {
  const WorkItem item{"loo", 32, 16, 4, 2, 1, 7.5};
  RunFacts facts{"m", "a", "d", "ab", "float32", 1};
  std::set<std::string> ids = {ItemId(RunKey(facts), item)};
  const auto changed = [&](const std::function<void(WorkItem&, RunFacts&)>& change) {
    WorkItem other = item;
    RunFacts other_facts = facts;
    change(other, other_facts);
    return ids.insert(ItemId(RunKey(other_facts), other)).second;
  };
  EXPECT_TRUE(changed([](WorkItem& i, RunFacts&) { i.kind = std::string("keep_one"); }));
  EXPECT_TRUE(changed([](WorkItem& i, RunFacts&) { i.first_sample = 0; }));
  EXPECT_TRUE(changed([](WorkItem& i, RunFacts&) { i.num_samples = 15; }));
  EXPECT_TRUE(changed([](WorkItem& i, RunFacts&) { i.first_layer = 3; }));
  EXPECT_TRUE(changed([](WorkItem& i, RunFacts&) { i.num_layers = 3; }));
  EXPECT_TRUE(changed([](WorkItem& i, RunFacts&) { i.micro_batch = 2; }));
  EXPECT_TRUE(changed([](WorkItem&, RunFacts& f) { f.model_fingerprint = std::string("n"); }));
  EXPECT_TRUE(changed([](WorkItem&, RunFacts& f) { f.adapter_fingerprint = std::string("b"); }));
  EXPECT_TRUE(changed([](WorkItem&, RunFacts& f) { f.data_fingerprint = std::string("e"); }));
  EXPECT_TRUE(changed([](WorkItem&, RunFacts& f) { f.score = std::string("loo"); }));
  EXPECT_TRUE(changed([](WorkItem&, RunFacts& f) { f.dtype = std::string("bfloat16"); }));
  EXPECT_TRUE(changed([](WorkItem&, RunFacts& f) { f.threads = 2; }));
  // A better estimate keeps old results.
  EXPECT_FALSE(changed([](WorkItem& i, RunFacts&) { i.cost = 9; }));
}

TEST(WorkItem, NamesSayWhatAndWhere) {
  EXPECT_EQ(ItemName({"loo", 32, 32, 4, 4, 1, 1}), "loo of layers 4-7, samples 32-63");
  EXPECT_EQ(ItemName({"taylor", 0, 5, 0, 0, 1, 1}), "taylor of samples 0-4");
}

}  // namespace
}  // namespace graft::trainer
