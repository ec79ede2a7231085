// A YAML document as a plain tree, read strictly from untrusted text: size, number of nodes after
// alias expansion, depth, duplicate keys and tags are refused (reliability.md 6). Used by
// base/recipe_yaml.h, which gives the scalars their types. Errors: kind recipe.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace graft {

struct YamlField;

struct YamlNode {
  enum class Kind { kNull, kScalar, kList, kMap };
  Kind kind = Kind::kNull;
  std::string origin;  // "recipe.yaml:12" or "command line": opens messages about this node
  std::string text;    // of a scalar
  bool quoted = false;
  std::vector<YamlNode> items;    // of a list
  std::vector<YamlField> fields;  // of a map, in file order

  const YamlNode* Find(const std::string& key) const;
  // "`3`", "a list of 2", "a map", "nothing": what a message says was found.
  std::string Describe() const;
};

struct YamlField {
  std::string name;
  YamlNode value;
};

struct YamlLimits {
  std::size_t max_bytes = std::size_t{1} << 20;
  int max_nodes = 10'000;  // keys count too
  int max_depth = 32;
};

// One document. `origin` is the file, or another place; with `has_lines` nodes say "origin:line".
absl::StatusOr<YamlNode> ParseYaml(const std::string& text, const std::string& origin,
                                   bool has_lines = true, const YamlLimits& limits = {});

}  // namespace graft
