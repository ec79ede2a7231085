#include "tests/comm/comm_contract.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <stdexcept>

namespace graft::testing {
namespace {

using comm::DType;
using comm::ReduceOp;

constexpr DType kReducible[] = {DType::kFloat32, DType::kFloat64, DType::kInt64};

template <typename T>
void Store(const std::vector<double>& values, std::vector<char>* bytes) {
  for (std::size_t i = 0; i < values.size(); ++i) {
    const T value = static_cast<T>(values[i]);
    std::memcpy(bytes->data() + i * sizeof(T), &value, sizeof(T));
  }
}

template <typename T>
std::vector<double> Load(const std::vector<char>& bytes) {
  std::vector<double> values(bytes.size() / sizeof(T));
  for (std::size_t i = 0; i < values.size(); ++i) {
    T value;
    std::memcpy(&value, bytes.data() + i * sizeof(T), sizeof(T));
    values[i] = static_cast<double>(value);
  }
  return values;
}

// Element i of rank r: small integers, exact in every type.
double Value(int rank, std::size_t i) {
  return static_cast<double>(i % 97) + rank * static_cast<double>(i % 13 + 1);
}

std::vector<double> Values(int rank, std::size_t count) {
  std::vector<double> values(count);
  for (std::size_t i = 0; i < count; ++i) values[i] = Value(rank, i);
  return values;
}

double Reduced(ReduceOp op, int ranks, std::size_t i) {
  if (op == ReduceOp::kMin) return Value(0, i);
  if (op == ReduceOp::kMax) return Value(ranks - 1, i);
  return ranks * static_cast<double>(i % 97) +
         static_cast<double>(i % 13 + 1) * ranks * (ranks - 1) / 2;
}

// The index of the first element that differs, -1 when there is none; printing millions of equal
// elements helps nobody.
int64_t FirstDifference(const std::vector<double>& found, const std::vector<double>& expected) {
  if (found.size() != expected.size()) return static_cast<int64_t>(found.size());
  const auto place = std::mismatch(found.begin(), found.end(), expected.begin()).first;
  return place == found.end() ? -1 : place - found.begin();
}

void CheckAllReduce(const ContractContext& context, DType type, ReduceOp op, std::size_t count) {
  ContractBuffer buffer(context, type, Values(context.rank(), count));
  context.comm.AllReduce(buffer.get(), op);
  std::vector<double> expected(count);
  for (std::size_t i = 0; i < count; ++i) expected[i] = Reduced(op, context.size(), i);
  ASSERT_EQ(FirstDifference(buffer.values(), expected), -1) << "of " << count << " elements";
}

void AllReduceEveryTypeAndOp(const ContractContext& context) {
  // Sizes around the change from direct exchange to blocks, and of several blocks with a ragged
  // end.
  for (const std::size_t count : {0u, 1u, 2u, 7u, 1000u, 16384u, 16385u, 65537u}) {
    for (const DType type : kReducible) {
      for (const ReduceOp op : {ReduceOp::kSum, ReduceOp::kMax, ReduceOp::kMin}) {
        CheckAllReduce(context, type, op, count);
      }
    }
  }
  CheckAllReduce(context, DType::kFloat32, ReduceOp::kSum, 2500003);
  CheckAllReduce(context, DType::kFloat64, ReduceOp::kSum, 1048576);
}

// Several at once; waited for, or tested until they are done.
void StartedAllReducesGiveTheSame(const ContractContext& context) {
  for (const bool waits : {true, false}) {
    std::vector<std::unique_ptr<ContractBuffer>> buffers;
    std::vector<std::unique_ptr<comm::Request>> requests;
    const std::vector<std::size_t> counts = {1000, 0, 1, 300007};
    for (const std::size_t count : counts) {
      buffers.push_back(std::make_unique<ContractBuffer>(context, DType::kFloat32,
                                                         Values(context.rank(), count)));
      requests.push_back(context.comm.StartAllReduce(buffers.back()->get(), ReduceOp::kSum));
    }
    for (const auto& request : requests) {
      while (!waits && !request->Test()) {
      }
      request->Wait();
    }
    for (std::size_t b = 0; b < counts.size(); ++b) {
      std::vector<double> expected(counts[b]);
      for (std::size_t i = 0; i < expected.size(); ++i)
        expected[i] = Reduced(ReduceOp::kSum, context.size(), i);
      ASSERT_EQ(FirstDifference(buffers[b]->values(), expected), -1) << counts[b];
    }
  }
}

void BroadcastEveryRoot(const ContractContext& context) {
  for (int root = 0; root < context.size(); ++root) {
    for (const std::size_t count : {0u, 1u, 1000u, 300007u}) {
      const bool mine = context.rank() == root;
      ContractBuffer buffer(context, DType::kFloat64,
                            mine ? Values(root + 3, count) : std::vector<double>(count, -1));
      context.comm.Broadcast(buffer.get(), root);
      ASSERT_EQ(FirstDifference(buffer.values(), Values(root + 3, count)), -1) << "root " << root;
    }
  }
}

void AllGatherInRankOrder(const ContractContext& context) {
  for (const DType type : {DType::kInt32, DType::kInt64, DType::kFloat32}) {
    for (const std::size_t count : {0u, 1u, 33u, 70001u}) {
      ContractBuffer in(context, type, Values(context.rank(), count));
      ContractBuffer out(context, type, std::vector<double>(count * context.size(), -1));
      context.comm.AllGather(in.get(), out.get());
      std::vector<double> expected;
      for (int r = 0; r < context.size(); ++r) {
        const std::vector<double> part = Values(r, count);
        expected.insert(expected.end(), part.begin(), part.end());
      }
      ASSERT_EQ(FirstDifference(out.values(), expected), -1);
    }
  }
}

void SendAroundTheRing(const ContractContext& context) {
  const int n = context.size();
  if (n == 1) return;
  const int next = (context.rank() + 1) % n;
  const int previous = (context.rank() + n - 1) % n;
  for (const std::size_t count : {0u, 1u, 999u, 5000u, 400000u}) {
    ContractBuffer out(context, DType::kFloat32, Values(context.rank(), count));
    ContractBuffer in(context, DType::kFloat32, std::vector<double>(count, -1));
    auto receive = context.comm.StartRecv(in.get(), previous, 0);
    auto send = context.comm.StartSend(out.get(), next, 0);
    receive->Wait();
    send->Wait();
    ASSERT_TRUE(receive->Test());
    ASSERT_EQ(FirstDifference(in.values(), Values(previous, count)), -1);
  }
}

// Both directions of a pipeline at once, receives posted ahead: must not wait for each other.
void ReceivesPostedAheadDoNotBlock(const ContractContext& context) {
  constexpr int kMessages = 4;
  const int n = context.size();
  if (n == 1) return;
  const int next = (context.rank() + 1) % n;
  const int previous = (context.rank() + n - 1) % n;
  std::vector<std::unique_ptr<ContractBuffer>> in;
  std::vector<std::unique_ptr<ContractBuffer>> out;
  std::vector<std::unique_ptr<comm::Request>> receives;
  std::vector<std::unique_ptr<comm::Request>> sends;
  for (int m = 0; m < kMessages; ++m) {
    in.push_back(
        std::make_unique<ContractBuffer>(context, DType::kFloat32, std::vector<double>(20000, -1)));
    receives.push_back(context.comm.StartRecv(in[m]->get(), previous, 0));
  }
  for (int m = 0; m < kMessages; ++m) {
    out.push_back(std::make_unique<ContractBuffer>(context, DType::kFloat32,
                                                   Values(context.rank() * kMessages + m, 20000)));
    sends.push_back(context.comm.StartSend(out[m]->get(), next, 0));
  }
  for (int m = kMessages - 1; m >= 0; --m) {
    receives[m]->Wait();
    ASSERT_EQ(in[m]->values(), Values(previous * kMessages + m, 20000)) << "message " << m;
  }
  for (auto& send : sends) send->Wait();
}

void BarrierHoldsEverybody(const ContractContext& context) {
  using Clock = std::chrono::steady_clock;
  const auto begin = Clock::now();
  while (Clock::now() - begin < std::chrono::milliseconds(15 * context.rank())) {
  }
  const int64_t before = Clock::now().time_since_epoch().count();
  context.comm.Barrier();
  const int64_t after = Clock::now().time_since_epoch().count();
  int64_t stamps[2] = {before, after};
  std::vector<int64_t> all(2 * context.size());
  if (context.memory.device >= 0) return;  // the stamps travel in host memory
  context.comm.AllGather({stamps, 2, DType::kInt64, -1},
                         {all.data(), all.size(), DType::kInt64, -1});
  for (int r = 0; r < context.size(); ++r) {
    ASSERT_LE(all[2 * r], after) << "rank " << r << " had not come when the barrier opened";
  }
}

void SplitMakesOrderedGroups(const ContractContext& context) {
  const int n = context.size();
  const int color = context.rank() % 2;
  // Descending keys: the last rank of a color becomes rank 0.
  auto part = context.comm.Split(color, -context.rank(), "half");
  const int members = (n + 1 - color) / 2;
  ASSERT_EQ(part->size(), members);
  ASSERT_EQ(part->rank(), members - 1 - context.rank() / 2);
  ASSERT_EQ(part->name(), "half");
  ASSERT_EQ(part->timeout(), context.comm.timeout());
  ASSERT_STREQ(part->backend(), context.comm.backend());
  const ContractContext inner{*part, context.memory};
  ContractBuffer sum(inner, DType::kInt64, {static_cast<double>(context.rank())});
  part->AllReduce(sum.get(), ReduceOp::kSum);
  ASSERT_EQ(sum.values()[0], members * (members - 1) + color * members);
  auto one = part->Split(part->rank(), 0, "one");
  ASSERT_EQ(one->size(), 1);
  ASSERT_EQ(one->rank(), 0);
}

// Float sums whose value depends on the order of the addends: equal to the left-to-right sum, bit
// by bit.
void SumsKeepRankOrder(const ContractContext& context) {
  const auto addend = [](int rank, std::size_t i) {
    uint64_t x = (static_cast<uint64_t>(rank) << 32 | i) * 0x9E3779B97F4A7C15u;
    x ^= x >> 29;
    x *= 0xBF58476D1CE4E5B9u;
    x ^= x >> 32;
    const double mantissa = static_cast<double>(x >> 11) / 9007199254740992.0 - 0.5;
    return static_cast<float>(std::ldexp(mantissa, static_cast<int>(x % 21)));
  };
  for (const std::size_t count : {5u, 3001u, 700001u}) {
    std::vector<float> mine(count);
    std::vector<float> expected(count);
    for (std::size_t i = 0; i < count; ++i) {
      mine[i] = addend(context.rank(), i);
      expected[i] = addend(0, i);
      for (int r = 1; r < context.size(); ++r) expected[i] += addend(r, i);
    }
    context.comm.AllReduce({mine.data(), count, DType::kFloat32, -1}, ReduceOp::kSum);
    ASSERT_EQ(std::memcmp(mine.data(), expected.data(), count * sizeof(float)), 0) << count;
  }
}

void MaxAndMinKeepNaN(const ContractContext& context) {
  for (const ReduceOp op : {ReduceOp::kMax, ReduceOp::kMin}) {
    for (int holder = 0; holder < context.size(); ++holder) {
      double value = holder == context.rank() ? std::nan("") : context.rank();
      context.comm.AllReduce({&value, 1, DType::kFloat64, -1}, op);
      ASSERT_TRUE(std::isnan(value)) << "NaN of rank " << holder;
    }
  }
}

comm::Buffer Of(int64_t* value, std::size_t count = 1) { return {value, count, DType::kInt64, -1}; }

void TagsAndOrder(const ContractContext& context) {
  if (context.size() == 1) return;
  if (context.rank() == 0) {
    int64_t values[3] = {10, 11, 20};
    auto first = context.comm.StartSend(Of(&values[0]), 1, 1);
    auto second = context.comm.StartSend(Of(&values[1]), 1, 1);
    auto other = context.comm.StartSend(Of(&values[2]), 1, 2);
    first->Wait();
    second->Wait();
    other->Wait();
  } else if (context.rank() == 1) {
    int64_t other = 0;
    context.comm.Recv(Of(&other), 0, 2);
    ASSERT_EQ(other, 20);
    int64_t first = 0;
    int64_t second = 0;
    auto request1 = context.comm.StartRecv(Of(&first), 0, 1);
    auto request2 = context.comm.StartRecv(Of(&second), 0, 1);
    while (!request2->Test()) {
    }
    request1->Wait();
    ASSERT_EQ(first, 10);
    ASSERT_EQ(second, 11);
  }
}

void GroupsDoNotMix(const ContractContext& context) {
  if (context.size() == 1) return;
  auto twin = context.comm.Split(0, context.rank(), "twin");
  if (context.rank() == 0) {
    int64_t values[2] = {1, 2};
    auto world = context.comm.StartSend(Of(&values[0]), 1, 5);
    auto other = twin->StartSend(Of(&values[1]), 1, 5);
    world->Wait();
    other->Wait();
  } else if (context.rank() == 1) {
    int64_t value = 0;
    twin->Recv(Of(&value), 0, 5);
    ASSERT_EQ(value, 2);
    context.comm.Recv(Of(&value), 0, 5);
    ASSERT_EQ(value, 1);
  }
  twin->Barrier();
}

// MPI may cut a too long message short; in every case the receiver must hear of it.
void WrongSizeIsABug(const ContractContext& context) {
  if (context.size() == 1) return;
  for (const std::size_t received : {1u, 3u}) {
    int64_t values[4] = {1, 2, 3, 4};
    if (context.rank() == 0) context.comm.Send(Of(values, 2), 1, 0);
    if (context.rank() != 1) continue;
    const absl::Status error = ErrorOf([&] { context.comm.Recv(Of(values, received), 0, 0); });
    ASSERT_EQ(KindOf(error), ErrorKind::kBug) << error;
  }
}

// Both sides learn it long before a limit.
void AnotherOrderIsABug(const ContractContext& context) {
  if (context.size() == 1) return;
  auto group = context.comm.Split(0, context.rank(), "parted");
  int64_t mine = 1;
  std::vector<int64_t> all(static_cast<std::size_t>(context.size()));
  const absl::Status error = ErrorOf([&] {
    if (context.rank() == 0) {
      group->AllReduce(Of(&mine), ReduceOp::kSum);
    } else {
      group->AllGather(Of(&mine), Of(all.data(), all.size()));
    }
  });
  ASSERT_EQ(KindOf(error), ErrorKind::kBug) << error;
  const std::string text(error.message());
  const std::string elsewhere = context.rank() == 0 ? "AllReduce on rank 0: rank 1 is in AllGather"
                                                    : "rank 0 is in AllReduce";
  ASSERT_NE(text.find(elsewhere), std::string::npos) << text;
  context.comm.Barrier();
}

void WrongArgumentsAreBugs(const ContractContext& context) {
  comm::Communicator& c = context.comm;
  int64_t values[4] = {};
  const std::function<void()> calls[] = {
      [&] {
        c.AllReduce({values, 1, DType::kInt32, -1}, ReduceOp::kSum);
      },
      [&] {
        c.AllReduce({values, 1, DType::kFloat32, 0}, ReduceOp::kSum);
      },
      [&] {
        c.AllGather(Of(values),
                    {values, static_cast<std::size_t>(c.size()) + 1, DType::kInt64, -1});
      },
      [&] { c.Send(Of(values), c.size(), 0); },
      [&] { c.Recv(Of(values), -1, 0); },
      [&] { c.Send(Of(values), 0, -1); },
      [&] { c.Broadcast(Of(values), c.size()); },
  };
  for (const auto& call : calls) ASSERT_EQ(KindOf(ErrorOf(call)), ErrorKind::kBug);
}

void LateMessageIsAPeerError(const ContractContext& context) {
  if (context.size() == 1) return;
  if (context.rank() == 0) {
    const absl::Duration before = context.comm.timeout();
    context.comm.set_timeout(absl::Milliseconds(200));
    const auto start = std::chrono::steady_clock::now();
    int64_t value = 0;
    const absl::Status error = ErrorOf([&] { context.comm.Recv(Of(&value), 1, 7); });
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    context.comm.set_timeout(before);
    ASSERT_EQ(KindOf(error), ErrorKind::kPeer) << error;
    const std::string text(error.message());
    for (const std::string& part :
         {context.comm.name(), std::string("Recv"), std::string("rank 1"), std::string("0.2 s")}) {
      ASSERT_NE(text.find(part), std::string::npos) << text;
    }
    ASSERT_GE(seconds.count(), 0.2);
    ASSERT_LT(seconds.count(), 5.0);
  }
  context.comm.Barrier();
}

void MissingRankIsNamed(const ContractContext& context) {
  const int n = context.size();
  if (n == 1) return;
  auto part = context.comm.Split(0, context.rank(), "gradients");
  part->set_timeout(absl::Milliseconds(300));
  if (context.rank() != n - 1) {
    std::vector<float> values(200000, 1.0f);
    const absl::Status error = ErrorOf([&] {
      part->AllReduce({values.data(), values.size(), DType::kFloat32, -1}, ReduceOp::kSum);
    });
    ASSERT_EQ(KindOf(error), ErrorKind::kPeer) << error;
    const std::string text(error.message());
    ASSERT_NE(text.find("gradients"), std::string::npos) << text;
    ASSERT_NE(text.find("AllReduce"), std::string::npos) << text;
    ASSERT_NE(text.find("rank"), std::string::npos) << text;
    ASSERT_NE(text.find(std::to_string(n - 1) + " for 0.3 s"), std::string::npos) << text;
  }
  context.comm.Barrier();
}

void BlockedTimeIsCounted(const ContractContext& context) {
  if (context.size() == 1) return;
  context.comm.Barrier();
  const double before = context.comm.blocked_seconds();
  const auto start = std::chrono::steady_clock::now();
  int64_t value = 0;
  if (context.rank() == 0) context.comm.Recv(Of(&value), 1, 0);
  if (context.rank() == 1) {
    while (std::chrono::steady_clock::now() - start < std::chrono::milliseconds(100)) {
    }
    context.comm.Send(Of(&value), 0, 0);
  }
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  const double blocked = context.comm.blocked_seconds() - before;
  if (context.rank() == 0) {
    ASSERT_GE(blocked, 0.5 * elapsed.count());
    ASSERT_LE(blocked, elapsed.count());
  }
  context.comm.Barrier();
}

}  // namespace

absl::Status ErrorOf(const std::function<void()>& call) {
  try {
    call();
  } catch (const StatusError& error) {
    return error.status();
  }
  throw std::logic_error("an error was expected, the call succeeded");
}

ContractBuffer::ContractBuffer(const ContractContext& context, DType type,
                               std::vector<double> values)
    : memory_(context.memory),
      type_(type),
      count_(values.size()),
      host_(count_ * comm::SizeOf(type)) {
  if (type == DType::kInt32) Store<int32_t>(values, &host_);
  if (type == DType::kInt64) Store<int64_t>(values, &host_);
  if (type == DType::kFloat32) Store<float>(values, &host_);
  if (type == DType::kFloat64) Store<double>(values, &host_);
  data_ = host_.data();
  if (memory_.device < 0) return;
  data_ = memory_.allocate(host_.size());
  memory_.copy(data_, host_.data(), host_.size());
}

ContractBuffer::~ContractBuffer() {
  if (memory_.device >= 0) memory_.release(data_);
}

std::vector<double> ContractBuffer::values() const {
  std::vector<char> bytes = host_;
  if (memory_.device >= 0) memory_.copy(bytes.data(), data_, bytes.size());
  if (type_ == DType::kInt32) return Load<int32_t>(bytes);
  if (type_ == DType::kInt64) return Load<int64_t>(bytes);
  return type_ == DType::kFloat32 ? Load<float>(bytes) : Load<double>(bytes);
}

const std::vector<ContractCase>& CommonContract() {
  static const std::vector<ContractCase> cases = {
      {"AllReduceEveryTypeAndOp", AllReduceEveryTypeAndOp},
      {"StartedAllReducesGiveTheSame", StartedAllReducesGiveTheSame},
      {"BroadcastEveryRoot", BroadcastEveryRoot},
      {"AllGatherInRankOrder", AllGatherInRankOrder},
      {"SendAroundTheRing", SendAroundTheRing},
      {"ReceivesPostedAheadDoNotBlock", ReceivesPostedAheadDoNotBlock},
      {"BarrierHoldsEverybody", BarrierHoldsEverybody},
      {"SplitMakesOrderedGroups", SplitMakesOrderedGroups},
  };
  return cases;
}

const std::vector<ContractCase>& HostContract() {
  static const std::vector<ContractCase> cases = {
      {"SumsKeepRankOrder", SumsKeepRankOrder},
      {"MaxAndMinKeepNaN", MaxAndMinKeepNaN},
      {"TagsAndOrder", TagsAndOrder},
      {"GroupsDoNotMix", GroupsDoNotMix},
      {"WrongSizeIsABug", WrongSizeIsABug},
      {"AnotherOrderIsABug", AnotherOrderIsABug},
      {"WrongArgumentsAreBugs", WrongArgumentsAreBugs},
      {"BlockedTimeIsCounted", BlockedTimeIsCounted},
      {"LateMessageIsAPeerError", LateMessageIsAPeerError},
      {"MissingRankIsNamed", MissingRankIsNamed},
  };
  return cases;
}

}  // namespace graft::testing
