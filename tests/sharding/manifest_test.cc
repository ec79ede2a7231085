#include "sharding/manifest.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/hash.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_folder.h"

namespace graft::sharding {
namespace {

using ::graft::testing::FailsWith;
using ::graft::testing::IsOk;
using ::graft::testing::TempFolder;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

Manifest Example() {
  Manifest manifest;
  manifest.step = 12;
  manifest.updates = 11;
  manifest.skipped = 1;
  manifest.start = 3;
  // A key that looks like the manifest's own hash.
  manifest.fixed = {{"optim.lr", "0x1.a36e2eb1c432dp-14"}, {"self_sha256", "mine"}};
  manifest.layout = {{"pipeline", "2"}};
  manifest.state = {{"best", "a \"quoted\"\n \"self_sha256\": \"text"}};
  manifest.files = {{"recipe.yaml", 4, Sha256Hex("a: 1")},
                    {"shards/layer-0000.safetensors", 5, Sha256Hex("shard")}};
  return manifest;
}

// A folder that the example describes.
std::string WriteExample(const TempFolder& temp, const std::string& name,
                         const Manifest& manifest = Example()) {
  temp.Write(name + "/recipe.yaml", "a: 1");
  temp.Write(name + "/shards/layer-0000.safetensors", "shard");
  temp.Write(name + "/manifest.json", ManifestText(manifest));
  return temp.Path(name);
}

// The text with a correct hash of itself after an edit.
std::string WithHash(std::string text) {
  const std::string key = "\n \"self_sha256\": \"";
  const size_t at = text.find(key) + key.size();
  text.replace(at, 64, std::string(64, '0'));
  return text.replace(at, 64, Sha256Hex(text));
}

std::string Replace(std::string text, const std::string& from, const std::string& to) {
  const size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return text.replace(at, from.size(), to);
}

TEST(Manifest, TextReadsBack) {
  const Manifest manifest = Example();
  const std::string text = ManifestText(manifest);
  EXPECT_EQ(text.back(), '\n');
  const absl::StatusOr<Manifest> read = ParseManifest(text, "manifest.json");
  ASSERT_THAT(read, IsOk());
  EXPECT_EQ(ManifestText(*read), text);
  EXPECT_EQ(read->step, 12);
  EXPECT_EQ(read->fixed, manifest.fixed);
  EXPECT_EQ(read->state, manifest.state);
  ASSERT_EQ(read->files.size(), 2u);
  EXPECT_EQ(read->files[1].bytes, 5);
}

TEST(Manifest, EveryFlippedBitAndEveryTruncationIsFound) {
  const std::string text = ManifestText(Example());
  for (size_t i = 0; i < text.size(); ++i) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string bad = text;
      bad[i] = static_cast<char>(bad[i] ^ (1 << bit));
      EXPECT_THAT(ParseManifest(bad, "m"), FailsWith(ErrorKind::kInput, "m")) << i << " " << bit;
    }
    EXPECT_THAT(ParseManifest(text.substr(0, i), "m"), FailsWith(ErrorKind::kInput, "m")) << i;
  }
}

TEST(Manifest, WhatIsWrongIsNamed) {
  const std::string text = ManifestText(Example());
  auto parse = [](const std::string& edited) { return ParseManifest(WithHash(edited), "m"); };
  EXPECT_THAT(parse(text), IsOk());
  EXPECT_THAT(parse(Replace(text, "\"version\": 1", "\"version\": 2")),
              FailsWith(ErrorKind::kInput, "version: found 2, this program reads 1"));
  EXPECT_THAT(parse(Replace(text, "graft-checkpoint", "graft-dataset")),
              FailsWith(ErrorKind::kInput, "found `graft-dataset`"));
  EXPECT_THAT(parse(Replace(text, "\"skipped\": 1", "\"skipped\": 2")),
              FailsWith(ErrorKind::kInput, "updates + skipped = 13"));
  EXPECT_THAT(parse(Replace(text, "\"skipped\": 1", "\"skipped\": 1,\n \"strange\": 1")),
              FailsWith(ErrorKind::kInput, "strange"));
  EXPECT_THAT(parse(Replace(text, "\"skipped\": 1,", "")), FailsWith(ErrorKind::kInput, "skipped"));
  for (const char* name : {"../layer", "a/b", "..", "", "shards/a/b"}) {
    EXPECT_THAT(parse(Replace(text, "recipe.yaml", name)), FailsWith(ErrorKind::kInput, "file"))
        << name;
  }
  EXPECT_THAT(parse(Replace(text, "recipe.yaml", "shards/layer-0000.safetensors")),
              FailsWith(ErrorKind::kInput, "twice"));
  EXPECT_THAT(parse(Replace(text, Sha256Hex("a: 1"), "xyz")),
              FailsWith(ErrorKind::kInput, "sha256: found `xyz`"));
}

TEST(Manifest, ValidateComparesEveryFile) {
  const TempFolder temp;
  const std::string folder = WriteExample(temp, "good");
  EXPECT_THAT(ValidateCheckpoint(folder), IsOk());

  WriteExample(temp, "flipped");
  temp.Write("flipped/shards/layer-0000.safetensors", "sharD");
  EXPECT_THAT(ValidateCheckpoint(temp.Path("flipped")), FailsWith(ErrorKind::kInput, "sha256 is"));

  WriteExample(temp, "short");
  temp.Write("short/shards/layer-0000.safetensors", "shar");
  EXPECT_THAT(ValidateCheckpoint(temp.Path("short")),
              FailsWith(ErrorKind::kInput, "found 4 bytes, the manifest says 5"));

  temp.Write("missing/manifest.json", ManifestText(Example()));
  temp.Write("missing/recipe.yaml", "a: 1");
  EXPECT_THAT(ValidateCheckpoint(temp.Path("missing")), FailsWith(ErrorKind::kInput, "layer-0000"));

  temp.Write("unfinished/recipe.yaml", "a: 1");
  EXPECT_THAT(ValidateCheckpoint(temp.Path("unfinished")),
              FailsWith(ErrorKind::kInput, "manifest.json"));
}

TEST(Manifest, FolderNames) {
  EXPECT_EQ(StepFolderName(200), "step-00000200");
  EXPECT_EQ(ParseStepFolderName("step-00000200"), 200);
  for (const char* name : {"step-200", "step-00000200.tmp-0001", "step-00000200.bad-1",
                           "step-0000020x", "stop-00000200", "step--0000200", "step-000002000"}) {
    EXPECT_FALSE(ParseStepFolderName(name).has_value()) << name;
  }
  const TempFolder temp;
  EXPECT_THAT(*ListStepFolders(temp.Path("absent")), IsEmpty());
  for (const char* name : {"step-00000009", "step-00000100", "step-00000020", "step-00000300.bad-1",
                           "step-00000400.tmp-0001", "other"}) {
    temp.Write(std::string(name) + "/x", "");
  }
  EXPECT_THAT(*ListStepFolders(temp.path()),
              ElementsAre("step-00000100", "step-00000020", "step-00000009"));
}

TEST(Manifest, DifferencesInFixedValuesNameBoth) {
  EXPECT_THAT(CompareFixed({{"a", "1"}, {"b", "2"}}, {{"a", "1"}, {"b", "2"}}, "c"), IsOk());
  EXPECT_THAT(CompareFixed({{"a", "1"}, {"b", "2"}}, {{"a", "1"}, {"b", "3"}}, "c"),
              FailsWith(ErrorKind::kIo, "b is `2` in the checkpoint and `3` now"));
  EXPECT_THAT(CompareFixed({{"a", "1"}}, {}, "c"),
              FailsWith(ErrorKind::kIo, "a is `1` in the checkpoint and absent now"));
  EXPECT_THAT(CompareFixed({}, {{"a", ""}}, "c"),
              FailsWith(ErrorKind::kIo, "a is absent in the checkpoint and `` now"));
  TextMap many;
  for (int i = 0; i < 7; ++i) many[std::to_string(i)] = "x";
  EXPECT_THAT(CompareFixed(many, {}, "c"), FailsWith(ErrorKind::kIo, "and 3 more"));
}

}  // namespace
}  // namespace graft::sharding
