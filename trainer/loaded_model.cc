#include "trainer/loaded_model.h"

#include <algorithm>
#include <set>
#include <utility>

#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "adapters/task_head.h"
#include "base/logging.h"
#include "base/status.h"
#include "base/text.h"
#include "comm/agree.h"
#include "models/backbone.h"
#include "models/weights/expected_tensors.h"
#include "sharding/adapter_folder.h"
#include "sharding/gather.h"
#include "sharding/model_encoder.h"
#include "trainer/device.h"
#include "trainer/fingerprint.h"
#include "trainer/memory.h"
#include "trainer/merge_model.h"
#include "trainer/plan_check.h"
#include "trainer/threads.h"

namespace graft::trainer {
namespace {

absl::Status Unsupported(const std::string& key, const std::string& found,
                         const std::string& allowed) {
  return RecipeError(
      absl::StrCat(key, ": found \"", found, "\", this version supports: ", allowed));
}

adapters::TaskHeadSpec TaskHeadSpecOf(const Recipe& recipe, const models::ModelConfig& config,
                                      int64_t outputs) {
  const models::TaskHeadModule head = models::TaskHeadOf(config);
  return {.module = head.module,
          .has_dense = head.has_dense,
          .width = config.hidden_size,
          .outputs = outputs,
          .initializer_range = config.initializer_range,
          .train = recipe.adapter.head_train,
          .dropout = recipe.adapter.head_dropout,
          .num_layers = static_cast<int>(config.num_layers)};
}

std::set<std::string> BackboneNames(const models::ModelConfig& config, bool language_head) {
  std::set<std::string> names;
  for (models::PlacedTensor& tensor : models::PlacedTensors(config, language_head)) {
    names.insert(std::move(tensor.name));
  }
  return names;
}

// Numbers in those that `counts` is true of.
template <typename Counts>
int64_t CountWhere(const std::vector<adapters::ParameterSpec>& parameters, const Counts& counts) {
  int64_t count = 0;
  for (const adapters::ParameterSpec& parameter : parameters) {
    if (counts(parameter)) count += c10::multiply_integers(parameter.shape);
  }
  return count;
}

}  // namespace

absl::StatusOr<std::unique_ptr<models::WeightSource>> OpenRecipeWeights(
    const Recipe& recipe, const models::ModelConfig& config, torch::Device device) {
  if (recipe.model.path.empty())
    return models::SyntheticWeights(config, static_cast<uint64_t>(recipe.run.seed), device);
  models::SafetensorsFile::Options options;
  options.follow_links = recipe.model.follow_links;
  return models::OpenFolderWeights(recipe.model.path, options);
}

absl::Status CheckSupported(const Recipe& recipe) {
  if (recipe.adapter.backbone_dropout != "none") {
    return Unsupported("adapter.backbone_dropout", recipe.adapter.backbone_dropout, "none");
  }
  return absl::OkStatus();
}

absl::Status CheckWholeWeights(const Recipe& recipe, const std::string& command) {
  if (!recipe.parallel.shard_weights) return absl::OkStatus();
  return RecipeError(absl::StrCat("parallel.shard_weights: found true, in `graft ", command,
                                  "` each replica works at its own pace; allowed: false"));
}

absl::StatusOr<models::ModelConfig> ReadRecipeModel(const Recipe& recipe) {
  return recipe.model.path.empty() ? models::NamedShape(recipe.model.shape)
                                   : models::ReadModelConfig(recipe.model.path);
}

std::string PeftTaskType(const Recipe& recipe) {
  if (recipe.task.type == "seq2seq") return "SEQ_2_SEQ_LM";
  return recipe.task.type == "causal_lm" ? "CAUSAL_LM" : "SEQ_CLS";
}

// Which tasks a family has.
absl::Status CheckTask(const Recipe& recipe, const models::ModelConfig& config) {
  const std::string& task = recipe.task.type;
  if (config.has_encoder() && task != "seq2seq") {
    return Unsupported("task.type", task,
                       absl::StrCat("seq2seq for model_type ", config.model_type,
                                    ", which has no task head here: say the label as text"));
  }
  if (!config.has_encoder() && task == "seq2seq") {
    return Unsupported("task.type", task,
                       absl::StrCat(config.causal ? "causal_lm, " : "",
                                    "classification, regression for model_type ", config.model_type,
                                    ", which has no encoder and decoder"));
  }
  if (!config.causal && task == "causal_lm") {
    return Unsupported(
        "task.type", task,
        absl::StrCat("classification, regression for model_type ", config.model_type));
  }
  if (task == "seq2seq" && recipe.data.packing) {
    return RecipeError(
        "data.packing: found true, task seq2seq has no rows of one length; allowed: "
        "false");
  }
  return absl::OkStatus();
}

// Keys that mean nothing for a method that trains the backbone itself.
absl::Status CheckFullKeys(const Recipe& recipe) {
  const AdapterSection& adapter = recipe.adapter;
  const auto refuse = [](const char* key, const std::string& found, const char* allowed) {
    return RecipeError(absl::StrCat("adapter.", key, ": found ", Printable(found),
                                    ", method full trains the model itself; allowed: ", allowed));
  };
  if (!adapter.init_from.empty()) {
    return refuse("init_from", adapter.init_from, "unset; it starts from model.path");
  }
  if (adapter.layers != std::vector<std::string>{"all"}) {
    return refuse("layers", absl::StrJoin(adapter.layers, ", "), "all");
  }
  if (adapter.compute_dtype != "model") {
    return refuse("compute_dtype", adapter.compute_dtype, "model");
  }
  if (recipe.model.quantize != "none") {
    return RecipeError(absl::StrCat("model.quantize: found ", recipe.model.quantize,
                                    ", method full trains the weights themselves; allowed: none"));
  }
  if (recipe.parallel.shard_weights) {
    return RecipeError(
        "parallel.shard_weights: found true, method full trains the weights themselves; allowed: "
        "false");
  }
  return absl::OkStatus();
}

absl::StatusOr<AdapterChoice> ChooseAdapter(const Recipe& recipe, const models::ModelConfig& config,
                                            int64_t outputs) {
  GRAFT_RETURN_IF_ERROR(CheckTask(recipe, config));
  AdapterChoice choice;
  const std::string name = recipe.adapter.method.empty() ? "none" : recipe.adapter.method;
  GRAFT_ASSIGN_OR_RETURN(choice.method, adapters::NewMethod(name));
  adapters::Method& method = *choice.method;
  GRAFT_RETURN_IF_ERROR(
      ApplyMethodFields(recipe, [&method](FieldVisitor& visitor) { method.VisitFields(visitor); }));
  if (recipe.data.packing && method.virtual_rows() > 0) {
    return RecipeError(absl::StrCat("data.packing: found true, method ", name,
                                    " puts rows in front of each sample; allowed: false"));
  }
  const int num_layers = static_cast<int>(config.num_layers);
  std::vector<models::SiteSpec> sites = models::ListSites(config);
  std::vector<adapters::ParameterSpec> weights;
  if (method.trains_backbone()) {
    GRAFT_RETURN_IF_ERROR(CheckFullKeys(recipe));
    for (models::PlacedTensor& tensor : models::PlacedTensors(config, outputs == 0)) {
      weights.push_back({std::move(tensor.name), std::move(tensor.shape), tensor.layer});
    }
  }
  const auto read_encoder = [&recipe](const std::string& path) {
    return sharding::ReadEncoderFacts(path, recipe.model.follow_links);
  };
  GRAFT_RETURN_IF_ERROR(
      method.Open({config.model_type, sites, num_layers, read_encoder, std::move(weights)}));
  if (!method.chooses_layers()) {
    GRAFT_ASSIGN_OR_RETURN(const std::vector<int> layers, AdapterLayers(recipe, num_layers));
    std::erase_if(sites, [&](const models::SiteSpec& site) {
      return site.id.layer < num_layers &&
             !std::binary_search(layers.begin(), layers.end(), site.id.layer);
    });
  }
  if (outputs > 0) {
    choice.method =
        adapters::WithTaskHead(std::move(choice.method), TaskHeadSpecOf(recipe, config, outputs));
  }
  GRAFT_ASSIGN_OR_RETURN(choice.matched, choice.method->MatchSites(sites));
  return choice;
}

absl::StatusOr<sharding::Plan> MakeRecipePlan(const Recipe& recipe,
                                              const models::ModelConfig& config,
                                              const AdapterChoice& adapter, const WorkShape& work) {
  sharding::PlanOptions options;
  options.stages = static_cast<int>(recipe.parallel.pipeline);
  options.chunks = static_cast<int>(recipe.parallel.parts_per_stage());
  options.split = recipe.parallel.split_sizes();
  options.sequence_length = work.sequence_length + adapter.method->virtual_rows();
  options.head_share = work.head_share;
  options.recompute = recipe.model.recompute == "layer";
  return sharding::MakePlan(config,
                            sharding::CountTrainables(*adapter.method, adapter.matched,
                                                      static_cast<int>(config.num_layers)),
                            options);
}

int64_t FrozenEncoderParameters(const adapters::Method& method) {
  const adapters::PromptEncoderChoice* encoder = method.prompt_encoder();
  if (encoder == nullptr || encoder->train) return 0;
  return CountWhere(encoder->facts.weights, [](const auto&) { return true; });
}

int64_t TotalParameters(const models::ModelConfig& config, const AdapterChoice& adapter) {
  const std::set<std::string> backbone = BackboneNames(config, /*language_head=*/true);
  const int64_t added =
      CountWhere(adapter.method->Parameters(adapter.matched),
                 [&](const auto& parameter) { return !backbone.contains(parameter.name); });
  return models::CountParameters(config) + FrozenEncoderParameters(*adapter.method) + added;
}

torch::Dtype RecipeDtype(const Recipe& recipe) {
  return recipe.model.dtype == "bfloat16" ? torch::kBFloat16 : torch::kFloat32;
}

absl::StatusOr<torch::Device> ChooseHardware(const Recipe& recipe, comm::World& world,
                                             comm::Groups* groups) {
  GRAFT_ASSIGN_OR_RETURN(const torch::Device device,
                         ChooseDevice(recipe.parallel.device, world.all()));
  const std::string& backend = recipe.parallel.backend;
  if (device.is_cpu()) {
    if (backend != "nccl") return device;
    return RecipeError(absl::StrCat(
        "parallel.backend: found nccl, which moves GPU memory, but parallel.device ",
        recipe.parallel.device == "auto" ? "(auto) " : "", "is cpu; allowed: auto, mpi"));
  }
  if (!recipe.parallel.deterministic) AllowUnrepeatableKernels();
  const bool built_in = absl::StartsWith(comm::NcclVersion(), "NCCL");
  if (backend == "nccl" || (backend == "auto" && built_in))
    GRAFT_RETURN_IF_ERROR(world.AddDeviceGroups(groups, device.index()));
  return device;
}

absl::StatusOr<std::unique_ptr<LoadedModel>> LoadedModel::Load(const Recipe& recipe,
                                                               comm::World& world,
                                                               const WorkShape& work,
                                                               Purpose purpose) {
  std::unique_ptr<LoadedModel> model(new LoadedModel(world));
  comm::Communicator& all = world.all();
  model->threads_ = SetUpThreads(all, recipe.parallel.threads);
  GRAFT_ASSIGN_OR_RETURN(
      model->groups_, world.MakeGroups({.data = static_cast<int>(recipe.parallel.data),
                                        .pipeline = static_cast<int>(recipe.parallel.pipeline)}));
  GRAFT_ASSIGN_OR_RETURN(model->device_, ChooseHardware(recipe, world, &model->groups_));
  GRAFT_RETURN_IF_ERROR(comm::AgreeOnStatus(all, model->OpenConfig(recipe, work)));
  GRAFT_RETURN_IF_ERROR(comm::AgreeOnStatus(all, model->MakePlan(recipe, work)));
  GRAFT_RETURN_IF_ERROR(CheckSameOnAllRanks(all, "the stage split", model->plan_.Canonical()));
  GRAFT_RETURN_IF_ERROR(comm::AgreeOnStatus(all, model->LoadStage(recipe, purpose)));
  // Nobody computes yet: what NCCL does to connect stops the device.
  model->executor_->Connect();
  if (model->shards_ != nullptr) model->shards_->Connect();
  model->ReportQuantization(recipe);
  if (model->method().trains_backbone()) {
    model->shared_weights_ =
        std::make_unique<sharding::SharedWeights>(*model->groups_.pipeline_group, *model->stage_);
  }
  if (!recipe.adapter.init_from.empty())
    GRAFT_RETURN_IF_ERROR(model->InitFrom(recipe.adapter.init_from));
  return model;
}

absl::Status LoadedModel::OpenConfig(const Recipe& recipe, const WorkShape& work) {
  GRAFT_RETURN_IF_ERROR(CheckSupported(recipe));
  dtype_ = RecipeDtype(recipe);
  base_model_ = recipe.model.path.empty() ? recipe.model.shape : recipe.model.path;
  GRAFT_ASSIGN_OR_RETURN(config_, ReadRecipeModel(recipe));
  follow_links_ = recipe.model.follow_links;
  task_ = recipe.task.type;
  peft_task_type_ = PeftTaskType(recipe);
  outputs_ = work.outputs;
  GRAFT_ASSIGN_OR_RETURN(adapter_, ChooseAdapter(recipe, config_, outputs_));
  return absl::OkStatus();
}

absl::Status LoadedModel::MakePlan(const Recipe& recipe, const WorkShape& work) {
  GRAFT_ASSIGN_OR_RETURN(plan_, MakeRecipePlan(recipe, config_, adapter_, work));
  return absl::OkStatus();
}

absl::Status LoadedModel::LoadStage(const Recipe& recipe, Purpose purpose) {
  const LoadingMemory while_loading;
  GRAFT_ASSIGN_OR_RETURN(const std::unique_ptr<models::WeightSource> weights,
                         OpenRecipeWeights(recipe, config_, device_));
  RecordingWeights recorded(*weights, /*prefix=*/"",
                            /*hash_moves=*/purpose == Purpose::kTraining);
  models::BackboneOptions backbone;
  backbone.dtype = dtype_;
  backbone.device = device_;
  backbone.recompute = recipe.model.recompute == "layer";
  backbone.quantize = models::ParseQuantization(recipe.model.quantize);
  if (recipe.parallel.shard_weights) {
    shards_ = std::make_shared<sharding::FrozenShards>(
        groups_.device_data_group ? *groups_.device_data_group : *groups_.data_group, device_);
    backbone.layer_memory = shards_;
  }
  backbone.language_head = outputs_ == 0;
  backbone.train_weights = method().trains_backbone();
  backbone.pool_first_row = method().reads_first_row();
  if (purpose == Purpose::kTraining) backbone.first_trained_layer = plan_.first_trained_layer;
  adapters::AttachOptions attach;
  attach.seed = static_cast<uint64_t>(recipe.run.seed);
  attach.num_layers = static_cast<int>(config_.num_layers);
  attach.model_dtype = dtype_;
  attach.device = device_;
  attach.compute_dtype = recipe.adapter.compute_dtype == "float32" ? torch::kFloat32 : dtype_;
  GRAFT_ASSIGN_OR_RETURN(attach.prompt_encoder, LoadEncoder(recipe, purpose));
  if (is_last_stage()) {
    GRAFT_ASSIGN_OR_RETURN(attach.stored_head, LoadStoredHead(recipe, recorded));
  }
  GRAFT_ASSIGN_OR_RETURN(stage_, sharding::Stage::Build(plan_, stage_index(), config_, recorded,
                                                        backbone, method(), matched(), attach));
  loaded_weights_ = recorded.loaded();
  derived_weights_.Append(recorded.derived());
  if (shards_ != nullptr) {
    for (const auto& [name, shard] : shards_->shards()) {
      derived_weights_.copies.emplace_back(name, shard);
    }
  }
  GRAFT_ASSIGN_OR_RETURN(const sharding::ScheduleKind schedule,
                         sharding::ParseSchedule(recipe.parallel.schedule));
  executor_ = std::make_unique<sharding::Executor>(
      plan_, *stage_,
      groups_.device_pipeline_group ? *groups_.device_pipeline_group : *groups_.pipeline_group,
      sharding::ExecutorOptions{.schedule = schedule,
                                .dtype = dtype_,
                                .device = device_,
                                .shards = shards_,
                                .pass_recorder = recipe.parallel.cuda_graphs && device_.is_cuda()
                                                     ? sharding::GpuPassRecorder(device_)
                                                     : nullptr});
  return absl::OkStatus();
}

void LoadedModel::ReportQuantization(const Recipe& recipe) {
  if (recipe.model.quantize == "none") return;
  quantization_ = sharding::GatherQuantization(*groups_.pipeline_group, stage_->quantization());
  if (world_.rank() != 0) return;
  LOG(INFO) << "quantize " << recipe.model.quantize << ": " << quantization_.matrices
            << " matrices, largest relative error " << quantization_.largest << " ("
            << quantization_.largest_matrix << "), mean " << quantization_.mean();
}

absl::StatusOr<std::shared_ptr<adapters::PromptEncoder>> LoadedModel::LoadEncoder(
    const Recipe& recipe, Purpose purpose) {
  const adapters::PromptEncoderChoice* choice = method().prompt_encoder();
  if (choice == nullptr || stage_index() != plan_.parts.front().stage) return nullptr;
  GRAFT_ASSIGN_OR_RETURN(
      const std::unique_ptr<models::WeightSource> weights,
      models::OpenFolderWeights(choice->path, {.follow_links = recipe.model.follow_links}));
  RecordingWeights recorded(*weights, "encoder: ",
                            /*hash_moves=*/purpose == Purpose::kTraining);
  GRAFT_ASSIGN_OR_RETURN(std::shared_ptr<adapters::PromptEncoder> encoder,
                         sharding::LoadModelEncoder(*choice, recorded, dtype_, device_));
  if (!choice->train) {
    encoder_weights_ = recorded.loaded();
    derived_weights_.Append(recorded.derived());
  }
  return encoder;
}

absl::StatusOr<sharding::NamedTensors> LoadedModel::LoadStoredHead(
    const Recipe& recipe, models::WeightSource& weights) const {
  sharding::NamedTensors stored;
  if (outputs_ == 0) return stored;
  const adapters::TaskHeadSpec spec = TaskHeadSpecOf(recipe, config_, outputs_);
  for (const adapters::ParameterSpec& tensor : adapters::TaskHeadTensors(spec)) {
    if (!weights.Has(tensor.name)) continue;
    GRAFT_ASSIGN_OR_RETURN(const torch::Tensor value,
                           weights.Load(tensor.name, tensor.shape, torch::kFloat32));
    stored.emplace_back(tensor.name, value.clone());
  }
  return stored;
}

absl::Status LoadedModel::InitFrom(const std::string& folder) {
  const auto read = [&]() -> absl::StatusOr<sharding::NamedTensors> {
    GRAFT_ASSIGN_OR_RETURN(const sharding::AdapterFolder adapter,
                           sharding::ReadAdapterFolder(folder));
    return sharding::FolderParameters(adapter, method(), matched());
  };
  absl::StatusOr<sharding::NamedTensors> parameters = sharding::NamedTensors();
  if (world_.rank() == 0) parameters = read();
  GRAFT_RETURN_IF_ERROR(comm::AgreeOnStatus(world_.all(), parameters.status()));
  return sharding::ScatterParameters(world_.all(), *parameters, adapters());
}

int64_t LoadedModel::head_parameters() const {
  if (outputs_ == 0) return 0;
  const std::set<std::string> backbone = BackboneNames(config_, /*language_head=*/false);
  return CountWhere(method().Parameters(matched()), [&](const auto& parameter) {
    return parameter.layer > static_cast<int>(config_.num_layers) &&
           !backbone.contains(parameter.name);
  });
}

int64_t LoadedModel::encoder_parameters() const {
  const std::string prefix = absl::StrCat(method().name(), ".encoder.");
  return CountWhere(method().Parameters(matched()), [&](const auto& parameter) {
    return absl::StartsWith(parameter.name, prefix);
  });
}

nlohmann::json LoadedModel::PeftConfig() const {
  return method().PeftConfig(
      matched(), {.base_model_name_or_path = base_model_, .task_type = peft_task_type_});
}

absl::Status LoadedModel::WriteTrained(const std::string& folder,
                                       const std::vector<std::string>& labels) {
  const sharding::NamedTensors tensors =
      sharding::GatherParameters(*groups_.pipeline_group, adapters());
  absl::Status status;
  if (world_.rank() == 0 && method().trains_backbone()) {
    status = MergeModel(base_model_, config_, method(), matched(), tensors, folder,
                        {.follow_links = follow_links_,
                         .labels = labels,
                         .trained_dtype = dtype_,
                         .replace = true});
  } else if (world_.rank() == 0) {
    status =
        sharding::WriteAdapterFolder(folder, PeftConfig(), method().ToFolder(matched(), tensors));
  }
  return comm::AgreeOnStatus(*groups_.pipeline_group, status);
}

}  // namespace graft::trainer
