// The field lists of base/fields.h put to work: reading from YAML with every error naming file,
// line and dotted key; overriding from the command line through the same path; printing
// canonically; documenting. Used by trainer/config.h. It knows no section and no key.
#pragma once

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/fields.h"
#include "base/yaml_tree.h"

namespace graft {

using VisitFunction = std::function<void(FieldVisitor&)>;

// Dotted key and its value in canonical YAML ("8", "0.001", "[attn.q, attn.v]"), in visiting
// order.
using FieldList = std::vector<std::pair<std::string, std::string>>;

// Reads the fields of one map. Fields that are absent keep their values. The first error is kept;
// Finish reports it, or else the first key that no visit has asked for.
class YamlReader : public FieldVisitor {
 public:
  // `path` is the dotted key of the map ("optim"); `map` null = absent (every field keeps its
  // value). The node must outlive this.
  YamlReader(const YamlNode* map, const std::string& path);

  void Bool(FieldInfo info, bool* value) override;
  void Int(FieldInfo info, int64_t* value, int64_t min, int64_t max) override;
  void Real(FieldInfo info, double* value, double min, double max) override;
  void Text(FieldInfo info, std::string* value, const std::vector<std::string>& choices) override;
  void TextList(FieldInfo info, std::vector<std::string>* value,
                const std::vector<std::string>& choices) override;
  void RealList(FieldInfo info, std::vector<double>* value, double min, double max) override;
  void Begin(FieldInfo info) override;
  void End() override;

  // Accepts `key` without reading it. Returns where it was given ("recipe.yaml:12"), "" when it was
  // not.
  std::string Accept(const std::string& key);
  bool HasAsked(const std::string& key) const;
  absl::Status Finish();

 private:
  struct Level {
    const YamlNode* map = nullptr;
    std::string path;
    std::vector<std::string> asked;
  };
  const YamlNode* Take(const char* name);
  void Fail(const YamlNode& node, const std::string& key, const std::string& what);
  bool IsScalar(const YamlNode& node, const std::string& key, const std::string& allowed);
  void ReadText(const YamlNode& node, const std::string& key, std::string* value,
                const std::vector<std::string>& choices);
  void ReadReal(const YamlNode& node, const std::string& key, double* value, double min,
                double max);
  void CheckUnknown(const Level& level);

  std::vector<Level> levels_;
  absl::Status status_;
};

// Puts `section.key=value` into the tree; the value is YAML. Kind usage when the text has not that
// form, recipe for the rest.
absl::Status ApplyOverride(const std::string& assignment, YamlNode* root);

// The fields as canonical text, and a document made from such a list.
FieldList ListFields(const VisitFunction& visit);
std::string YamlOf(const FieldList& fields);
// Reads back what ListFields gave.
absl::Status ReadFieldList(const FieldList& fields, const std::string& origin,
                           const VisitFunction& visit);

// One line for each field: key, default, range, meaning. `section` stands in front of the keys.
std::string HelpOf(const std::string& section, const VisitFunction& visit);

}  // namespace graft
