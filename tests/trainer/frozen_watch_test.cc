#include "trainer/frozen_watch.h"

#include <tuple>

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/library.h>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "models/device.h"
#include "models/layers/quantized_weight.h"
#include "tests/testing/status_matchers.h"
#include "tests/trainer/frozen_bytes.h"

namespace graft::trainer {
namespace {

using testing::FailsWith;
using testing::IsOk;

constexpr double kRound = 1800;

// What LibTorch's C++ half cannot do on a device without memory, and T5's loading needs
// (EveryFrozenByteOnADeviceIsNoted).
torch::Tensor SelectWithoutMemory(const torch::Tensor& from, int64_t dim,
                                  const torch::Tensor& index) {
  std::vector<int64_t> sizes = from.sizes().vec();
  sizes[static_cast<size_t>(dim)] = index.numel();
  return at::empty(sizes, from.options());
}
torch::Tensor& AbsWithoutMemory(const torch::Tensor& from, torch::Tensor& out) {
  out.resize_(from.sizes());
  return out;
}
torch::Tensor WhereWithoutMemory(const torch::Tensor& /*condition*/, const torch::Tensor& then,
                                 const torch::Tensor& /*otherwise*/) {
  return at::empty_like(then);
}
TORCH_LIBRARY_IMPL(aten, Meta, library) {
  library.impl("index_select", SelectWithoutMemory);
  library.impl("abs.out", AbsWithoutMemory);
  library.impl("where.self", WhereWithoutMemory);
}

void FlipOneBit(const torch::Tensor& tensor, int64_t at) {
  static_cast<uint8_t*>(tensor.data_ptr())[at] ^= 4;
}

TEST(FrozenWatchTest, AFlippedBitIsNamedWithinOneRound) {
  const torch::Tensor a = at::arange(100, at::kFloat), b = at::arange(300, at::kFloat);
  FrozenWatch watch({{"a", a}, {"b", b}});
  EXPECT_EQ(watch.bytes(), 1600);
  EXPECT_THAT(watch.CheckSome(kRound), IsOk());
  FlipOneBit(b, 777);
  EXPECT_THAT(watch.CheckAll(), FailsWith(ErrorKind::kBug, "frozen weight `b` has changed"));
  // Small steps: each tensor has its turn within one round, and the pace is kept.
  absl::Status status;
  int steps = 0;
  for (; steps < 100 && status.ok(); ++steps) status = watch.CheckSome(kRound / 100);
  EXPECT_THAT(status, FailsWith(ErrorKind::kBug, "`b`"));
  EXPECT_GT(steps, 75);
  FlipOneBit(b, 777);
  EXPECT_THAT(watch.CheckAll(), IsOk());
}

TEST(FrozenWatchTest, ViewsAreWatchedAndWhatIsGoneIsNot) {
  const torch::Tensor whole = at::arange(64, at::kFloat);
  torch::Tensor gone = at::arange(10, at::kFloat);
  FrozenWatch watch({{"half", whole.narrow(0, 32, 32)}, {"gone", gone}});
  gone.reset();
  FlipOneBit(whole, 10);  // before the view
  EXPECT_THAT(watch.CheckAll(), IsOk());
  FlipOneBit(whole, 4 * 32);
  EXPECT_THAT(watch.CheckAll(), FailsWith(ErrorKind::kBug, "`half`"));
}

// F6: a layer computes with the packed form, of which a bit flips after packing.
TEST(FrozenWatchTest, APackedMatrixIsWatchedFromItsPackingOn) {
  const torch::Tensor weight = at::randn({48, 32}).to(torch::kBFloat16);
  const auto matrix = models::MakeFrozenWeight(weight, models::FrozenUse::kProducts);
  DerivedWeights derived;
  derived.matrices.emplace_back("layers.0.q.weight", matrix);
  FrozenWatch watch({}, derived);
  EXPECT_EQ(watch.bytes(), 0) << "nothing is packed yet";
  const torch::Tensor x = at::randn({5, 32}), y = matrix->Multiply(x, torch::kFloat32);
  matrix->MultiplyTransposed(at::randn({3, 48}), torch::kFloat32);
  const auto packed = matrix->Packed();
  ASSERT_EQ(packed.empty(), !models::PacksWeights(torch::kBFloat16));
  EXPECT_GE(watch.bytes(), packed.empty() ? 0 : 2 * static_cast<int64_t>(weight.nbytes()));
  EXPECT_THAT(watch.CheckAll(), IsOk());
  for (const models::PackedBytes& bytes : packed) {
    auto* const first = static_cast<uint8_t*>(const_cast<void*>(bytes.data));
    first[5] ^= 1;
    EXPECT_THAT(
        watch.CheckAll(),
        FailsWith(ErrorKind::kBug, "frozen weight `layers.0.q.weight` (packed) has changed"));
    absl::Status status;
    for (int step = 0; step < 100 && status.ok(); ++step) status = watch.CheckSome(kRound / 50);
    EXPECT_THAT(status, FailsWith(ErrorKind::kBug, "layers.0.q.weight"));
    first[5] ^= 1;
  }
  EXPECT_THAT(watch.CheckAll(), IsOk());
  EXPECT_TRUE(at::equal(matrix->Multiply(x, torch::kFloat32), y));
}

TEST(FrozenWatchTest, ATransposedMatrixIsWatchedAsItIsRearranged) {
  const auto matrix = models::MakeFrozenWeight(at::randn({48, 32}).t());
  DerivedWeights derived;
  derived.matrices.emplace_back("h.0.attn.c_attn.weight", matrix);
  FrozenWatch watch({}, derived);
  EXPECT_EQ(watch.bytes(), matrix->bytes());
  EXPECT_THAT(watch.CheckAll(), IsOk());
  const auto copy = matrix->Packed();
  ASSERT_EQ(copy.size(), 1U);
  static_cast<uint8_t*>(const_cast<void*>(copy[0].data))[9] ^= 4;
  EXPECT_THAT(watch.CheckAll(), FailsWith(ErrorKind::kBug, "`h.0.attn.c_attn.weight` (packed)"));
}

TEST(FrozenWatchTest, AQuantisedMatrixIsWatchedInItsBits) {
  double error = 0;
  const torch::Tensor stored =
      models::QuantizeMatrix(at::randn({8, 64}), models::Quantization::kNf4, &error);
  const auto matrix =
      models::MakeQuantizedWeight(stored, {models::Quantization::kNf4, 8, 64}, torch::kFloat32);
  DerivedWeights derived;
  derived.matrices.emplace_back("layers.0.q.weight", matrix);
  FrozenWatch watch({}, derived);
  EXPECT_EQ(watch.bytes(), matrix->bytes());
  EXPECT_THAT(watch.CheckAll(), IsOk());
  FlipOneBit(stored, 100);
  EXPECT_THAT(watch.CheckAll(), FailsWith(ErrorKind::kBug, "`layers.0.q.weight` (packed)"));
}

TEST(FrozenWatchTest, ACopyOfAnotherTypeIsWatched) {
  const torch::Tensor copy = at::arange(16, at::kFloat);
  DerivedWeights derived;
  derived.copies.emplace_back("norm.weight", copy);
  FrozenWatch watch({}, derived);
  FlipOneBit(copy, 3);
  EXPECT_THAT(watch.CheckAll(), FailsWith(ErrorKind::kBug, "`norm.weight`"));
}

// Host memory that is taken for a GPU's: all tensors that have their turn at once.
TEST(FrozenWatchTest, DeviceMemoryIsWatchedLikewise) {
  const models::DeviceKernelsOnHost switched;
  const torch::Tensor a = at::arange(100, at::kFloat), b = at::arange(300, at::kFloat).t(),
                      halves = at::arange(64, at::kFloat).to(at::kBFloat16);
  torch::Tensor gone = at::arange(10, at::kFloat);
  const WatchedTensor watched("gone", gone);
  FrozenWatch watch({{"a", a}, watched, {"b", b}, {"half", halves.narrow(0, 7, 33)}});
  gone.reset();
  EXPECT_FALSE(watched.Memory().defined()) << "held alive";
  EXPECT_THAT(watch.arrival(), IsOk());
  EXPECT_THAT(watch.CheckSome(kRound), IsOk());
  FlipOneBit(halves, 2 * 7 - 1);  // in front of the view
  EXPECT_THAT(watch.CheckAll(), IsOk());
  for (const auto& [name, tensor, place] :
       {std::tuple("a", a, 399), std::tuple("b", b, 0), std::tuple("half", halves, 79)}) {
    FlipOneBit(tensor, place);
    const std::string text =
        absl::StrCat("frozen weight `", name, "` has changed in GPU memory: hash64 was ");
    EXPECT_THAT(watch.CheckAll(), FailsWith(ErrorKind::kBug, text));
    absl::Status status;
    for (int step = 0; step < 100 && status.ok(); ++step) status = watch.CheckSome(kRound / 50);
    EXPECT_THAT(status, FailsWith(ErrorKind::kBug, text));
    FlipOneBit(tensor, place);
  }
  EXPECT_THAT(watch.CheckAll(), IsOk());
}

TEST(FrozenWatchTest, ATensorMustArriveAsItWasSent) {
  const torch::Tensor sent = at::arange(100, at::kFloat), here = sent.clone(), odd = sent + 1;
  FlipOneBit(here, 17);
  class NoWeights : public models::WeightSource {
    bool Has(const std::string&) const override { return false; }
    absl::StatusOr<torch::Tensor> Load(const std::string&, const std::vector<int64_t>&,
                                       torch::Dtype) override {
      return BugError("there are none");
    }
  } none;
  RecordingWeights recorded(none, "encoder: ", /*hash_moves=*/true);
  recorded.NoteMove("same", odd, odd);
  const torch::Tensor narrow = odd.to(at::kBFloat16), rows = sent.view({10, 10}), turned = rows.t();
  recorded.NoteMove("other type", odd, narrow);
  recorded.NoteMove("other order", turned, rows);
  EXPECT_THAT(FrozenWatch({}, recorded.derived()).arrival(), IsOk());
  recorded.NoteMove("a.weight", sent, here);
  EXPECT_THAT(FrozenWatch({}, recorded.derived()).arrival(),
              FailsWith(ErrorKind::kBug,
                        "frozen weight `encoder: a.weight` has not arrived in GPU memory as it was "
                        "sent"));
  RecordingWeights unread(none, "encoder: ", /*hash_moves=*/false);  // as where nobody compares
  unread.NoteMove("a.weight", sent, here);
  EXPECT_EQ(unread.derived().copies.size(), 1u);
  EXPECT_THAT(FrozenWatch({}, unread.derived()).arrival(), IsOk());
}

// Without a GPU: a device that has no memory takes weights as one would.
TEST(FrozenWatchTest, EveryFrozenByteOnADeviceIsNoted) {
  for (const char* family : {"llama", "gpt2", "roberta", "t5"}) {
    for (const auto quantize :
         {models::Quantization::kNone, models::Quantization::kInt8, models::Quantization::kNf4}) {
      for (const torch::Dtype dtype : {torch::kFloat32, torch::kBFloat16}) {
        const NotedModel model = LoadNoted(family, quantize, dtype, torch::kMeta);
        EXPECT_EQ(model.bytes, model.backbone->frozen_bytes() + DerivedBytes(family))
            << family << " " << static_cast<int>(quantize) << " " << dtype;
      }
    }
  }
}

TEST(FrozenWatchTest, NothingToWatchIsFine) {
  FrozenWatch watch({});
  EXPECT_THAT(watch.CheckSome(kRound), IsOk());
  EXPECT_THAT(watch.CheckAll(), IsOk());
}

}  // namespace
}  // namespace graft::trainer
