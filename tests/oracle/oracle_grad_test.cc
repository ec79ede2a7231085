// Logits, loss and every adapter gradient of the first training step against HF transformers + PEFT
// (float32), for each case that make_goldens.py wrote: the whole model on one stage, with
// recomputation, and cut into one stage per layer.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "adapters/adapter.h"
#include "adapters/adapter_set.h"
#include "adapters/task_head.h"
#include "base/recipe_yaml.h"
#include "models/backbone.h"
#include "models/layers/task_loss.h"
#include "models/weights/expected_tensors.h"
#include "models/weights/weight_source.h"
#include "sharding/model_encoder.h"
#include "tests/testing/status_matchers.h"
#include "trainer/data/collate.h"
#include "trainer/data/dataset.h"

namespace graft {
namespace {

using adapters::AdapterSet;
using ::graft::testing::IsOk;
using models::Backbone;
using models::LayerRange;
using nlohmann::json;
using Tensors = std::vector<std::pair<std::string, torch::Tensor>>;

constexpr double kLogitsAbsolute = 1e-4;
constexpr double kLossRelative = 2e-5;
constexpr double kGradientRelative = 1e-4;  // largest difference / largest value, per tensor

std::string Goldens() {
  if (const char* folder = std::getenv("GRAFT_GOLDENS")) return folder;
  const char* binary_dir = std::getenv("GRAFT_BINARY_DIR");
  return std::string(binary_dir == nullptr ? "." : binary_dir) + "/goldens";
}

std::vector<std::string> CaseNames() {
  std::set<std::string> names;
  std::error_code absent;  // told apart by Goldens.AreThere
  for (const auto& entry : std::filesystem::directory_iterator(Goldens() + "/cases", absent)) {
    names.insert(entry.path().filename().string());
  }
  return {names.begin(), names.end()};
}

Tensors ReadTensors(const std::string& path) {
  auto file = ValueOrThrow(models::SafetensorsFile::Open(path));
  Tensors tensors;
  for (const auto& [name, view] : file->tensors()) {
    EXPECT_EQ(view.type, models::TensorType::kFloat32) << name;
    torch::Tensor value = at::empty(view.shape, at::kFloat);
    std::memcpy(value.data_ptr(), view.data, static_cast<size_t>(view.bytes));
    tensors.emplace_back(name, value);
  }
  return tensors;
}

std::map<std::string, torch::Tensor> WithPrefix(const Tensors& tensors, const std::string& prefix) {
  std::map<std::string, torch::Tensor> chosen;
  for (const auto& [name, value] : tensors) {
    if (name.rfind(prefix, 0) == 0) chosen[name.substr(prefix.size())] = value;
  }
  return chosen;
}

// The method with the keys of the recipe's adapter section.
std::unique_ptr<adapters::Method> MakeMethod(const json& section) {
  auto method = ValueOrThrow(adapters::NewMethod(section.at("method").get<std::string>()));
  FieldList fields;
  for (const auto& [key, value] : section.items()) {
    if (key != "method" && key != "layers") fields.emplace_back(key, value.dump());
  }
  ThrowIfError(ReadFieldList(fields, "golden.json",
                             [&](FieldVisitor& visitor) { method->VisitFields(visitor); }));
  return method;
}

// Sites of the model in the layers "first-last" of the section, or of all layers.
std::vector<models::SiteSpec> SitesInLayers(const models::ModelConfig& config,
                                            const json& section) {
  int first = 0, last = static_cast<int>(config.num_layers) - 1;
  const std::string layers = section.value("layers", "all");
  if (layers != "all") {
    EXPECT_EQ(std::sscanf(layers.c_str(), "%d-%d", &first, &last), 2) << layers;
  }
  std::vector<models::SiteSpec> sites;
  for (const models::SiteSpec& site : models::ListSites(config)) {
    const bool is_embed = site.id.role == models::Role::kEmbed;
    if (is_embed || (site.id.layer >= first && site.id.layer <= last)) sites.push_back(site);
  }
  return sites;
}

struct Stage {
  std::unique_ptr<Backbone> backbone;
  std::unique_ptr<AdapterSet> adapters;
};

enum class Cut { kWhole, kRecompute, kStagePerLayer };

const char* CutName(Cut cut) {
  return cut == Cut::kWhole ? "whole" : cut == Cut::kRecompute ? "recompute" : "stage_per_layer";
}

class OracleTest : public ::testing::TestWithParam<std::tuple<std::string, Cut>> {
 protected:
  void SetUp() override {
    const std::string folder = Goldens() + "/cases/" + std::get<0>(GetParam());
    golden_ = json::parse(std::ifstream(folder + "/golden.json"));
    numbers_ = ReadTensors(folder + "/golden.safetensors");
    const std::string task = golden_.at("case").at("task");
    data_ = ValueOrThrow(trainer::Dataset::Open(Goldens() + "/data/" +
                                                (task == "causal_lm" ? "train" : task + "-train")));
    const json& section = golden_.at("case").at("adapter");
    const std::string model_folder = golden_.at("model_folder");
    config_ = ValueOrThrow(models::ReadModelConfig(model_folder));
    weights_ = ValueOrThrow(models::OpenFolderWeights(model_folder, {}));
    method_ = MakeMethod(section);
    const bool has_head = task == "classification" || task == "regression";
    std::vector<adapters::ParameterSpec> all;
    for (const auto& tensor : models::PlacedTensors(config_, !has_head))
      all.push_back({tensor.name, tensor.shape, tensor.layer});
    ThrowIfError(method_->Open(
        {config_.model_type, models::ListSites(config_), static_cast<int>(config_.num_layers),
         [](const std::string& path) { return sharding::ReadEncoderFacts(path, false); }, all}));
    if (has_head) AddTaskHead();
    matched_ = ValueOrThrow(method_->MatchSites(SitesInLayers(config_, section)));
    if (!method_->trains_backbone()) LoadInitial(folder);
    BuildStages(std::get<1>(GetParam()));
  }

  void LoadInitial(const std::string& folder) {
    const json peft = json::parse(std::ifstream(folder + "/initial/adapter_config.json"));
    initial_ = ValueOrThrow(method_->FromFolder(
        matched_, peft, ReadTensors(folder + "/initial/adapter_model.safetensors"), folder));
    ASSERT_THAT(adapters::CheckAdapterTensors(*method_, matched_, initial_, folder), IsOk());
  }

  void AddTaskHead() {
    const models::TaskHeadModule head = models::TaskHeadOf(config_);
    has_head_ = true;
    method_ = adapters::WithTaskHead(
        std::move(method_),
        {.module = head.module,
         .has_dense = head.has_dense,
         .width = config_.hidden_size,
         .outputs = std::max<int64_t>(1, static_cast<int64_t>(data_->info().labels.size())),
         .num_layers = static_cast<int>(config_.num_layers)});
  }

  void BuildStages(Cut cut) {
    const int layers = static_cast<int>(config_.num_layers);
    if (cut != Cut::kStagePerLayer) {
      AddStage({0, layers, true, true}, cut == Cut::kRecompute);
      return;
    }
    for (int i = 0; i < layers; ++i) AddStage({i, 1, i == 0, i == layers - 1}, false);
  }

  void AddStage(LayerRange range, bool recompute) {
    models::BackboneOptions options;
    options.recompute = recompute;
    options.language_head = !has_head_;
    options.train_weights = method_->trains_backbone();
    options.pool_first_row = method_->reads_first_row();
    Stage stage;
    stage.backbone = ValueOrThrow(models::BuildBackbone(config_, range, *weights_, options));
    std::vector<models::SiteSpec> here;
    for (const models::SiteSpec& site : matched_) {
      const models::Role role = site.id.role;
      const bool in_range = site.id.layer >= range.first_layer && site.id.layer < range.end_layer();
      const bool outside = (role == models::Role::kEmbed && range.embed) ||
                           (role == models::Role::kHead && range.head);
      if (in_range || outside) here.push_back(site);
    }
    adapters::AttachOptions attach;
    attach.num_layers = static_cast<int>(config_.num_layers);
    attach.trained_weights = stage.backbone->trained_weights();
    if (const auto* encoder = method_->prompt_encoder(); encoder != nullptr && range.embed) {
      const auto weights = ValueOrThrow(models::OpenFolderWeights(encoder->path, {}));
      attach.prompt_encoder =
          ValueOrThrow(sharding::LoadModelEncoder(*encoder, *weights, torch::kFloat32));
    }
    if (method_->trains_backbone() && has_head_) attach.stored_head = StoredHead();
    stage.adapters =
        ValueOrThrow(AdapterSet::Attach(*method_, here, attach, stage.backbone->sites()));
    if (!method_->trains_backbone()) ThrowIfError(stage.adapters->Load(initial_));
    stages_.push_back(std::move(stage));
  }

  // The task head of the model folder or, where it has none, of the reference's start.
  Tensors StoredHead() const {
    Tensors head;
    const std::string folder = Goldens() + "/cases/" + std::get<0>(GetParam());
    for (auto& [name, value] : ReadTensors(folder + "/initial/model.safetensors")) {
      if (name.rfind("classifier.", 0) == 0 || name == "score.weight")
        head.emplace_back(name, value);
    }
    return head;
  }

  // The hidden state that enters the final norm; `context` is the last stage's.
  torch::Tensor Forward(const models::MicroBatch& batch, models::SiteContext* context) {
    torch::Tensor h;
    for (Stage& stage : stages_) {
      *context = models::SiteContext();
      context->batch = &batch;
      context->training = true;
      if (stage.backbone->range().embed) h = stage.backbone->Embed(*context);
      h = stage.backbone->Layers(h, *context);
    }
    return h;
  }

  torch::Tensor LossSum(const torch::Tensor& h, models::SiteContext& context) {
    Backbone& last = *stages_.back().backbone;
    return has_head_ ? models::TaskLossSum(last.TaskOutputs(h, context), *context.batch)
                     : last.LossSum(h, context);
  }

  // All rows of a text, or the outputs of the task head.
  torch::Tensor Logits(const torch::Tensor& h, models::SiteContext& context) {
    Backbone& last = *stages_.back().backbone;
    if (has_head_) return last.TaskOutputs(h, context).view({-1});
    std::vector<int64_t> rows;
    // The rows of an encoder stand in front.
    const int64_t first = context.batch->boundary_rows() - context.batch->num_rows();
    for (const models::Segment& segment : context.batch->segments) {
      const int64_t end = segment.begin + segment.length;
      for (int64_t row = segment.prompt_begin(); row < end; ++row) rows.push_back(first + row);
    }
    return last.Logits(h, rows);
  }

  std::vector<int64_t> FirstGlobalBatch() const {
    std::vector<int64_t> samples(golden_.at("case").at("optim").at("global_batch").get<size_t>());
    for (size_t i = 0; i < samples.size(); ++i)
      samples[i] = static_cast<int64_t>(i) % data_->size();
    return samples;
  }

  // As the folder names and joins them. What is fixed there has the gradient 0.
  Tensors FolderGradients(const Tensors& gradients) const {
    Tensors zeros;
    for (const auto& [name, value] : gradients) zeros.emplace_back(name, at::zeros_like(value));
    const Tensors fixed = method_->ToFolder(matched_, zeros);
    Tensors joined = method_->ToFolder(matched_, gradients);
    for (size_t i = 0; i < joined.size(); ++i)
      joined[i].second = joined[i].second - fixed[i].second;
    return joined;
  }

  bool has_head_ = false;
  json golden_;
  Tensors numbers_, initial_;
  std::shared_ptr<const trainer::Dataset> data_;
  models::ModelConfig config_;
  std::unique_ptr<models::WeightSource> weights_;
  std::unique_ptr<adapters::Method> method_;
  std::vector<models::SiteSpec> matched_;
  std::vector<Stage> stages_;
};

TEST(Goldens, AreThere) { EXPECT_FALSE(CaseNames().empty()) << Goldens(); }

TEST_P(OracleTest, LogitsOfSamples) {
  const auto logits = WithPrefix(numbers_, "logits/");
  ASSERT_FALSE(logits.empty());
  for (const auto& [sample, expected] : logits) {
    const models::MicroBatch batch =
        trainer::Collate(*data_, {std::stoll(sample)}, 1, 0, method_->virtual_rows(),
                         config_.decoder_start_token_id);
    models::SiteContext context;
    const torch::Tensor h = Forward(batch, &context);
    const torch::Tensor ours = Logits(h, context);
    ASSERT_EQ(ours.sizes(), expected.sizes());
    EXPECT_LE((ours - expected).abs().max().item<double>(), kLogitsAbsolute) << "sample " << sample;
  }
}

TEST_P(OracleTest, LossAndGradientsOfTheFirstStep) {
  const std::vector<int64_t> samples = FirstGlobalBatch();
  const models::MicroBatch batch = trainer::Collate(*data_, samples, 1, 0, method_->virtual_rows(),
                                                    config_.decoder_start_token_id);
  const auto count = static_cast<double>(trainer::CountTrainedTokens(*data_, samples));
  models::SiteContext context;
  const torch::Tensor h = Forward(batch, &context);
  const torch::Tensor loss = LossSum(h, context) / count;
  const double expected_loss = golden_.at("steps").at(0).at("loss");
  EXPECT_NEAR(loss.item<double>(), expected_loss, kLossRelative * expected_loss);
  loss.backward();

  // A weight that several stages compute with (method full) has a part of its gradient on each.
  std::map<std::string, torch::Tensor> sums;
  for (const Stage& stage : stages_) {
    for (const adapters::NamedParameter& parameter : stage.adapters->parameters()) {
      torch::Tensor& sum = sums[parameter.name];
      sum = sum.defined() ? sum + parameter.value.grad() : parameter.value.grad();
    }
  }
  const Tensors gradients(sums.begin(), sums.end());
  auto expected = WithPrefix(numbers_, "gradient/");
  for (const auto& [name, value] : FolderGradients(gradients)) {
    ASSERT_EQ(expected.count(name), 1u) << name;
    const torch::Tensor& reference = expected[name];
    double largest = reference.abs().max().item<double>();
    ASSERT_GT(largest, 0) << name;
    // The bias of keys changes no softmax: what both sides have of its gradient is rounding.
    if (name.ends_with("self.key.bias")) largest = std::max(largest, 1e-3);
    EXPECT_LE((value - reference).abs().max().item<double>(), kGradientRelative * largest) << name;
    expected.erase(name);
  }
  EXPECT_TRUE(expected.empty()) << "no parameter for " << expected.begin()->first;
}

INSTANTIATE_TEST_SUITE_P(Cases, OracleTest,
                         ::testing::Combine(::testing::ValuesIn(CaseNames()),
                                            ::testing::Values(Cut::kWhole, Cut::kRecompute,
                                                              Cut::kStagePerLayer)),
                         [](const auto& param_info) {
                           return std::get<0>(param_info.param) + "_" +
                                  CutName(std::get<1>(param_info.param));
                         });

}  // namespace
}  // namespace graft
