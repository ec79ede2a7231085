// The model of a recipe with its adapter as this rank holds it: the layers of its stage, what is
// trained on them, and the executor that runs them with the other stages. Used by train, eval and
// generate. It knows no data, no optimizer and no files of a run.
#pragma once

#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "adapters/adapter.h"
#include "comm/world.h"
#include "models/model_config.h"
#include "models/weights/weight_source.h"
#include "sharding/executor.h"
#include "sharding/frozen_shards.h"
#include "sharding/gather.h"
#include "sharding/plan.h"
#include "sharding/shared_weights.h"
#include "sharding/stage.h"
#include "trainer/config.h"
#include "trainer/frozen_watch.h"

namespace graft::trainer {

// What the plan needs to know of the work: tokens of a sample, and the share of them that is
// supervised.
struct WorkShape {
  int64_t sequence_length = 0;
  double head_share = 1.0;
  int64_t outputs = 0;         // of the task head: classes, 1 for regression; 0 = no head
  int64_t encoder_length = 0;  // longest prompt in the vocabulary of a separate prompt encoder
};

// The adapter of a recipe against its model, without weights.
struct AdapterChoice {
  std::unique_ptr<adapters::Method> method;
  std::vector<models::SiteSpec> matched;  // of the whole model
};

// What this version cannot do: error kind recipe naming the key.
absl::Status CheckSupported(const Recipe& recipe);
// Of a command whose replicas do not run the same layers in step: error kind recipe with
// parallel.shard_weights.
absl::Status CheckWholeWeights(const Recipe& recipe, const std::string& command);
// The config of model.path or model.shape.
absl::StatusOr<models::ModelConfig> ReadRecipeModel(const Recipe& recipe);
// The recipe's method (`none` without an adapter section) with the recipe's values and, where the
// task has one, a head of `outputs` numbers; and the sites that it matches. Error kind recipe, also
// when the model cannot do the task.
absl::StatusOr<AdapterChoice> ChooseAdapter(const Recipe& recipe, const models::ModelConfig& config,
                                            int64_t outputs);
// adapter_config.json's name of the task.
std::string PeftTaskType(const Recipe& recipe);
// Of a prompt encoder that is not trained; 0 without one.
int64_t FrozenEncoderParameters(const adapters::Method& method);
// The backbone, a frozen prompt encoder and what is trained beside them.
int64_t TotalParameters(const models::ModelConfig& config, const AdapterChoice& adapter);
absl::StatusOr<sharding::Plan> MakeRecipePlan(const Recipe& recipe,
                                              const models::ModelConfig& config,
                                              const AdapterChoice& adapter, const WorkShape& work);
// The frozen weights of model.path or model.shape.
// `device`: where those of a shape are made.
absl::StatusOr<std::unique_ptr<models::WeightSource>> OpenRecipeWeights(
    const Recipe& recipe, const models::ModelConfig& config, torch::Device device = torch::kCPU);
torch::Dtype RecipeDtype(const Recipe& recipe);
// parallel.device and parallel.backend against what there is: this rank's device, and `groups` with
// those of its GPU where they move its memory. All ranks must call; all get the same status.
absl::StatusOr<torch::Device> ChooseHardware(const Recipe& recipe, comm::World& world,
                                             comm::Groups* groups);

class LoadedModel {
 public:
  // In named steps, each of which ends with an agreement of all ranks: config, adapter, plan,
  // weights, init_from. All ranks must call; all get the same status. `world` must outlive the
  // model.
  enum class Purpose {
    kInference,
    kTraining
  };  // kTraining: weights are made ready for both passes
  static absl::StatusOr<std::unique_ptr<LoadedModel>> Load(const Recipe& recipe, comm::World& world,
                                                           const WorkShape& work,
                                                           Purpose purpose = Purpose::kInference);

  comm::World& world() { return world_; }
  comm::Groups& groups() { return groups_; }
  const comm::RankGrid& grid() const { return groups_.grid; }
  int data_rank() const { return grid().DataRank(world_.rank()); }
  int stage_index() const { return grid().PipelineRank(world_.rank()); }
  bool is_last_stage() const { return stage_index() == grid().pipeline - 1; }
  int threads() const { return threads_; }
  torch::Dtype dtype() const { return dtype_; }
  // Where weights, hidden states and what is trained lie on this rank.
  torch::Device device() const { return device_; }
  const models::ModelConfig& config() const { return config_; }
  const adapters::Method& method() const { return *adapter_.method; }
  const std::vector<models::SiteSpec>& matched() const { return adapter_.matched; }
  const std::string& task() const { return task_; }
  int64_t outputs() const { return outputs_; }  // of the task head; 0 = none
  const sharding::Plan& plan() const { return plan_; }
  sharding::Stage& stage() { return *stage_; }
  sharding::Executor& executor() { return *executor_; }
  // Tensors of the model that this rank has loaded, by their names in the folder.
  const std::vector<WatchedTensor>& loaded_weights() const { return loaded_weights_; }
  // Those of a frozen prompt encoder, `encoder: NAME`.
  const std::vector<WatchedTensor>& encoder_weights() const { return encoder_weights_; }
  // What the layers of both have made of them.
  const DerivedWeights& derived_weights() const { return derived_weights_; }
  // parallel.shard_weights: of this stage; else null.
  sharding::FrozenShards* shards() { return shards_.get(); }
  // With model.quantize: of all stages.
  const models::QuantizationReport& quantization() const { return quantization_; }
  adapters::AdapterSet& adapters() { return stage_->adapters(); }

  int64_t trainable_parameters() const { return method().CountParameters(matched()); }
  // Of those, in the task head; 0 without one.
  int64_t head_parameters() const;
  // Of those, in a prompt encoder that is trained too.
  int64_t encoder_parameters() const;
  int64_t total_parameters() const { return TotalParameters(config_, adapter_); }
  const AdapterChoice& adapter_choice() const { return adapter_; }
  // adapter_config.json of this adapter on this model.
  nlohmann::json PeftConfig() const;
  // Writes what is trained of all stages to `folder`, from rank 0 of the job: an adapter folder, or
  // with a method that trains the backbone a model folder (`labels`: of its task head's classes).
  // The ranks of data rank 0 must call; all of them get the same status.
  absl::Status WriteTrained(const std::string& folder, const std::vector<std::string>& labels);

  // Of a method that trains the backbone, else nothing to do; all ranks of a pipeline must call
  // (sharding/shared_weights.h).
  void CollectSharedGradients() {
    if (shared_weights_ != nullptr) shared_weights_->CollectGradients();
  }
  // Parameters that CollectSharedGradients adds to.
  std::set<std::string> late_gradients() const {
    return shared_weights_ != nullptr ? shared_weights_->owned() : std::set<std::string>();
  }
  void SpreadSharedWeights() {
    if (shared_weights_ != nullptr) shared_weights_->SpreadValues();
  }

 private:
  explicit LoadedModel(comm::World& world) : world_(world) {}
  absl::Status OpenConfig(const Recipe& recipe, const WorkShape& work);
  absl::Status MakePlan(const Recipe& recipe, const WorkShape& work);
  absl::Status LoadStage(const Recipe& recipe, Purpose purpose);
  // Collective over the pipeline; rank 0 logs.
  void ReportQuantization(const Recipe& recipe);
  // Null on other stages than the first, and without one.
  absl::StatusOr<std::shared_ptr<adapters::PromptEncoder>> LoadEncoder(const Recipe& recipe,
                                                                       Purpose purpose);
  absl::StatusOr<sharding::NamedTensors> LoadStoredHead(const Recipe& recipe,
                                                        models::WeightSource& weights) const;
  absl::Status InitFrom(const std::string& folder);

  comm::World& world_;
  comm::Groups groups_;
  int threads_ = 1;
  torch::Dtype dtype_ = torch::kFloat32;
  torch::Device device_ = torch::kCPU;
  std::string task_;            // task.type
  std::string peft_task_type_;  // as adapter_config.json names it
  int64_t outputs_ = 0;
  std::string base_model_;  // as adapter_config.json names it
  models::ModelConfig config_;
  AdapterChoice adapter_;
  sharding::Plan plan_;
  std::vector<WatchedTensor> loaded_weights_;
  std::vector<WatchedTensor> encoder_weights_;
  DerivedWeights derived_weights_;
  models::QuantizationReport quantization_;
  std::unique_ptr<sharding::Stage> stage_;
  std::shared_ptr<sharding::FrozenShards> shards_;
  std::unique_ptr<sharding::Executor> executor_;
  std::unique_ptr<sharding::SharedWeights> shared_weights_;
  bool follow_links_ = false;
};

}  // namespace graft::trainer
