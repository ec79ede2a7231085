#include "models/weights/safetensors.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cstring>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/testing/status_matchers.h"
#include "tests/testing/model_folder.h"
#include "tests/testing/mutate.h"

namespace graft::models {
namespace {

using ::graft::testing::ExpectCleanOutcome;
using ::graft::testing::FailsWith;
using ::graft::testing::IsOk;
using ::graft::testing::Mutate;
using ::graft::testing::SafetensorsBytes;
using ::graft::testing::TempFolder;
using ::testing::ElementsAre;

TEST(SafetensorsTest, WhatIsWrittenComesBack) {
  const TempFolder folder;
  const std::vector<float> matrix = {1.0f, -2.0f, 3.5f, 0.0f, 5.0f, 6.0f};
  const std::vector<int64_t> ids = {7, -8};
  const std::vector<uint8_t> odd = {1, 2, 3};
  const std::string path = folder.Path("t.safetensors");
  ASSERT_THAT(WriteSafetensors(path,
                               {{"z", TensorType::kInt64, {2}, ids.data()},
                                {"b", TensorType::kFloat32, {2, 3}, matrix.data()},
                                {"a", TensorType::kUint8, {3}, odd.data()},
                                {"empty", TensorType::kBFloat16, {0, 4}, nullptr},
                                {"scalar", TensorType::kFloat32, {}, matrix.data()}},
                               {{"format", "pt"}}),
              IsOk());
  const auto file = SafetensorsFile::Open(path);
  ASSERT_THAT(file, IsOk());
  EXPECT_EQ((*file)->metadata().at("format"), "pt");
  EXPECT_EQ((*file)->tensors().size(), 5u);
  const auto b = (*file)->Find("b");
  ASSERT_THAT(b, IsOk());
  EXPECT_THAT(b->shape, ElementsAre(2, 3));
  EXPECT_EQ(b->bytes, 24);
  EXPECT_EQ(std::memcmp(b->data, matrix.data(), 24), 0);
  const auto z = (*file)->Find("z");
  ASSERT_THAT(z, IsOk());
  EXPECT_EQ(std::memcmp(z->data, ids.data(), 16), 0);  // behind 3 bytes: not aligned
  EXPECT_EQ((*file)->Find("empty")->num_elements(), 0);
  EXPECT_EQ((*file)->Find("scalar")->num_elements(), 1);
  EXPECT_THAT((*file)->Find("c"), FailsWith(ErrorKind::kInput, "t.safetensors: tensor `c`"));
}

TEST(SafetensorsTest, TheHeaderIsPaddedAndSortedByName) {
  const TempFolder folder;
  const float one = 1.0f;
  ASSERT_THAT(
      WriteSafetensors(
          folder.Path("t"),
          {{"b", TensorType::kFloat32, {1}, &one}, {"a", TensorType::kFloat32, {1}, &one}}, {}),
      IsOk());
  const std::string bytes = folder.Read("t");
  const auto length = static_cast<std::size_t>(static_cast<unsigned char>(bytes[0]));
  EXPECT_EQ(length % 8, 0u);
  EXPECT_EQ(bytes.size(), 8 + length + 8);
  EXPECT_LT(bytes.find("\"a\""), bytes.find("\"b\""));
}

TEST(SafetensorsTest, EmptyTensorMayStandBetweenOthers) {
  const TempFolder folder;
  const std::string header = R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
                             R"("e":{"dtype":"F32","shape":[0],"data_offsets":[2,2]},)"
                             R"("b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}})";
  EXPECT_THAT(SafetensorsFile::Open(folder.Write("t", SafetensorsBytes(header, "abc"))), IsOk());
  const std::string off = R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
                          R"("e":{"dtype":"F32","shape":[0],"data_offsets":[1,1]}})";
  EXPECT_THAT(
      SafetensorsFile::Open(folder.Write("u", SafetensorsBytes(off, "ab"))),
      FailsWith(ErrorKind::kInput, "tensor `e`: data_offsets: begins at 1, must begin at 2"));
}

struct BadHeader {
  const char* what;
  std::string header;
  const char* message;
};

class BadHeaderTest : public ::testing::TestWithParam<BadHeader> {};

TEST_P(BadHeaderTest, IsRefused) {
  const TempFolder folder;
  const std::string path = folder.Write("t.safetensors", SafetensorsBytes(GetParam().header, "ab"));
  EXPECT_THAT(SafetensorsFile::Open(path), FailsWith(ErrorKind::kInput, GetParam().message))
      << GetParam().what;
  EXPECT_THAT(SafetensorsFile::Open(path), FailsWith(ErrorKind::kInput, path));
}

std::string Entry(const std::string& name, const std::string& shape = "[2]") {
  return "{\"" + name + R"(":{"dtype":"U8","data_offsets":[0,2],"shape":)" + shape + "}}";
}

INSTANTIATE_TEST_SUITE_P(
    Headers, BadHeaderTest,
    ::testing::Values(
        BadHeader{"control character in a name", Entry("a\\u0007b"), "control characters"},
        BadHeader{"empty name", Entry(""), "empty"},
        BadHeader{"long name", Entry(std::string(1025, 'n')), "tensor name of 1025 bytes"},
        BadHeader{"nine dimensions", Entry("a", "[2,1,1,1,1,1,1,1,1]"), "has 9 dimensions"},
        BadHeader{"deep", R"({"a":{"dtype":"U8","shape":[[[[2]]]],"data_offsets":[0,2]}})",
                  "deeper than 4"},
        BadHeader{"unknown key", R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2],"x":1}})",
                  "unknown key"},
        BadHeader{"entry is no object", R"({"a":[0,2]})", "must be an object"},
        BadHeader{"metadata is no map", R"({"__metadata__":3})", "__metadata__"},
        BadHeader{"metadata value", R"({"__metadata__":{"k":3}})", "__metadata__: k"},
        BadHeader{"three offsets", R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,1,2]}})",
                  "data_offsets"},
        BadHeader{"shape of a real", Entry("a", "[2.0]"), "shape[0]"},
        BadHeader{"two values", "{} {}", "header"}));

TEST(SafetensorsTest, OnlyPlainFilesAndLinksInsideTheRoot) {
  const TempFolder root;
  const float one = 1.0f;
  const auto write = [&](const std::string& path) {
    ASSERT_THAT(WriteSafetensors(path, {{"a", TensorType::kFloat32, {1}, &one}}, {}), IsOk());
  };
  std::filesystem::create_directories(root.Path("cache/snapshot"));
  std::filesystem::create_directories(root.Path("cache/blobs"));
  write(root.Path("cache/blobs/inside"));
  write(root.Path("outside"));
  ASSERT_EQ(::symlink("../blobs/inside", root.Path("cache/snapshot/good").c_str()), 0);
  ASSERT_EQ(::symlink("../../outside", root.Path("cache/snapshot/bad").c_str()), 0);
  ASSERT_EQ(::mkfifo(root.Path("cache/snapshot/pipe").c_str(), 0600), 0);
  EXPECT_THAT(SafetensorsFile::Open(root.Path("cache/snapshot/good")), IsOk());
  EXPECT_THAT(SafetensorsFile::Open(root.Path("cache/snapshot/bad")),
              FailsWith(ErrorKind::kInput, "snapshot/bad"));
  EXPECT_THAT(SafetensorsFile::Open(root.Path("cache/snapshot/bad"), {.follow_links = true}),
              IsOk());
  EXPECT_THAT(SafetensorsFile::Open(root.Path("cache/snapshot/pipe")),
              FailsWith(ErrorKind::kInput, "pipe"));
}

TEST(SafetensorsTest, AThousandMutationsNeverCrash) {
  const TempFolder folder;
  graft::testing::Tensors tensors;
  tensors.Add("model.embed_tokens.weight", {8, 4});
  tensors.Add("model.norm.weight", {4});
  tensors.Add("empty", {0, 3});
  tensors.Write(folder.Path("valid"));
  const std::string valid = folder.Read("valid");
  int refused = 0;
  for (uint64_t seed = 0; seed < 1000; ++seed) {
    const std::string path = folder.Write("mutated", Mutate(valid, seed));
    const auto file = SafetensorsFile::Open(path);
    ExpectCleanOutcome(file.status(), path, seed);
    refused += file.ok() ? 0 : 1;
    if (!file.ok()) continue;
    uint32_t sum = 0;  // touches every byte that the views promise
    for (const auto& [name, view] : (*file)->tensors()) {
      for (int64_t i = 0; i < view.bytes; ++i) sum += view.data[i];
    }
    EXPECT_LE(sum, 255u * valid.size() * 2) << seed;
  }
  EXPECT_GT(refused, 500);
}

}  // namespace
}  // namespace graft::models
