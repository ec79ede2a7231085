#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "base/text.h"
#include "models/gpt2_config.h"
#include "models/model_config.h"
#include "models/roberta_config.h"
#include "models/t5_config.h"

namespace graft::models {
namespace {

struct Shape {
  const char* name;
  const char* model_type;
  int64_t hidden, layers, heads, kv_heads, intermediate, vocab, positions;
  double theta, norm_eps;
  bool tied;
  double llama3_factor;  // 0 = no scaling
  // T5: `layers` in each of its stacks; tied = v1.0, else v1.1.
};

// The published config.json files of these models; the tiny ones are for tests.
constexpr Shape kShapes[] = {
    {"llama-tiny", "llama", 64, 4, 4, 2, 128, 256, 256, 10000.0, 1e-5, true, 0},
    {"llama-tiny-untied", "llama", 64, 4, 4, 4, 128, 256, 256, 10000.0, 1e-5, false, 0},
    {"llama3-tiny", "llama", 64, 8, 4, 2, 128, 256, 65'536, 500000.0, 1e-5, false, 8},
    {"qwen2-tiny", "qwen2", 64, 4, 4, 2, 128, 256, 256, 1000000.0, 1e-6, true, 0},
    {"smollm2-135m", "llama", 576, 30, 9, 3, 1536, 49'152, 8192, 100000.0, 1e-5, true, 0},
    {"llama-1b", "llama", 2048, 16, 32, 8, 8192, 128'256, 131'072, 500000.0, 1e-5, true, 32},
    {"llama-8b", "llama", 4096, 32, 32, 8, 14'336, 128'256, 8192, 500000.0, 1e-5, false, 0},
    {"llama-70b", "llama", 8192, 80, 64, 8, 28'672, 128'256, 8192, 500000.0, 1e-5, false, 0},
    {"llama-2-7b", "llama", 4096, 32, 32, 32, 11'008, 32'000, 4096, 10000.0, 1e-5, false, 0},
    {"llama-2-13b", "llama", 5120, 40, 40, 40, 13'824, 32'000, 4096, 10000.0, 1e-5, false, 0},
    {"gpt2-tiny", "gpt2", 64, 4, 4, 4, 256, 256, 256, 0, 1e-5, true, 0},
    {"gpt2", "gpt2", 768, 12, 12, 12, 3072, 50'257, 1024, 0, 1e-5, true, 0},
    {"gpt2-medium", "gpt2", 1024, 24, 16, 16, 4096, 50'257, 1024, 0, 1e-5, true, 0},
    {"gpt2-large", "gpt2", 1280, 36, 20, 20, 5120, 50'257, 1024, 0, 1e-5, true, 0},
    {"roberta-tiny", "roberta", 64, 4, 4, 4, 256, 256, 256, 0, 1e-5, true, 0},
    {"roberta-base", "roberta", 768, 12, 12, 12, 3072, 50'265, 512, 0, 1e-5, true, 0},
    {"roberta-large", "roberta", 1024, 24, 16, 16, 4096, 50'265, 512, 0, 1e-5, true, 0},
    {"t5-tiny", "t5", 64, 2, 4, 4, 128, 256, 0, 0, 1e-6, true, 0},
    {"t5-v1_1-tiny", "t5", 64, 2, 4, 4, 128, 256, 0, 0, 1e-6, false, 0},
    {"t5-small", "t5", 512, 6, 8, 8, 2048, 32'128, 0, 0, 1e-6, true, 0},
    {"t5-base", "t5", 768, 12, 12, 12, 3072, 32'128, 0, 0, 1e-6, true, 0},
    {"t5-large", "t5", 1024, 24, 16, 16, 4096, 32'128, 0, 0, 1e-6, true, 0},
    {"t5-v1_1-base", "t5", 768, 12, 12, 12, 2048, 32'128, 0, 0, 1e-6, false, 0},
};

ModelConfig Expand(const Shape& shape) {
  ModelConfig config;
  config.model_type = shape.model_type;
  config.hidden_size = shape.hidden;
  config.num_layers = shape.layers;
  config.num_heads = shape.heads;
  config.num_kv_heads = shape.kv_heads;
  config.head_dim = shape.hidden / shape.heads;
  config.intermediate_size = shape.intermediate;
  config.vocab_size = shape.vocab;
  config.max_positions = shape.positions;
  config.norm_eps = shape.norm_eps;
  config.tie_word_embeddings = shape.tied;
  if (config.model_type == "gpt2") {
    config.activation = "gelu_new";
    SetGpt2Facts(&config);
    return config;
  }
  if (config.model_type == "roberta") {
    config.activation = "gelu";
    config.token_types = 1;
    config.position_offset = 2;
    config.position_rows = config.max_positions + config.position_offset;
    SetRobertaFacts(&config);
    return config;
  }
  if (config.model_type == "t5") {
    config.encoder_layers = shape.layers;
    config.num_layers = 2 * shape.layers;
    config.relative_buckets = 32;
    config.relative_max_distance = 128;
    config.gated_ffn = !shape.tied;
    config.activation = shape.tied ? "relu" : "gelu_new";
    config.scale_decoder_outputs = shape.tied;
    SetT5Facts(&config);
    return config;
  }
  config.qkv_bias = config.model_type == "qwen2";
  config.rope.theta = shape.theta;
  if (shape.llama3_factor > 0) {
    config.rope.type = "llama3";
    config.rope.factor = shape.llama3_factor;
    config.rope.original_max_positions = 8192;
  }
  config.sliding_window.assign(static_cast<std::size_t>(shape.layers), 0);
  return config;
}

}  // namespace

absl::StatusOr<ModelConfig> NamedShape(const std::string& name) {
  std::vector<std::string> names;
  for (const Shape& shape : kShapes) {
    if (name == shape.name) return Expand(shape);
    names.push_back(shape.name);
  }
  return RecipeError(absl::StrCat("model.shape: found \"", Printable(name), "\", known are ",
                                  JoinNames(names), DidYouMean(name, names)));
}

}  // namespace graft::models
