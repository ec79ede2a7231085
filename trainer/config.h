// The recipe of a run (interfaces.md 2): one plain struct per section, each with one list of its
// keys, which reads, rejects, prints and documents. Used by launch/ (reads it) and by trainer/
// (acts on it). Links without LibTorch: the keys of a method under `adapter:` belong to
// adapters::Method and come in through MethodKeys.
//
// It does not look into models or data sets; what needs them is checked where they are read. All
// errors are of kind recipe unless said.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/fields.h"
#include "base/recipe_yaml.h"

namespace graft::trainer {

struct RunSection {
  std::string name = "run";
  std::string output;  // empty in the file = runs/<name>; never empty in a loaded recipe
  int64_t seed = 0;
  bool core = false;
  void Visit(FieldVisitor& visitor);
};

struct ModelSection {
  std::string path;
  std::string shape;
  std::string dtype = "float32";
  std::string quantize = "none";
  std::string recompute = "none";
  bool follow_links = false;
  void Visit(FieldVisitor& visitor);
};

struct TaskSection {
  std::string type = "causal_lm";
  void Visit(FieldVisitor& visitor);
};

struct DataSection {
  std::string train;
  std::string eval;
  bool shuffle = true;
  bool packing = false;
  int64_t row_length = 0;
  int64_t max_samples = 0;
  void Visit(FieldVisitor& visitor);
};

// Keys that every method has; the method's own keys are Recipe::method_fields.
struct AdapterSection {
  std::string method;  // empty = the recipe has no adapter section
  std::vector<std::string> layers = {"all"};
  std::string init_from;
  std::string compute_dtype = "model";
  std::string backbone_dropout = "none";
  bool head_train = true;
  double head_dropout = 0.0;
  bool track_sensitivity = false;
  void Visit(FieldVisitor& visitor);
};

struct ParallelSection {
  int64_t data = 1;
  int64_t pipeline = 1;
  std::string schedule = "1f1b";
  int64_t chunks = 2;
  std::vector<std::string> split = {"auto"};
  bool shard_weights = false;
  std::string device = "auto";
  std::string backend = "auto";
  int64_t threads = 0;
  bool reserve_memory = false;
  bool cuda_graphs = false;
  bool deterministic = true;
  void Visit(FieldVisitor& visitor);

  int64_t world() const { return data * pipeline; }
  // Parts of a stage: `chunks` with the interleaved schedule, else 1.
  int64_t parts_per_stage() const { return schedule == "interleaved" ? chunks : 1; }
  // Layers of each part; empty = auto. Only after validation.
  std::vector<int> split_sizes() const;
};

struct OptimSection {
  std::string name = "adamw";
  double lr = 1e-4;
  std::vector<double> betas = {0.9, 0.999};
  double eps = 1e-8;
  double weight_decay = 0.0;
  double clip_norm = 1.0;
  std::string schedule = "constant";
  int64_t warmup_steps = 0;
  int64_t steps = 0;
  int64_t epochs = 1;
  int64_t global_batch = 8;
  int64_t micro_batch = 1;
  void Visit(FieldVisitor& visitor);
};

struct CheckpointSection {
  int64_t every = 100;
  int64_t keep = 3;
  std::string resume = "auto";
  bool async = true;
  double lead_seconds = 0;
  void Visit(FieldVisitor& visitor);
};

struct EvalSection {
  int64_t every = 0;
  std::string metric = "loss";
  int64_t patience = 0;
  void Visit(FieldVisitor& visitor);
};

struct LogSection {
  int64_t every = 1;
  int64_t trace = 0;
  double peak_flops = 0;
  void Visit(FieldVisitor& visitor);
};

struct WatchdogSection {
  double setup_seconds = 900;
  double step_seconds = 0;
  double save_seconds = 600;
  double exit_seconds = 0;
  void Visit(FieldVisitor& visitor);
};

struct GenerateSection {
  int64_t max_new_tokens = 128;
  double temperature = 0;
  double top_p = 1.0;
  int64_t beams = 1;
  void Visit(FieldVisitor& visitor);
};

// Which modules are kept (adapters/selection.h).
struct SelectKeys {
  std::string rule = "top_k_per_layer";
  int64_t k = 3;
  double budget = 0;
  bool rescale = true;
  std::string round = "floor";
  int64_t rank = 0;
  double alpha = 0;
  std::string latency_file = "none";
};

struct ScoreSection {
  std::string method = "ab";
  std::string data;     // empty = data.eval
  std::string adapter;  // empty = adapter.init_from
  std::string output;   // empty in the file = <run.output>/score; never empty in a loaded recipe
  std::string from;
  std::string only = "none";
  int64_t max_samples = 512;
  int64_t shard_samples = 32;
  int64_t layer_block = 4;
  int64_t micro_batch = 4;
  bool per_sample = false;
  SelectKeys select;
  void Visit(FieldVisitor& visitor);
};

struct ExportSection {
  std::string from;
  std::string to;
  bool merge = false;
  std::string as = "own";
  void Visit(FieldVisitor& visitor);
};

// What `graft bench tenants` measures (trainer/tenants/bench.h): every method with every
// combination of batch, mix, prompt and new_tokens.
struct TenantsSection {
  std::vector<std::string> methods = {"lora", "fanlora",       "para", "red",
                                      "ia3",  "prompt_tuning", "lopa", "idpg"};
  std::vector<std::string> sizes = {"rank"};
  std::vector<std::string> kernels = {"grouped"};
  std::vector<std::string> batches = {"8"};
  std::vector<std::string> mixes = {"distinct"};
  std::vector<std::string> prompts = {"64"};
  std::vector<std::string> new_tokens = {"32"};
  int64_t rank = 8;
  int64_t modules = 2;
  int64_t repeats = 3;
  bool merged = true;
  std::vector<std::string> cuda_graphs = {"true"};
  int64_t memory_budget = 0;
  bool keep_adapters = false;
  void Visit(FieldVisitor& visitor);
};

// `graft bench`; `tenants` has a section of its own.
struct BenchSection {
  int64_t repeats = 20;
  int64_t max_bytes = int64_t{64} << 20;
  std::vector<std::string> schedules = {"gpipe", "1f1b", "interleaved"};
  int64_t length = 512;
  void Visit(FieldVisitor& visitor);
};

struct Recipe {
  RunSection run;
  ModelSection model;
  TaskSection task;
  DataSection data;
  AdapterSection adapter;
  ParallelSection parallel;
  OptimSection optim;
  CheckpointSection checkpoint;
  EvalSection eval;
  LogSection log;
  WatchdogSection watchdog;
  ScoreSection score;
  GenerateSection generate;
  ExportSection export_;
  TenantsSection tenants;
  BenchSection bench;

  // The method's own keys with their values, names without "adapter.". ApplyMethodFields puts them
  // into a method.
  FieldList method_fields;
  std::string origin;  // the file it was read from: opens messages about the recipe as a whole
  std::vector<std::string> warnings;  // for rank 0 to log
};

// The methods that exist and their keys. `visit` makes a fresh method of that name and gives a
// function that visits its fields (and keeps it alive); kind recipe with the list of names when
// there is none.
struct MethodKeys {
  std::vector<std::string> names;
  std::function<absl::StatusOr<VisitFunction>(const std::string& name)> visit;
};

// Reads and validates a recipe; `overrides` are `section.key=value` (kind usage when one has not
// that form or comes twice).
absl::StatusOr<Recipe> LoadRecipe(const std::string& path,
                                  const std::vector<std::string>& overrides,
                                  const MethodKeys& methods);
absl::StatusOr<Recipe> ParseRecipe(const std::string& yaml, const std::string& origin,
                                   const std::vector<std::string>& overrides,
                                   const MethodKeys& methods);

// Every key must have a value: dotted keys of text fields, or "model" for one of model.path and
// model.shape.
absl::Status RequireKeys(const Recipe& recipe, const std::vector<std::string>& keys,
                         const std::string& command);
// data x pipeline against the ranks that were started.
absl::Status ValidateWorld(const Recipe& recipe, int world_size);

// The layers that `adapter.layers` names ("all", numbers, ranges "0-11"), rising, for a model of
// num_layers.
absl::StatusOr<std::vector<int>> AdapterLayers(const Recipe& recipe, int num_layers);
// Sets a fresh method of recipe.adapter.method to the recipe's values: visit = its VisitFields.
absl::Status ApplyMethodFields(const Recipe& recipe, const VisitFunction& visit);

// Every key with its value, dotted, in the order of the sections; absent adapter = absent keys.
FieldList ResolvedFields(const Recipe& recipe);
// The resolved recipe, as written to <output>/recipe.yaml: reads back to the same fields.
std::string RecipeYaml(const Recipe& recipe);
// Every key with default, range and meaning, those of every method too.
std::string RecipeHelp(const MethodKeys& methods);

}  // namespace graft::trainer
