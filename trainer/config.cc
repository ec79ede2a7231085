#include "trainer/config.h"

#include <algorithm>
#include <set>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "base/file.h"
#include "base/status.h"
#include "base/text.h"
#include "base/yaml_tree.h"

namespace graft::trainer {
namespace {

constexpr int64_t kMaxRecipeBytes = int64_t{1} << 20;
// Keys of interfaces.md 2 that several methods share: in a recipe for one that has no use for it
// they draw a warning.
constexpr const char* kSharedKeys[] = {"sites", "rank", "alpha", "dropout", "setting"};

// The one list of sections, in printing order. `adapter` is special where the method's keys join
// it.
struct SectionRow {
  const char* name;
  void (*visit)(Recipe& recipe, FieldVisitor& visitor);
};
constexpr SectionRow kSections[] = {
    {"run", [](Recipe& r, FieldVisitor& v) { r.run.Visit(v); }},
    {"model", [](Recipe& r, FieldVisitor& v) { r.model.Visit(v); }},
    {"task", [](Recipe& r, FieldVisitor& v) { r.task.Visit(v); }},
    {"data", [](Recipe& r, FieldVisitor& v) { r.data.Visit(v); }},
    {"adapter", [](Recipe& r, FieldVisitor& v) { r.adapter.Visit(v); }},
    {"parallel", [](Recipe& r, FieldVisitor& v) { r.parallel.Visit(v); }},
    {"optim", [](Recipe& r, FieldVisitor& v) { r.optim.Visit(v); }},
    {"checkpoint", [](Recipe& r, FieldVisitor& v) { r.checkpoint.Visit(v); }},
    {"eval", [](Recipe& r, FieldVisitor& v) { r.eval.Visit(v); }},
    {"log", [](Recipe& r, FieldVisitor& v) { r.log.Visit(v); }},
    {"watchdog", [](Recipe& r, FieldVisitor& v) { r.watchdog.Visit(v); }},
    {"score", [](Recipe& r, FieldVisitor& v) { r.score.Visit(v); }},
    {"generate", [](Recipe& r, FieldVisitor& v) { r.generate.Visit(v); }},
    {"export", [](Recipe& r, FieldVisitor& v) { r.export_.Visit(v); }},
    {"tenants", [](Recipe& r, FieldVisitor& v) { r.tenants.Visit(v); }},
    {"bench", [](Recipe& r, FieldVisitor& v) { r.bench.Visit(v); }},
};

bool IsAdapter(const SectionRow& section) { return std::string(section.name) == "adapter"; }

absl::Status KeyError(const Recipe& recipe, const std::string& key, const std::string& what) {
  return RecipeError(absl::StrCat(Printable(recipe.origin, 512), ": ", key, ": ", what));
}

// A layer "7" or a range "0-11".
bool ParseRange(const std::string& text, int64_t* first, int64_t* last) {
  static constexpr int64_t kMaxLayers = 1'000'000;
  const std::size_t dash = text.find('-', 1);
  const bool is_range = dash != std::string::npos;
  if (!ParseInt(text.substr(0, dash), first)) return false;
  if (!ParseInt(is_range ? text.substr(dash + 1) : text, last)) return false;
  return *first >= 0 && *first <= *last && *last < kMaxLayers;
}

// One warning for all keys that the method has no use for.
void WarnOfUnusedKeys(const YamlNode& section, YamlReader& reader, Recipe* recipe) {
  const bool has_setting = reader.HasAsked("setting");
  std::vector<std::string> unused;
  std::string where;
  for (const char* key : kSharedKeys) {
    if (reader.HasAsked(key)) continue;
    const std::string found = reader.Accept(key);
    if (found.empty()) continue;
    if (unused.empty()) where = found;
    unused.push_back(absl::StrCat("adapter.", key));
  }
  // A setting says the layers, too.
  if (const YamlNode* layers = section.Find("layers"); layers && has_setting) {
    if (unused.empty()) where = layers->origin;
    unused.push_back("adapter.layers");
  }
  if (unused.empty()) return;
  recipe->warnings.push_back(absl::StrCat(where, ": ", absl::StrJoin(unused, ", "), ": method ",
                                          recipe->adapter.method, " does not use ",
                                          unused.size() == 1 ? "it" : "them"));
}

// The adapter section: the common keys, then the method's own.
absl::Status ReadAdapter(const YamlNode* node, const MethodKeys& methods, Recipe* recipe) {
  if (node == nullptr) return absl::OkStatus();
  YamlReader reader(node, "adapter");
  recipe->adapter.Visit(reader);
  const YamlNode* const method_node = node->Find("method");
  if (node->kind == YamlNode::Kind::kScalar || node->kind == YamlNode::Kind::kList) {
    return reader.Finish();
  }
  if (method_node == nullptr) {
    return RecipeError(absl::StrCat(node->origin, ": adapter.method: missing, must be one of ",
                                    JoinNames(methods.names)));
  }
  if (method_node->kind != YamlNode::Kind::kScalar) return reader.Finish();
  absl::StatusOr<VisitFunction> visit = methods.visit(recipe->adapter.method);
  if (!visit.ok()) {
    return Annotate(visit.status(), method_node->origin);
  }
  (*visit)(reader);
  WarnOfUnusedKeys(*node, reader, recipe);
  recipe->method_fields = ListFields(*visit);
  return reader.Finish();
}

absl::Status ReadSections(const YamlNode& root, const MethodKeys& methods, Recipe* recipe) {
  if (root.kind != YamlNode::Kind::kMap) {
    return RecipeError(
        absl::StrCat(root.origin.empty() ? Printable(recipe->origin, 512) : root.origin, ": found ",
                     root.Describe(), ", must be a map of sections"));
  }
  std::vector<std::string> names;
  for (const SectionRow& section : kSections) names.emplace_back(section.name);
  for (const auto& [name, node] : root.fields) {
    if (std::find(names.begin(), names.end(), name) != names.end()) continue;
    return RecipeError(absl::StrCat(node.origin, ": ", Printable(name), ": unknown section",
                                    DidYouMean(name, names), "; known: ", JoinNames(names)));
  }
  for (const SectionRow& section : kSections) {
    const YamlNode* const node = root.Find(section.name);
    if (IsAdapter(section)) {
      GRAFT_RETURN_IF_ERROR(ReadAdapter(node, methods, recipe));
      continue;
    }
    YamlReader reader(node, section.name);
    section.visit(*recipe, reader);
    GRAFT_RETURN_IF_ERROR(reader.Finish());
  }
  return absl::OkStatus();
}

absl::Status ValidateParallel(const Recipe& recipe) {
  const ParallelSection& parallel = recipe.parallel;
  if (parallel.shard_weights && parallel.data == 1) {
    return KeyError(recipe, "parallel.shard_weights",
                    "found true with parallel.data 1, there is no replica to share with; allowed: "
                    "false, or parallel.data above 1");
  }
  if (recipe.optim.global_batch % parallel.data != 0) {
    return KeyError(recipe, "optim.global_batch",
                    absl::StrCat("found ", recipe.optim.global_batch,
                                 ", must be divisible by parallel.data (", parallel.data, ")"));
  }
  if (parallel.split == std::vector<std::string>{"auto"}) return absl::OkStatus();
  const auto parts = static_cast<std::size_t>(parallel.pipeline * parallel.parts_per_stage());
  if (parallel.split.size() != parts) {
    return KeyError(recipe, "parallel.split",
                    absl::StrCat("found ", parallel.split.size(), " values, must be auto or ",
                                 parts, " numbers of layers"));
  }
  for (const std::string& part : parallel.split) {
    int64_t layers = 0;
    if (!ParseInt(part, &layers) || layers < 1 || layers > 1024) {
      return KeyError(recipe, "parallel.split",
                      absl::StrCat("found `", Printable(part),
                                   "`, must be auto or numbers of layers from 1 to 1024"));
    }
  }
  return absl::OkStatus();
}

// What a recorded pass cannot do: numbers that the host makes for each step, or layers that are not
// all here and whole.
absl::Status ValidateGraphs(const Recipe& recipe) {
  const ParallelSection& parallel = recipe.parallel;
  if (!parallel.cuda_graphs) return absl::OkStatus();
  const auto refuse = [&recipe](const std::string& key, const std::string& value,
                                const char* allowed) {
    return KeyError(recipe, "parallel.cuda_graphs",
                    absl::StrCat("found true with ", key, " ", Printable(value),
                                 "; allowed: false, or ", key, " ", allowed));
  };
  if (parallel.pipeline > 1)
    return refuse("parallel.pipeline", absl::StrCat(parallel.pipeline), "1");
  if (parallel.schedule != "1f1b") return refuse("parallel.schedule", parallel.schedule, "1f1b");
  if (parallel.shard_weights) return refuse("parallel.shard_weights", "true", "false");
  if (parallel.reserve_memory) return refuse("parallel.reserve_memory", "true", "false");
  // A replay is compared with what was recorded, bit by bit.
  if (!parallel.deterministic) return refuse("parallel.deterministic", "false", "true");
  if (recipe.model.recompute != "none")
    return refuse("model.recompute", recipe.model.recompute, "none");
  if (recipe.task.type == "seq2seq")
    return refuse("task.type", recipe.task.type, "that has no encoder");
  const AdapterSection& adapter = recipe.adapter;
  if (adapter.method == "full") return refuse("adapter.method", adapter.method, "that is not full");
  if (adapter.head_dropout > 0)
    return refuse("adapter.head.dropout", absl::StrCat(adapter.head_dropout), "0");
  for (const auto& [name, value] : recipe.method_fields) {
    double number = 0;
    if (name == "dropout" && absl::SimpleAtod(value, &number) && number > 0)
      return refuse("adapter.dropout", value, "0");
    if (name == "encoder.type" && value == "model")
      return refuse("adapter.encoder.type", value, "embedding_mean");
  }
  return absl::OkStatus();
}

absl::Status ValidateOptim(const Recipe& recipe) {
  const OptimSection& optim = recipe.optim;
  if (optim.betas.size() != 2 || optim.betas[0] >= 1 || optim.betas[1] >= 1) {
    return KeyError(recipe, "optim.betas",
                    "must be two numbers from 0.0 up to, not including, 1.0");
  }
  return absl::OkStatus();
}

// What can be said without a model, a data set or the number of ranks.
absl::Status Validate(const Recipe& recipe) {
  GRAFT_RETURN_IF_ERROR(ValidateParallel(recipe));
  GRAFT_RETURN_IF_ERROR(ValidateGraphs(recipe));
  GRAFT_RETURN_IF_ERROR(ValidateOptim(recipe));
  if (!recipe.model.path.empty() && !recipe.model.shape.empty()) {
    return KeyError(recipe, "model.shape", "given together with model.path, only one is allowed");
  }
  if (recipe.eval.every > 0 && recipe.data.eval.empty()) {
    return KeyError(recipe, "data.eval", "missing, eval.every needs it");
  }
  if (recipe.eval.patience > 0 && recipe.eval.every == 0) {
    return KeyError(recipe, "eval.patience",
                    absl::StrCat("found ", recipe.eval.patience, ", needs eval.every above 0"));
  }
  if (recipe.generate.beams > 1 && recipe.generate.temperature > 0) {
    return KeyError(recipe, "generate.beams",
                    absl::StrCat("found ", recipe.generate.beams, " with generate.temperature ",
                                 recipe.generate.temperature,
                                 ", a beam search does not sample; allowed: beams 1 or "
                                 "temperature 0"));
  }
  for (const std::string& part : recipe.adapter.layers) {
    int64_t first = 0, last = 0;
    const bool is_all = part == "all" && recipe.adapter.layers.size() == 1;
    if (!is_all && !ParseRange(part, &first, &last)) {
      return KeyError(recipe, "adapter.layers",
                      absl::StrCat("found `", Printable(part),
                                   "`, must be all, or layer numbers and ranges such as 0-11"));
    }
  }
  if (recipe.adapter.layers.empty()) {
    return KeyError(recipe, "adapter.layers", "found an empty list, must name a layer or all");
  }
  return absl::OkStatus();
}

}  // namespace

std::vector<int> ParallelSection::split_sizes() const {
  std::vector<int> sizes;
  for (const std::string& part : split) {
    int64_t layers = 0;
    if (ParseInt(part, &layers)) sizes.push_back(static_cast<int>(layers));
  }
  return sizes;
}

absl::StatusOr<Recipe> ParseRecipe(const std::string& yaml, const std::string& origin,
                                   const std::vector<std::string>& overrides,
                                   const MethodKeys& methods) {
  GRAFT_ASSIGN_OR_RETURN(YamlNode root, ParseYaml(yaml, origin));
  std::set<std::string> given;
  for (const std::string& assignment : overrides) {
    GRAFT_RETURN_IF_ERROR(ApplyOverride(assignment, &root));
    const std::string key = assignment.substr(0, assignment.find('='));
    if (!given.insert(key).second) {
      return UsageError(absl::StrCat("command line: ", Printable(key), " is given twice"));
    }
  }
  Recipe recipe;
  recipe.origin = origin;
  GRAFT_RETURN_IF_ERROR(ReadSections(root, methods, &recipe));
  if (recipe.run.output.empty()) recipe.run.output = absl::StrCat("runs/", recipe.run.name);
  if (recipe.score.output.empty()) recipe.score.output = JoinPath(recipe.run.output, "score");
  GRAFT_RETURN_IF_ERROR(Validate(recipe));
  return recipe;
}

absl::StatusOr<Recipe> LoadRecipe(const std::string& path,
                                  const std::vector<std::string>& overrides,
                                  const MethodKeys& methods) {
  ReadOptions options;
  options.follow_links = true;  // the user named this file
  const absl::StatusOr<std::string> yaml = ReadFile(path, kMaxRecipeBytes, options);
  if (!yaml.ok()) {
    return KindOf(yaml.status()) == ErrorKind::kInput
               ? RecipeError(std::string(yaml.status().message()))
               : yaml.status();
  }
  return ParseRecipe(*yaml, path, overrides, methods);
}

absl::Status RequireKeys(const Recipe& recipe, const std::vector<std::string>& keys,
                         const std::string& command) {
  const FieldList fields = ResolvedFields(recipe);
  for (const std::string& key : keys) {
    const bool is_model = key == "model";
    bool present = false;
    for (const auto& [name, value] : fields) {
      const bool wanted = is_model ? name == "model.path" || name == "model.shape" : name == key;
      present = present || (wanted && value != "\"\"");
    }
    if (!present) {
      return KeyError(recipe, is_model ? "model.path" : key,
                      absl::StrCat("missing, `graft ", command, "` needs it"));
    }
  }
  return absl::OkStatus();
}

absl::Status ValidateWorld(const Recipe& recipe, int world_size) {
  if (recipe.parallel.world() == world_size) return absl::OkStatus();
  return KeyError(
      recipe, "parallel.data",
      absl::StrCat("data x pipeline = ", recipe.parallel.data, " x ", recipe.parallel.pipeline,
                   " = ", recipe.parallel.world(), ", must equal the number of ranks, which is ",
                   world_size, world_size == 1 ? " (started without mpirun or srun?)" : ""));
}

absl::StatusOr<std::vector<int>> AdapterLayers(const Recipe& recipe, int num_layers) {
  std::set<int> layers;
  for (const std::string& part : recipe.adapter.layers) {
    int64_t first = 0, last = num_layers - 1;
    if (part != "all" && (!ParseRange(part, &first, &last) || last >= num_layers)) {
      return KeyError(recipe, "adapter.layers",
                      absl::StrCat("found `", Printable(part), "`, the model has layers 0 to ",
                                   num_layers - 1));
    }
    for (int64_t layer = first; layer <= last; ++layer) layers.insert(static_cast<int>(layer));
  }
  return std::vector<int>(layers.begin(), layers.end());
}

absl::Status ApplyMethodFields(const Recipe& recipe, const VisitFunction& visit) {
  return ReadFieldList(recipe.method_fields, recipe.origin, visit);
}

FieldList ResolvedFields(const Recipe& recipe) {
  Recipe copy = recipe;  // visitors may write
  FieldList all;
  for (const SectionRow& section : kSections) {
    if (IsAdapter(section) && recipe.adapter.method.empty()) continue;
    FieldList fields = ListFields([&](FieldVisitor& visitor) { section.visit(copy, visitor); });
    if (IsAdapter(section)) {
      fields.insert(fields.end(), recipe.method_fields.begin(), recipe.method_fields.end());
    }
    for (const auto& [name, value] : fields) {
      all.emplace_back(absl::StrCat(section.name, ".", name), value);
    }
  }
  return all;
}

std::string RecipeYaml(const Recipe& recipe) { return YamlOf(ResolvedFields(recipe)); }

std::string RecipeHelp(const MethodKeys& methods) {
  Recipe defaults;
  std::string text;
  for (const SectionRow& section : kSections) {
    absl::StrAppend(&text, section.name, ":\n", HelpOf(section.name, [&](FieldVisitor& visitor) {
      section.visit(defaults, visitor);
    }));
  }
  for (const std::string& name : methods.names) {
    const absl::StatusOr<VisitFunction> visit = methods.visit(name);
    if (!visit.ok()) continue;
    absl::StrAppend(&text, "adapter, method: ", name, ":\n", HelpOf("adapter", *visit));
  }
  return text;
}

}  // namespace graft::trainer
