// manifest.json of a checkpoint, format version 1 (reliability.md 1.2, docs/checkpoints.md): where
// the run stood, what it was trained on and with, and every file and tensor with its hash. Used by
// the checkpointer, `inspect` and `export`. Reads untrusted bytes strictly: an unknown key, another
// type, a number out of range is an error. Links without LibTorch; knows no folders.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace graft::sharding {

inline constexpr char kManifestName[] = "manifest.json";
inline constexpr char kShardFolder[] = "shards";
inline constexpr char kRecipeName[] = "recipe.yaml";
inline constexpr int64_t kManifestVersion = 1;
inline constexpr int64_t kMaxManifestBytes = int64_t{64} << 20;

// Texts by key.
using TextMap = std::map<std::string, std::string>;

struct BaseModelInfo {
  // sha256 over the sorted lines `name dtype shape hash64` of the folder's tensors in use.
  std::string fingerprint;
  std::string model_type;
  int64_t num_layers = 0, hidden_size = 0, vocab_size = 0;
  std::string dtype, quantize;
};

struct AdapterInfo {
  std::string method;
  std::string config_sha256;  // of the adapter section and of the matched parameters
  int64_t parameters = 0;
  uint64_t hash64 = 0;  // of all param/ tensors, one after the other in name order
};

struct OptimizerInfo {
  std::string name;
  std::vector<double> betas;
  double eps = 0, weight_decay = 0, clip_norm = 0;
};

struct ScheduleInfo {
  std::string name;
  double lr = 0;
  int64_t warmup_steps = 0, total_steps = 0;
};

struct NonFiniteInfo {
  int64_t consecutive = 0;
  std::vector<int64_t> recent;  // steps of the skips in the last 1,000 steps
};

struct DataInfo {
  std::string fingerprint;
  std::optional<std::string> tokenizer_sha256;
  int64_t num_samples = 0;
  bool shuffle = false, packing = false;
  int64_t global_batch = 0;
  int64_t epoch = 0;                       // from 0
  int64_t cursor = 0;                      // units (samples, packed rows) consumed in the epoch
  std::optional<std::string> plan_sha256;  // packing plan of the epoch
};

struct RngInfo {
  std::string scheme = "philox4x32-10";
  uint64_t key = 0;  // the seed; no generator state exists
};

// The best evaluation so far.
struct EvalInfo {
  std::string metric;
  std::optional<double> best;
  int64_t best_step = 0;
  int64_t since_best = 0;    // evaluations without a better one
  bool ended_early = false;  // eval.patience ran out: the run is complete
};

// May differ on resume; equal in every field = the continued run is bitwise the same.
struct LayoutInfo {
  int64_t data = 1, pipeline = 1;
  std::vector<int64_t> split;  // layers of each part
  std::string schedule;
  int64_t micro_batch = 1;
  std::string device, backend;
  int64_t threads = 1;  // of a rank
  std::string cpu_isa;  // or the name of the GPU
  TextMap versions;     // of libraries
};

struct RecipeInfo {
  std::string file = kRecipeName;
  std::string sha256;
  std::string resume_sha256;  // over the keys that a resume must share
};

struct CheckpointFile {
  std::string file;  // "recipe.yaml" or "shards/NAME.safetensors"
  int64_t bytes = 0;
  std::string sha256;
};

struct TensorEntry {
  std::string key;  // "param/NAME", "exp_avg/NAME", "exp_avg_sq/NAME"; with
                    // adapter.track_sensitivity also "sensitivity/NAME", "uncertainty/NAME"
  std::string file;
  std::string dtype = "F32";
  std::vector<int64_t> shape;
  uint64_t hash64 = 0;
};

struct Manifest {
  std::string graft_version;
  std::string run_id;   // 32 hex digits, made at the first start
  int64_t start = 1;    // number of the start of the run that wrote it
  std::string created;  // UTC; shown, never used in a decision
  int64_t step = 0;     // finished steps
  int64_t updates = 0;  // applied updates
  int64_t skipped = 0;  // non-finite skips; step = updates + skipped
  BaseModelInfo base;
  AdapterInfo adapter;
  OptimizerInfo optimizer;
  ScheduleInfo schedule;
  NonFiniteInfo non_finite;
  DataInfo data;
  RngInfo rng;
  std::optional<EvalInfo> eval;
  LayoutInfo layout;
  RecipeInfo recipe;
  std::vector<CheckpointFile> files;  // everything except the manifest, sorted
  std::vector<TensorEntry> tensors;   // sorted by key
};

std::string ManifestText(const Manifest& manifest);
// Errors: kind input; another format, a version that is not 1 (names both), an unknown or missing
// key, a wrong type, a file name that is no basename below shards/, a tensor that has no file or no
// moments, a wrong self hash.
absl::StatusOr<Manifest> ParseManifest(const std::string& text, const std::string& origin);

}  // namespace graft::sharding
