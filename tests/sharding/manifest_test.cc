#include "sharding/manifest.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/hash.h"
#include "tests/sharding/tiny_run.h"
#include "tests/testing/status_matchers.h"

namespace graft::sharding {
namespace {

using ::graft::testing::FailsWith;
using ::graft::testing::IsOk;
using ::testing::ElementsAre;

// One parameter of 3 numbers, as a commit would fill it in.
Manifest Example() {
  Manifest manifest = testing::TinyManifest(12);
  manifest.updates = 11;
  manifest.skipped = 1;
  manifest.start = 3;
  manifest.non_finite = {1, {12}};
  manifest.eval = EvalInfo{"loss", 0.1 + 0.2, 8, 1, false};
  manifest.layout.versions = {{"graft", "a \"quoted\"\n \"self_sha256\": \"text"}};
  manifest.adapter.parameters = 3;
  manifest.recipe.sha256 = Sha256Hex("a: 1");
  const std::string shard = "shards/layer-0000.safetensors";
  manifest.files = {{"recipe.yaml", 4, manifest.recipe.sha256}, {shard, 5, Sha256Hex("shard")}};
  for (const char* const key : {"exp_avg/x", "exp_avg_sq/x", "param/x"}) {
    manifest.tensors.push_back({key, shard, "F32", {3}, 0x123456789abcdef0u});
  }
  return manifest;
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
  const std::string text = ManifestText(Example());
  EXPECT_EQ(text.back(), '\n');
  const absl::StatusOr<Manifest> read = ParseManifest(text, "manifest.json");
  ASSERT_THAT(read, IsOk());
  EXPECT_EQ(ManifestText(*read), text);
  EXPECT_EQ(read->step, 12);
  EXPECT_EQ(read->eval->best, 0.1 + 0.2);
  EXPECT_EQ(read->optimizer.betas, Example().optimizer.betas);
  EXPECT_EQ(read->layout.versions, Example().layout.versions);
  ASSERT_EQ(read->files.size(), 2u);
  EXPECT_EQ(read->files[1].bytes, 5);
  EXPECT_EQ(read->tensors[2].hash64, 0x123456789abcdef0u);
  Manifest without = Example();
  without.eval.reset();
  without.data.tokenizer_sha256 = Sha256Hex("t");
  const absl::StatusOr<Manifest> other = ParseManifest(ManifestText(without), "manifest.json");
  ASSERT_THAT(other, IsOk());
  EXPECT_FALSE(other->eval.has_value());
  EXPECT_EQ(other->data.tokenizer_sha256, Sha256Hex("t"));
}

// reliability.md 1.2: the table's keys, all of them and no other.
TEST(Manifest, HasTheKeysOfTheFormat) {
  const auto object = nlohmann::json::parse(ManifestText(Example()));
  const std::map<std::string, std::vector<std::string>> keys = {
      {"base",
       {"dtype", "fingerprint", "hidden_size", "model_type", "num_layers", "quantize",
        "vocab_size"}},
      {"adapter", {"config_sha256", "hash64", "method", "parameters"}},
      {"optimizer", {"betas", "clip_norm", "eps", "name", "weight_decay"}},
      {"schedule", {"lr", "name", "total_steps", "warmup_steps"}},
      {"non_finite", {"consecutive", "recent"}},
      {"data",
       {"cursor", "epoch", "fingerprint", "global_batch", "num_samples", "packing", "plan_sha256",
        "shuffle", "tokenizer_sha256"}},
      {"rng", {"key", "scheme"}},
      {"layout",
       {"backend", "cpu_isa", "data", "device", "micro_batch", "pipeline", "schedule", "split",
        "threads", "versions"}},
      {"recipe", {"file", "resume_sha256", "sha256"}}};
  std::vector<std::string> top;
  for (const auto& item : object.items()) top.push_back(item.key());
  EXPECT_THAT(top, ElementsAre("adapter", "base", "created", "data", "eval", "files", "format",
                               "graft_version", "layout", "loss_scale", "non_finite", "optimizer",
                               "recipe", "rng", "run_id", "schedule", "self_sha256", "skipped",
                               "start", "step", "tensors", "updates", "version"));
  for (const auto& [section, names] : keys) {
    std::vector<std::string> found;
    for (const auto& item : object[section].items()) found.push_back(item.key());
    EXPECT_EQ(found, names) << section;
  }
  EXPECT_EQ(object["loss_scale"], nullptr);
  EXPECT_EQ(object["schedule"]["lr"], "0x1.0624dd2f1a9fcp-10");
  EXPECT_EQ(object["rng"]["key"], "0000000000000007");
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
              FailsWith(ErrorKind::kInput, "updates 11, skipped 2"));
  EXPECT_THAT(parse(Replace(text, "\"skipped\": 1", "\"skipped\": 1,\n \"strange\": 1")),
              FailsWith(ErrorKind::kInput, "strange"));
  EXPECT_THAT(parse(Replace(text, "\"skipped\": 1,", "")), FailsWith(ErrorKind::kInput, "skipped"));
  // In `files` and where the recipe names its file alike.
  for (const char* name : {"../layer", "a/b", "..", "", "shards/a/b"}) {
    const std::string once = Replace(text, "recipe.yaml", name);
    EXPECT_THAT(parse(once), FailsWith(ErrorKind::kInput, "file")) << name;
    EXPECT_THAT(parse(Replace(once, "recipe.yaml", name)), FailsWith(ErrorKind::kInput, "file"))
        << name;
  }
  EXPECT_THAT(parse(Replace(text, Sha256Hex("shard"), "xyz")),
              FailsWith(ErrorKind::kInput, "sha256: found `xyz`"));
  EXPECT_THAT(parse(Replace(text, "\"hash64\": \"123456789abcdef0\"", "\"hash64\": 7")),
              FailsWith(ErrorKind::kInput, "hash64"));
  EXPECT_THAT(parse(Replace(text, "\"loss_scale\": null", "\"loss_scale\": 1")),
              FailsWith(ErrorKind::kInput, "loss_scale"));
  EXPECT_THAT(parse(Replace(text, "0x1.0624dd2f1a9fcp-10", "fast")),
              FailsWith(ErrorKind::kInput, "lr: found `fast`"));
}

TEST(Manifest, TensorsMustBeComplete) {
  const auto parse = [](const auto& edit) {
    Manifest manifest = Example();
    edit(manifest);
    return ParseManifest(ManifestText(manifest), "m");
  };
  EXPECT_THAT(parse([](Manifest& m) { m.tensors.erase(m.tensors.begin()); }),
              FailsWith(ErrorKind::kInput, "a parameter and its moments"));
  EXPECT_THAT(parse([](Manifest& m) { m.tensors[0].shape = {4}; }),
              FailsWith(ErrorKind::kInput, "a parameter and its moments"));
  EXPECT_THAT(parse([](Manifest& m) { m.tensors[0].file = "shards/other.safetensors"; }),
              FailsWith(ErrorKind::kInput, "its file is not listed"));
  EXPECT_THAT(parse([](Manifest& m) { m.tensors[0].key = "exp_avg/"; }),
              FailsWith(ErrorKind::kInput, "with a name"));
  EXPECT_THAT(parse([](Manifest& m) { std::swap(m.tensors[0], m.tensors[1]); }),
              FailsWith(ErrorKind::kInput, "out of order"));
  EXPECT_THAT(parse([](Manifest& m) { m.tensors[1] = m.tensors[0]; }),
              FailsWith(ErrorKind::kInput, "occurs twice"));
  const auto with_average = [](const char* kind) {
    return [kind](Manifest& m) {
      TensorEntry average = m.tensors[0];
      average.key = kind;
      m.tensors.push_back(average);
    };
  };
  EXPECT_THAT(parse(with_average("sensitivity/x")),
              FailsWith(ErrorKind::kInput, "sensitivity/ and uncertainty/ must be there"));
  EXPECT_THAT(parse(with_average("uncertainty/x")),
              FailsWith(ErrorKind::kInput, "sensitivity/ and uncertainty/ must be there"));
  EXPECT_THAT(parse([&](Manifest& m) {
                with_average("sensitivity/x")(m);
                with_average("uncertainty/x")(m);
              }),
              IsOk());
  EXPECT_THAT(parse([](Manifest& m) { m.adapter.parameters = 4; }),
              FailsWith(ErrorKind::kInput, "found 3 parameters, adapter says 4"));
  EXPECT_THAT(parse([](Manifest& m) {
                m.files.push_back({"shards/z.safetensors", 1, m.files[0].sha256});
              }),
              FailsWith(ErrorKind::kInput, "a listed shard has no tensor"));
}

}  // namespace
}  // namespace graft::sharding
