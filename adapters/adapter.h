// What is trained. A Method is a recipe's choice with its own keys; Attach makes its parameters and hooks for the sites of one
// pipeline stage. To add one: copy adapters/red.*, add one line to adapters/registry.cc and one to CMakeLists.txt (docs/adding-an-adapter.md).
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json_fwd.hpp>
#include <torch/types.h>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/fields.h"
#include "models/site.h"

namespace graft::adapters {

// A trained tensor: float32 leaf with requires_grad, known by its name in the adapter folder (interfaces.md 5).
struct NamedParameter {
  std::string name;
  torch::Tensor value;
  // Global layer that owns it; outside the layers: their number for what stands in front (soft prompts), one more for the task head. Names the
  // checkpoint shard.
  int layer = 0;
};

// Name, shape and owner of a trained tensor, without the tensor.
struct ParameterSpec {
  std::string name;
  std::vector<int64_t> shape;
  int layer = 0;
};

// Of a method that scales linears by numbers which it makes once for a request and keeps in SequenceStates (models/site.h): whose state it
// is, and the linears whose scales it holds, one after the other. An input of ffn.down counts as ffn.up's output.
struct RequestScales {
  std::shared_ptr<const void> owner;
  std::vector<models::SiteSpec> sites;
};

// A method on one stage. Hooks hold the same torch::Tensor objects as `parameters`; AdapterSet may move their storage (set_data).
struct Attachment {
  std::vector<NamedParameter> parameters;  // in (layer, role, init order)
  std::vector<std::pair<models::SiteId, std::shared_ptr<models::SiteHook>>> hooks;
  std::vector<RequestScales> request_scales;
};

class PromptEncoder;  // prompt_encoder.h

struct AttachOptions {
  uint64_t seed = 0;
  int num_layers = 0;                       // of the whole model
  torch::Dtype model_dtype = torch::kFloat32;
  torch::Dtype compute_dtype = torch::kFloat32;  // of adapter GEMMs
  torch::Device device = torch::kCPU;            // where the stage's activations live
  // The task head of the model folder by HF name, float32; empty where it has none (task_head.h).
  std::vector<std::pair<std::string, torch::Tensor>> stored_head;
  // Where the stage has the embedding: rows of the frozen word embedding, (ids, D) in the model's dtype.
  int64_t vocab_size = 0;
  std::function<torch::Tensor(const std::vector<int64_t>& ids)> word_embeddings;
  // Of a method that trains the backbone: the leaves of this stage by HF name, each on the one stage that owns it.
  std::vector<std::pair<std::string, torch::Tensor>> trained_weights;
  // Where the stage has the embedding: the model that Method::prompt_encoder names.
  std::shared_ptr<PromptEncoder> prompt_encoder;
};

// What the adapter folder says beside the tensors.
struct PeftContext {
  std::string base_model_name_or_path;
  std::string task_type;  // "CAUSAL_LM", "SEQ_CLS", "SEQ_2_SEQ_LM"
};

// A model that encodes prompts for a method (prompt_encoder.h): what its folder holds, and as the recipe names it.
struct EncoderFacts {
  std::string fingerprint;  // of its content
  int64_t width = 0, vocab_size = 0, max_positions = 0;
  std::vector<ParameterSpec> weights;  // by HF name
};
struct PromptEncoderChoice {
  std::string path;  // empty: none
  std::string pool = "first";
  bool train = false;
  EncoderFacts facts;  // read by Method::Open
};

// What a method may check its own files against.
struct ModelFacts {
  std::string model_type;
  std::vector<models::SiteSpec> sites;  // of the whole model
  int num_layers = 0;
  // Of a prompt encoder's folder; kind input.
  std::function<absl::StatusOr<EncoderFacts>(const std::string& path)> read_encoder = {};
  // Of a method that trains the backbone: what the task runs of the whole model, by HF name, in the order of layers.
  std::vector<ParameterSpec> weights = {};
};

// A linear's edit y += scale (x a^T) b^T, as scoring reads it (methods.md 16). Views of the parameters.
struct LowRankEdit {
  torch::Tensor a;  // (r, in)
  torch::Tensor b;  // (out, r)
  double alpha = 0, scale = 0;
  bool rslora = false;
};

struct FolderContent;  // peft_config.h

class Method {
 public:
  virtual ~Method() = default;
  virtual const char* name() const = 0;
  // The method's own keys under `adapter:`, with this method's defaults (common keys are not the method's).
  virtual void VisitFields(FieldVisitor& visitor) = 0;
  // Reads the files that the method's keys name and checks them against the model; called once, before MatchSites. Kind input.
  virtual absl::Status Open(const ModelFacts& /*model*/) { return absl::OkStatus(); }
  // True when such a file says which layers are adapted: adapter.layers then does not apply.
  virtual bool chooses_layers() const { return false; }
  // Rows that the method puts in front of each sample's text (soft prompts): the data is laid out with them (models/micro_batch.h)
  // and its hook at `embed` fills them. Packing is refused.
  virtual int64_t virtual_rows() const { return 0; }
  // Where the task head of an encoder reads a sample: its first row, which may be a virtual one, or the first row of its text.
  virtual bool reads_first_row() const { return false; }
  // What stands before the names of a task head in the adapter folder, as huggingface/peft has it for the method's type.
  virtual const char* head_prefix() const { return "base_model.model."; }
  // True when the parameters are the backbone's own weights (BackboneOptions::train_weights) and a run leaves a model folder.
  virtual bool trains_backbone() const { return false; }
  // Numbers that the edit of a matched site keeps for each row until the backward pass, beside what the layer keeps itself; `plan` counts them
  // in the model's dtype.
  virtual int64_t KeptPerRow(const models::SiteSpec& /*site*/) const { return 0; }
  // The model that reads each sample's prompt in a vocabulary of its own (MicroBatch::prompts); null = none.
  virtual const PromptEncoderChoice* prompt_encoder() const { return nullptr; }
  // True when it makes something of the prompt's rows: then a data set must have prompts.
  virtual bool reads_prompt() const { return false; }
  // Sites of `model_sites` (the whole model's) that the method acts on, after `layers` has been applied to model_sites. Error kind recipe when a pattern
  // matches nothing, names an absent role (lists the model's roles) or a number does not fit (rank > min(in, out)). Pure; no tensors.
  virtual absl::StatusOr<std::vector<models::SiteSpec>> MatchSites(const std::vector<models::SiteSpec>& model_sites) const = 0;
  // The parameters that Attach makes for these sites, in the same order: (layer, role, init order). Pure.
  virtual std::vector<ParameterSpec> Parameters(const std::vector<models::SiteSpec>& matched) const = 0;
  // Trainable parameters at matched sites. Pure.
  virtual int64_t CountParameters(const std::vector<models::SiteSpec>& matched) const;
  // Parameters (initialised from the seed, the same for every split) and hooks for the matched sites that lie on this stage.
  virtual absl::StatusOr<Attachment> Attach(const std::vector<models::SiteSpec>& matched_on_stage, const AttachOptions& options) const = 0;
  // adapter_config.json for the matched sites of the whole model, keys sorted when dumped.
  virtual nlohmann::json PeftConfig(const std::vector<models::SiteSpec>& matched, const PeftContext& context) const = 0;
  // Whether an adapter folder with this adapter_config.json computes what this method computes. Error kind input naming the key, what the
  // folder says and what the recipe says; `origin` (the file) opens the message.
  virtual absl::Status CheckPeftConfig(const nlohmann::json& config, const std::string& origin) const = 0;
  // What the adapter folder holds for the parameters of the WHOLE model, and the way back. They differ where several sites share one module, of
  // which the folder has one tensor (fused_sites.h). FromFolder also checks what adapter_config.json says of such modules: kind input; other
  // names and shapes are left to CheckAdapterTensors.
  virtual std::vector<std::pair<std::string, torch::Tensor>> ToFolder(const std::vector<models::SiteSpec>& /*matched*/,
                                                                      std::vector<std::pair<std::string, torch::Tensor>> parameters) const {
    return parameters;
  }
  virtual absl::StatusOr<std::vector<std::pair<std::string, torch::Tensor>>> FromFolder(const std::vector<models::SiteSpec>& /*matched*/,
                                                                                        const nlohmann::json& /*config*/,
                                                                                        std::vector<std::pair<std::string, torch::Tensor>> folder,
                                                                                        const std::string& /*origin*/) const {
    return folder;
  }
  // The parameters of the WHOLE model as a type of huggingface/peft that computes the same, for a method whose own folder nothing else loads.
  // Kind recipe where there is none.
  virtual absl::StatusOr<FolderContent> AsPeft(const std::vector<models::SiteSpec>& matched, const PeftContext& context,
                                               std::vector<std::pair<std::string, torch::Tensor>> parameters) const;
  // Folds the adapter into a linear's weight (out, in) and bias (out; undefined when the model has none), both float32, for the outputs of `site`
  // (of a shared module: its own rows). `tensors`: the parameters, as FromFolder gives them. Sets *bias when the merged module needs one. Default: error kind recipe "does not merge".
  virtual absl::Status Merge(const models::SiteSpec& site, const std::vector<std::pair<std::string, torch::Tensor>>& tensors, torch::Tensor* weight,
                             torch::Tensor* bias) const;
  // The edit of a matched site, out of parameters that hold its own (a stage's, or the whole model's). Kind recipe where the method has no such
  // edit: all but lora and fanlora. Errors else as of TensorCheck.
  virtual absl::StatusOr<LowRankEdit> LowRankAt(const models::SiteSpec& site,
                                                const std::vector<std::pair<std::string, torch::Tensor>>& parameters) const;
  // True when the merged module of `site` has a bias even where the model has none, so that the merged folder's config.json must say so
  // and every linear that shares that key gets one (zeros elsewhere).
  virtual bool MergeAddsBias(const models::SiteSpec& /*site*/) const { return false; }
};

// The parameters of an adapter folder (FromFolder) against what `method` has at the matched sites of the WHOLE model: error kind input with the first missing,
// extra, differently shaped and non-finite ones. `origin` opens the message.
absl::Status CheckAdapterTensors(const Method& method, const std::vector<models::SiteSpec>& matched,
                                 const std::vector<std::pair<std::string, torch::Tensor>>& tensors, const std::string& origin);

// A fresh method with its defaults, by its recipe name; error kind recipe lists the names. registry.cc is the one list.
absl::StatusOr<std::unique_ptr<Method>> NewMethod(const std::string& name);
std::vector<std::string> MethodNames();

}  // namespace graft::adapters
