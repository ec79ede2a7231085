#include "sharding/resume_rules.h"

#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/status.h"
#include "base/text.h"

namespace graft::sharding {
namespace {

constexpr int kMaxNamed = 4;
constexpr char kAdvice[] =
    ". Allowed are equal values; to continue with others start a new run with adapter.init_from";

// The first few of a list, for a message.
class NameList {
 public:
  explicit NameList(const char* title) : title_(title) {}
  void Add(const std::string& name) {
    if (++count_ <= kMaxNamed) names_.push_back(Printable(name));
  }
  void AppendTo(std::vector<std::string>* parts) const {
    if (count_ == 0) return;
    const std::string more =
        count_ > kMaxNamed ? absl::StrCat(" and ", count_ - kMaxNamed, " more") : std::string();
    parts->push_back(absl::StrCat(title_, " ", absl::StrJoin(names_, ", "), more));
  }

 private:
  const char* const title_;
  int count_ = 0;
  std::vector<std::string> names_;
};

std::string ShapeText(const std::vector<int64_t>& shape) {
  return absl::StrCat("(", absl::StrJoin(shape, ", "), ")");
}

}  // namespace

absl::Status CompareFixed(const TextMap& saved, const TextMap& current, const std::string& origin) {
  std::set<std::string> keys;
  for (const auto& [key, value] : saved) keys.insert(key);
  for (const auto& [key, value] : current) keys.insert(key);
  std::string differences;
  int count = 0;
  const auto value_in = [](const TextMap& map, const std::string& key) {
    const auto found = map.find(key);
    return found == map.end() ? "absent" : absl::StrCat("`", Printable(found->second), "`");
  };
  for (const std::string& key : keys) {
    const std::string before = value_in(saved, key), now = value_in(current, key);
    if (before == now || ++count > kMaxNamed) continue;
    absl::StrAppend(&differences, count > 1 ? "; " : "", Printable(key), " is ", before,
                    " in the checkpoint and ", now, " now");
  }
  if (count == 0) return absl::OkStatus();
  return IoError(absl::StrCat(
      origin, ": cannot resume: ", differences,
      count > kMaxNamed ? absl::StrCat("; and ", count - kMaxNamed, " more") : "", kAdvice));
}

absl::Status CompareParameters(const Manifest& saved, const std::vector<ParameterShape>& expected,
                               const std::string& origin) {
  constexpr char kParam[] = "param/";
  std::map<std::string, std::vector<int64_t>> found;
  for (const TensorEntry& tensor : saved.tensors) {
    if (absl::StartsWith(tensor.key, kParam)) {
      found[tensor.key.substr(sizeof(kParam) - 1)] = tensor.shape;
    }
  }
  NameList missing("not in the checkpoint:"), extra("only in the checkpoint:"),
      resized("of another shape:");
  for (const ParameterShape& parameter : expected) {
    const auto entry = found.find(parameter.name);
    if (entry == found.end()) {
      missing.Add(parameter.name);
      continue;
    }
    if (entry->second != parameter.shape) {
      resized.Add(absl::StrCat(parameter.name, " is ", ShapeText(entry->second),
                               " in the checkpoint and ", ShapeText(parameter.shape), " now"));
    }
    found.erase(entry);
  }
  for (const auto& [name, shape] : found) extra.Add(name);
  std::vector<std::string> parts;
  for (const NameList* const list : {&missing, &extra, &resized}) list->AppendTo(&parts);
  if (parts.empty()) return absl::OkStatus();
  return IoError(absl::StrCat(origin, ": cannot resume: the adapter has other parameters: ",
                              absl::StrJoin(parts, "; "), kAdvice));
}

}  // namespace graft::sharding
