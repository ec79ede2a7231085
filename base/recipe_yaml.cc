#include "base/recipe_yaml.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "base/status.h"
#include "base/text.h"

namespace graft {
namespace {

std::string Dotted(const std::string& path, const std::string& name) {
  return path.empty() ? name : absl::StrCat(path, ".", name);
}

bool Contains(const std::vector<std::string>& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

std::string IntRange(int64_t min, int64_t max) {
  return max == FieldVisitor::kMaxInt ? absl::StrCat("at least ", min)
                                      : absl::StrCat("from ", min, " to ", max);
}

std::string RealRange(double min, double max) {
  return absl::StrCat("from ", FormatReal(min), " to ", FormatReal(max));
}

// Plain where no reader could take it for anything but this text, else double-quoted: a JSON string
// is one in YAML too.
std::string YamlText(const std::string& text) {
  static constexpr char kFirst[] =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./";
  static constexpr char kOther[] =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./+-";
  static const std::set<std::string> kNulls = {"null", "Null", "NULL", "..."};
  const bool plain = !text.empty() && std::string(kFirst).find(text[0]) != std::string::npos &&
                     text.find_first_not_of(kOther) == std::string::npos && kNulls.count(text) == 0;
  return plain ? text : nlohmann::json(text).dump();
}

std::string YamlList(const std::vector<std::string>& values) {
  return absl::StrCat("[", absl::StrJoin(values, ", "), "]");
}

std::string BoolText(bool value) { return value ? "true" : "false"; }

std::string TextListOf(const std::vector<std::string>& values) {
  std::vector<std::string> texts;
  for (const std::string& value : values) texts.push_back(YamlText(value));
  return YamlList(texts);
}

std::string RealListOf(const std::vector<double>& values) {
  std::vector<std::string> texts;
  for (const double value : values) texts.push_back(FormatReal(value));
  return YamlList(texts);
}

// What printing and documenting share: one row for each field, with dotted names.
class RowVisitor : public FieldVisitor {
 public:
  void Bool(FieldInfo info, bool* value) override { Add(info, BoolText(*value), "true or false"); }
  void Int(FieldInfo info, int64_t* value, int64_t min, int64_t max) override {
    Add(info, absl::StrCat(*value), IntRange(min, max));
  }
  void Real(FieldInfo info, double* value, double min, double max) override {
    Add(info, FormatReal(*value), RealRange(min, max));
  }
  void Text(FieldInfo info, std::string* value, const std::vector<std::string>& choices) override {
    Add(info, YamlText(*value), absl::StrJoin(choices, " | "));
  }
  void TextList(FieldInfo info, std::vector<std::string>* value,
                const std::vector<std::string>& choices) override {
    Add(info, TextListOf(*value), absl::StrJoin(choices, " | "));
  }
  void RealList(FieldInfo info, std::vector<double>* value, double min, double max) override {
    Add(info, RealListOf(*value), RealRange(min, max));
  }
  void Begin(FieldInfo info) override { path_.emplace_back(info.name); }
  void End() override { path_.pop_back(); }

 protected:
  virtual void Row(const std::string& key, const std::string& value, const std::string& range,
                   const char* help) = 0;

 private:
  void Add(FieldInfo info, const std::string& value, const std::string& range) {
    Row(Dotted(absl::StrJoin(path_, "."), info.name), value, range, info.help);
  }
  std::vector<std::string> path_;
};

class ListVisitor : public RowVisitor {
 public:
  FieldList fields;

 protected:
  void Row(const std::string& key, const std::string& value, const std::string&,
           const char*) override {
    fields.emplace_back(key, value);
  }
};

class HelpVisitor : public RowVisitor {
 public:
  explicit HelpVisitor(const std::string& section) : section_(section) {}
  std::string text;

 protected:
  void Row(const std::string& key, const std::string& value, const std::string& range,
           const char* help) override {
    absl::StrAppend(&text, "  ", Dotted(section_, key), " = ", value == "\"\"" ? "unset" : value,
                    range.empty() ? "" : "  (", range, range.empty() ? "" : ")", "\n      ", help,
                    "\n");
  }

 private:
  const std::string section_;
};

}  // namespace

YamlReader::YamlReader(const YamlNode* map, const std::string& path) {
  levels_.push_back({nullptr, path, {}});
  if (map == nullptr || map->kind == YamlNode::Kind::kNull) return;
  if (map->kind == YamlNode::Kind::kMap) {
    levels_.back().map = map;
  } else {
    Fail(*map, path, absl::StrCat("found ", map->Describe(), ", must be a map of keys"));
  }
}

void YamlReader::Fail(const YamlNode& node, const std::string& key, const std::string& what) {
  if (!status_.ok()) return;
  status_ = RecipeError(absl::StrCat(node.origin, ": ", key, key.empty() ? "" : ": ", what));
}

const YamlNode* YamlReader::Take(const char* name) {
  levels_.back().asked.emplace_back(name);
  return levels_.back().map == nullptr ? nullptr : levels_.back().map->Find(name);
}

bool YamlReader::IsScalar(const YamlNode& node, const std::string& key,
                          const std::string& allowed) {
  if (node.kind == YamlNode::Kind::kScalar) return true;
  Fail(node, key, absl::StrCat("found ", node.Describe(), ", must be ", allowed));
  return false;
}

void YamlReader::Bool(FieldInfo info, bool* value) {
  const YamlNode* const node = Take(info.name);
  if (node == nullptr) return;
  const bool is_true = node->text == "true";
  if (node->quoted || (!is_true && node->text != "false")) {
    Fail(*node, Dotted(levels_.back().path, info.name),
         absl::StrCat("found ", node->Describe(), ", must be true or false"));
    return;
  }
  *value = is_true;
}

void YamlReader::Int(FieldInfo info, int64_t* value, int64_t min, int64_t max) {
  const YamlNode* const node = Take(info.name);
  if (node == nullptr) return;
  int64_t number = 0;
  const std::size_t digits = node->text.find_first_not_of('-');
  // 010 is ten to one reader and eight to another.
  const bool ambiguous =
      digits != std::string::npos && node->text[digits] == '0' && digits + 1 < node->text.size();
  if (node->kind != YamlNode::Kind::kScalar || node->quoted || ambiguous ||
      !ParseInt(node->text, &number) || number < min || number > max) {
    Fail(*node, Dotted(levels_.back().path, info.name),
         absl::StrCat("found ", node->Describe(), ", must be an integer ", IntRange(min, max)));
    return;
  }
  *value = number;
}

void YamlReader::ReadReal(const YamlNode& node, const std::string& key, double* value, double min,
                          double max) {
  double number = 0;
  if (node.kind != YamlNode::Kind::kScalar || node.quoted || !ParseReal(node.text, &number) ||
      !std::isfinite(number) || number < min || number > max) {
    Fail(node, key,
         absl::StrCat("found ", node.Describe(), ", must be a number ", RealRange(min, max)));
    return;
  }
  *value = number;
}

void YamlReader::Real(FieldInfo info, double* value, double min, double max) {
  const YamlNode* const node = Take(info.name);
  if (node != nullptr) ReadReal(*node, Dotted(levels_.back().path, info.name), value, min, max);
}

void YamlReader::ReadText(const YamlNode& node, const std::string& key, std::string* value,
                          const std::vector<std::string>& choices) {
  const std::string allowed =
      choices.empty() ? "text" : absl::StrCat("one of ", JoinNames(choices));
  if (!IsScalar(node, key, allowed)) return;
  if (!choices.empty() && !Contains(choices, node.text)) {
    Fail(node, key,
         absl::StrCat("found ", node.Describe(), ", must be ", allowed,
                      DidYouMean(node.text, choices)));
    return;
  }
  *value = node.text;
}

void YamlReader::Text(FieldInfo info, std::string* value, const std::vector<std::string>& choices) {
  const YamlNode* const node = Take(info.name);
  if (node != nullptr) ReadText(*node, Dotted(levels_.back().path, info.name), value, choices);
}

void YamlReader::TextList(FieldInfo info, std::vector<std::string>* value,
                          const std::vector<std::string>& choices) {
  const YamlNode* const node = Take(info.name);
  if (node == nullptr) return;
  const std::string key = Dotted(levels_.back().path, info.name);
  const bool is_list = node->kind == YamlNode::Kind::kList;
  std::vector<std::string> values(is_list ? node->items.size() : 1);
  for (std::size_t i = 0; i < values.size(); ++i) {
    ReadText(is_list ? node->items[i] : *node, key, &values[i], choices);
  }
  if (status_.ok()) *value = std::move(values);
}

void YamlReader::RealList(FieldInfo info, std::vector<double>* value, double min, double max) {
  const YamlNode* const node = Take(info.name);
  if (node == nullptr) return;
  const std::string key = Dotted(levels_.back().path, info.name);
  const bool is_list = node->kind == YamlNode::Kind::kList;
  std::vector<double> values(is_list ? node->items.size() : 1);
  for (std::size_t i = 0; i < values.size(); ++i) {
    ReadReal(is_list ? node->items[i] : *node, key, &values[i], min, max);
  }
  if (status_.ok()) *value = std::move(values);
}

void YamlReader::Begin(FieldInfo info) {
  const YamlNode* const node = Take(info.name);
  Level level;
  level.path = Dotted(levels_.back().path, info.name);
  if (node != nullptr && node->kind == YamlNode::Kind::kMap) {
    level.map = node;
  } else if (node != nullptr && node->kind != YamlNode::Kind::kNull) {
    Fail(*node, level.path, absl::StrCat("found ", node->Describe(), ", must be a map of keys"));
  }
  levels_.push_back(std::move(level));
}

void YamlReader::End() {
  CheckUnknown(levels_.back());
  levels_.pop_back();
}

std::string YamlReader::Accept(const std::string& key) {
  const YamlNode* const node = Take(key.c_str());
  return node == nullptr ? "" : node->origin;
}

bool YamlReader::HasAsked(const std::string& key) const {
  return Contains(levels_.front().asked, key);
}

void YamlReader::CheckUnknown(const Level& level) {
  if (level.map == nullptr) return;
  for (const auto& [key, node] : level.map->fields) {
    if (Contains(level.asked, key)) continue;
    Fail(node, Dotted(level.path, Printable(key)),
         absl::StrCat("unknown key", DidYouMean(key, level.asked),
                      "; known here: ", JoinNames(level.asked)));
  }
}

absl::Status YamlReader::Finish() {
  CheckUnknown(levels_.front());
  return status_;
}

absl::Status ApplyOverride(const std::string& assignment, YamlNode* root) {
  static constexpr char kOrigin[] = "command line";
  const std::size_t equals = assignment.find('=');
  const std::string key = assignment.substr(0, equals);
  const std::vector<std::string> names = absl::StrSplit(key, '.');
  if (equals == std::string::npos || names.size() < 2 || Contains(names, "")) {
    return UsageError(absl::StrCat("command line: found `", Printable(assignment),
                                   "`, must be section.key=value"));
  }
  absl::StatusOr<YamlNode> value = ParseYaml(assignment.substr(equals + 1), kOrigin, false);
  if (!value.ok()) return Annotate(value.status(), Printable(key));
  YamlNode* node = root;
  std::string path;
  for (const std::string& name : names) {
    if (node->kind == YamlNode::Kind::kNull) node->kind = YamlNode::Kind::kMap;
    if (node->kind != YamlNode::Kind::kMap) {
      return RecipeError(absl::StrCat(node->origin, ": ", Printable(path), ": found ",
                                      node->Describe(), ", must be a map of keys to set `",
                                      Printable(key), "` from the command line"));
    }
    path = Dotted(path, name);
    const auto same = [&name](const auto& field) { return field.name == name; };
    auto field = std::find_if(node->fields.begin(), node->fields.end(), same);
    if (field == node->fields.end()) {
      YamlNode empty;
      empty.origin = kOrigin;
      field = node->fields.insert(node->fields.end(), {name, empty});
    }
    node = &field->value;
  }
  *node = *std::move(value);
  node->origin = kOrigin;
  return absl::OkStatus();
}

FieldList ListFields(const VisitFunction& visit) {
  ListVisitor visitor;
  visit(visitor);
  return visitor.fields;
}

std::string YamlOf(const FieldList& fields) {
  std::string text;
  std::vector<std::string> open;  // maps that the last line stands in
  for (const auto& [key, value] : fields) {
    std::vector<std::string> names = absl::StrSplit(key, '.');
    const std::string last = names.back();
    names.pop_back();
    std::size_t shared = 0;
    while (shared < open.size() && shared < names.size() && open[shared] == names[shared]) ++shared;
    for (std::size_t depth = shared; depth < names.size(); ++depth) {
      absl::StrAppend(&text, std::string(2 * depth, ' '), names[depth], ":\n");
    }
    absl::StrAppend(&text, std::string(2 * names.size(), ' '), last, ": ", value, "\n");
    open = std::move(names);
  }
  return text;
}

absl::Status ReadFieldList(const FieldList& fields, const std::string& origin,
                           const VisitFunction& visit) {
  GRAFT_ASSIGN_OR_RETURN(const YamlNode root, ParseYaml(YamlOf(fields), origin));
  YamlReader reader(&root, "");
  visit(reader);
  return reader.Finish();
}

std::string HelpOf(const std::string& section, const VisitFunction& visit) {
  HelpVisitor visitor(section);
  visit(visitor);
  return visitor.text;
}

}  // namespace graft
