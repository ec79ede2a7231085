// The keys of manifest.json, listed once: what is written is what is read and what is known.
// Internal to manifest.cc.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "sharding/manifest.h"

namespace graft::sharding {

// One section (JSON object) of the manifest, visited key by key. Numbers that must return exactly
// are C99 hex texts, hashes and seeds hex digits.
class ManifestVisitor {
 public:
  virtual ~ManifestVisitor() = default;
  virtual void Text(const char* key, std::string* value) = 0;
  virtual void Sha256(const char* key, std::string* value) = 0;
  virtual void OptionalSha256(const char* key, std::optional<std::string>* value) = 0;
  virtual void Int(const char* key, int64_t* value, int64_t min) = 0;
  virtual void Flag(const char* key, bool* value) = 0;
  virtual void Real(const char* key, double* value) = 0;
  virtual void OptionalReal(const char* key, std::optional<double>* value) = 0;
  virtual void Reals(const char* key, std::vector<double>* values) = 0;
  virtual void Ints(const char* key, std::vector<int64_t>* values) = 0;
  virtual void Word(const char* key, uint64_t* value) = 0;
  virtual void Texts(const char* key, TextMap* values) = 0;
};

inline void VisitFields(ManifestVisitor& v, BaseModelInfo& base) {
  v.Sha256("fingerprint", &base.fingerprint);
  v.Text("model_type", &base.model_type);
  v.Int("num_layers", &base.num_layers, 0);
  v.Int("hidden_size", &base.hidden_size, 0);
  v.Int("vocab_size", &base.vocab_size, 0);
  v.Text("dtype", &base.dtype);
  v.Text("quantize", &base.quantize);
}

inline void VisitFields(ManifestVisitor& v, AdapterInfo& adapter) {
  v.Text("method", &adapter.method);
  v.Sha256("config_sha256", &adapter.config_sha256);
  v.Int("parameters", &adapter.parameters, 0);
  v.Word("hash64", &adapter.hash64);
}

inline void VisitFields(ManifestVisitor& v, OptimizerInfo& optimizer) {
  v.Text("name", &optimizer.name);
  v.Reals("betas", &optimizer.betas);
  v.Real("eps", &optimizer.eps);
  v.Real("weight_decay", &optimizer.weight_decay);
  v.Real("clip_norm", &optimizer.clip_norm);
}

inline void VisitFields(ManifestVisitor& v, ScheduleInfo& schedule) {
  v.Text("name", &schedule.name);
  v.Real("lr", &schedule.lr);
  v.Int("warmup_steps", &schedule.warmup_steps, 0);
  v.Int("total_steps", &schedule.total_steps, 0);
}

inline void VisitFields(ManifestVisitor& v, NonFiniteInfo& non_finite) {
  v.Int("consecutive", &non_finite.consecutive, 0);
  v.Ints("recent", &non_finite.recent);
}

inline void VisitFields(ManifestVisitor& v, DataInfo& data) {
  v.Sha256("fingerprint", &data.fingerprint);
  v.OptionalSha256("tokenizer_sha256", &data.tokenizer_sha256);
  v.Int("num_samples", &data.num_samples, 0);
  v.Flag("shuffle", &data.shuffle);
  v.Flag("packing", &data.packing);
  v.Int("global_batch", &data.global_batch, 1);
  v.Int("epoch", &data.epoch, 0);
  v.Int("cursor", &data.cursor, 0);
  v.OptionalSha256("plan_sha256", &data.plan_sha256);
}

inline void VisitFields(ManifestVisitor& v, RngInfo& rng) {
  v.Text("scheme", &rng.scheme);
  v.Word("key", &rng.key);
}

inline void VisitFields(ManifestVisitor& v, EvalInfo& eval) {
  v.Text("metric", &eval.metric);
  v.OptionalReal("best", &eval.best);
  v.Int("step", &eval.best_step, 0);
  v.Int("since_best", &eval.since_best, 0);
  v.Flag("ended_early", &eval.ended_early);
}

inline void VisitFields(ManifestVisitor& v, LayoutInfo& layout) {
  v.Int("data", &layout.data, 1);
  v.Int("pipeline", &layout.pipeline, 1);
  v.Ints("split", &layout.split);
  v.Text("schedule", &layout.schedule);
  v.Int("micro_batch", &layout.micro_batch, 1);
  v.Text("device", &layout.device);
  v.Text("backend", &layout.backend);
  v.Int("threads", &layout.threads, 1);
  v.Text("cpu_isa", &layout.cpu_isa);
  v.Texts("versions", &layout.versions);
}

inline void VisitFields(ManifestVisitor& v, RecipeInfo& recipe) {
  v.Text("file", &recipe.file);
  v.Sha256("sha256", &recipe.sha256);
  v.Sha256("resume_sha256", &recipe.resume_sha256);
}

inline void VisitFields(ManifestVisitor& v, CheckpointFile& file) {
  v.Text("file", &file.file);
  v.Int("bytes", &file.bytes, 0);
  v.Sha256("sha256", &file.sha256);
}

inline void VisitFields(ManifestVisitor& v, TensorEntry& tensor) {
  v.Text("key", &tensor.key);
  v.Text("file", &tensor.file);
  v.Text("dtype", &tensor.dtype);
  v.Ints("shape", &tensor.shape);
  v.Word("hash64", &tensor.hash64);
}

// The scalars of the outermost object.
inline void VisitFields(ManifestVisitor& v, Manifest& manifest) {
  v.Text("graft_version", &manifest.graft_version);
  v.Text("run_id", &manifest.run_id);
  v.Int("start", &manifest.start, 1);
  v.Text("created", &manifest.created);
  v.Int("step", &manifest.step, 0);
  v.Int("updates", &manifest.updates, 0);
  v.Int("skipped", &manifest.skipped, 0);
}

}  // namespace graft::sharding
