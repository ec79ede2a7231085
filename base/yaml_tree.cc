#include "base/yaml_tree.h"

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/mark.h>
#include <yaml-cpp/parser.h>

#include <algorithm>
#include <map>
#include <set>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/status.h"
#include "base/text.h"

namespace graft {
namespace {

// Builds the tree from the parser's events and stops it at the first breach by throwing
// StatusError.
class TreeBuilder : public YAML::EventHandler {
 public:
  TreeBuilder(const std::string& origin, bool has_lines, const YamlLimits& limits)
      : origin_(Printable(origin, 512)), has_lines_(has_lines), limits_(limits) {}

  void OnDocumentStart(const YAML::Mark& mark) override {
    if (++num_documents_ > 1) Fail(mark, "a second document starts, one is allowed");
  }
  void OnDocumentEnd() override {}

  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    if (ExpectsKey()) Fail(mark, "an empty key");
    Add(mark, anchor, NewNode(mark, YamlNode::Kind::kNull));
  }

  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    RefuseTag(mark, tag);
    if (!IsUtf8Text(value)) Fail(mark, "text with a NUL character");
    if (ExpectsKey()) return SetKey(mark, value);
    YamlNode node = NewNode(mark, YamlNode::Kind::kScalar);
    node.text = value;
    node.quoted = tag == "!";
    Add(mark, anchor, std::move(node));
  }

  void OnAlias(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    if (ExpectsKey()) Fail(mark, "an alias as a key");
    const auto known = anchors_.find(anchor);
    if (known == anchors_.end()) Fail(mark, "an alias inside of its own anchor");
    CountNodes(mark, known->second.num_nodes);
    CheckDepth(mark, known->second.height);
    Attach(YamlNode(known->second.node), known->second.num_nodes, known->second.height);
  }

  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    Open(mark, tag, anchor, YamlNode::Kind::kList);
  }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    Open(mark, tag, anchor, YamlNode::Kind::kMap);
  }
  void OnSequenceEnd() override { Close(); }
  void OnMapEnd() override { Close(); }

  YamlNode TakeRoot() { return std::move(root_); }

 private:
  struct Anchored {
    YamlNode node;
    int num_nodes = 1;
    int height = 0;  // containers on the longest way down, itself included
  };
  struct OpenNode {
    Anchored value;
    YAML::anchor_t anchor = 0;
    bool has_key = false;
    std::string key;
    std::set<std::string> seen;
  };

  [[noreturn]] void Fail(const YAML::Mark& mark, const std::string& what) const {
    std::vector<std::string> path;
    for (const OpenNode& open : open_) {
      if (open.has_key) path.push_back(Printable(open.key, 64));
    }
    const std::string dotted = absl::StrJoin(path, ".");
    throw StatusError(
        RecipeError(absl::StrCat(Where(mark), ": ", dotted, dotted.empty() ? "" : ": ", what)));
  }

  std::string Where(const YAML::Mark& mark) const {
    return has_lines_ ? absl::StrCat(origin_, ":", mark.line + 1) : origin_;
  }

  YamlNode NewNode(const YAML::Mark& mark, YamlNode::Kind kind) const {
    YamlNode node;
    node.kind = kind;
    node.origin = Where(mark);
    return node;
  }

  bool ExpectsKey() const {
    return !open_.empty() && open_.back().value.node.kind == YamlNode::Kind::kMap &&
           !open_.back().has_key;
  }

  // "?" is a plain scalar, "!" a quoted one, "" a container: anything else was written in the text.
  void RefuseTag(const YAML::Mark& mark, const std::string& tag) const {
    if (tag.empty() || tag == "?" || tag == "!") return;
    Fail(mark, absl::StrCat("the tag ", Printable(tag), ", tags are not allowed"));
  }

  void CountNodes(const YAML::Mark& mark, int count) {
    num_nodes_ += count;
    if (num_nodes_ > limits_.max_nodes) {
      Fail(mark,
           absl::StrCat("more than ", limits_.max_nodes, " nodes after aliases are expanded"));
    }
  }

  void CheckDepth(const YAML::Mark& mark, int height) const {
    if (static_cast<int>(open_.size()) + height > limits_.max_depth) {
      Fail(mark, absl::StrCat("nested deeper than ", limits_.max_depth, " levels"));
    }
  }

  void SetKey(const YAML::Mark& mark, const std::string& key) {
    OpenNode& map = open_.back();
    CountNodes(mark, 1);
    ++map.value.num_nodes;
    map.has_key = true;
    map.key = key;
    if (!map.seen.insert(key).second) Fail(mark, "this key occurs twice");
  }

  void Add(const YAML::Mark& mark, YAML::anchor_t anchor, YamlNode node) {
    CountNodes(mark, 1);
    if (anchor != 0) anchors_[anchor] = {node, 1, 0};
    Attach(std::move(node), 1, 0);
  }

  void Open(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
            YamlNode::Kind kind) {
    if (ExpectsKey()) Fail(mark, "a list or map as a key");
    RefuseTag(mark, tag);
    CountNodes(mark, 1);
    CheckDepth(mark, 1);
    OpenNode open;
    open.value = {NewNode(mark, kind), 1, 1};
    open.anchor = anchor;
    open_.push_back(std::move(open));
  }

  void Close() {
    OpenNode closed = std::move(open_.back());
    open_.pop_back();
    if (closed.anchor != 0) anchors_[closed.anchor] = closed.value;
    Attach(std::move(closed.value.node), closed.value.num_nodes, closed.value.height);
  }

  void Attach(YamlNode node, int num_nodes, int height) {
    if (open_.empty()) {
      root_ = std::move(node);
      return;
    }
    OpenNode& parent = open_.back();
    parent.value.num_nodes += num_nodes;
    parent.value.height = std::max(parent.value.height, height + 1);
    if (parent.value.node.kind == YamlNode::Kind::kList) {
      parent.value.node.items.push_back(std::move(node));
    } else {
      parent.value.node.fields.push_back({parent.key, std::move(node)});
      parent.has_key = false;
    }
  }

  const std::string origin_;
  const bool has_lines_;
  const YamlLimits limits_;
  YamlNode root_;
  std::vector<OpenNode> open_;
  std::map<YAML::anchor_t, Anchored> anchors_;
  int num_nodes_ = 0;
  int num_documents_ = 0;
};

}  // namespace

const YamlNode* YamlNode::Find(const std::string& key) const {
  for (const auto& [name, node] : fields) {
    if (name == key) return &node;
  }
  return nullptr;
}

std::string YamlNode::Describe() const {
  switch (kind) {
    case Kind::kNull:
      return "nothing";
    case Kind::kList:
      return absl::StrCat("a list of ", items.size());
    case Kind::kMap:
      return "a map";
    default:
      return quoted ? absl::StrCat("the text \"", Printable(text), "\"")
                    : absl::StrCat("`", Printable(text), "`");
  }
}

absl::StatusOr<YamlNode> ParseYaml(const std::string& text, const std::string& origin,
                                   bool has_lines, const YamlLimits& limits) {
  const std::string where = Printable(origin, 512);
  if (text.size() > limits.max_bytes) {
    return RecipeError(absl::StrCat(where, ": has ", text.size(), " bytes, at most ",
                                    limits.max_bytes, " are allowed"));
  }
  if (!IsUtf8Text(text)) return RecipeError(absl::StrCat(where, ": must be UTF-8 text"));
  TreeBuilder builder(origin, has_lines, limits);
  try {
    std::istringstream stream(text);
    YAML::Parser parser(stream);
    while (parser.HandleNextDocument(builder)) {
    }
  } catch (const StatusError& error) {
    return error.status();
  } catch (const YAML::Exception& error) {
    return RecipeError(
        absl::StrCat(where, has_lines ? absl::StrCat(":", error.mark.line + 1) : std::string(),
                     ": not valid YAML: ", Printable(error.msg)));
  }
  return builder.TakeRoot();
}

}  // namespace graft
