#include "sharding/start_log.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/json.h"
#include "base/status.h"

namespace graft::sharding {
namespace {

constexpr char kStartsName[] = "starts.jsonl";
constexpr int64_t kMaxBytes = int64_t{16} << 20;
constexpr int64_t kMaxNumber = int64_t{1} << 40;
constexpr size_t kKeptLines = 1000;

}  // namespace

absl::StatusOr<StartLog> StartLog::Open(const std::string& checkpoints) {
  StartLog log(JoinPath(checkpoints, kStartsName));
  if (PathExists(log.path_)) {
    GRAFT_ASSIGN_OR_RETURN(const std::string text, ReadFile(log.path_, kMaxBytes));
    log.lines_ = Parse(text);
  }
  for (const Line& line : log.lines_) log.number_ = std::max(log.number_, line.start + 1);
  return log;
}

std::vector<StartLog::Line> StartLog::Parse(const std::string& text) {
  std::vector<Line> lines;
  std::istringstream stream(text);
  for (std::string each; std::getline(stream, each);) {
    const auto object = ParseJson(each, kStartsName, {.max_depth = 2, .max_values = 16});
    if (!object.ok()) continue;
    const auto start = GetInt(*object, "start", 1, kMaxNumber, kStartsName);
    const auto from = GetInt(*object, "from_step", 0, kMaxNumber, kStartsName);
    const auto committed = GetIntOr(*object, "committed_step", -1, 0, kMaxNumber, kStartsName);
    const auto request = GetBoolOr(*object, "orderly", false, kStartsName);
    if (!start.ok() || !from.ok() || !committed.ok() || !request.ok()) continue;
    lines.push_back({*start, *from, *committed, *request});
  }
  return lines;
}

bool StartLog::LooksStuck(int64_t step) const {
  if (lines_.size() < 2) return false;
  return std::all_of(lines_.end() - 2, lines_.end(), [step](const Line& line) {
    return line.from_step == step && line.committed_step <= step && !line.orderly;
  });
}

absl::Status StartLog::Begin(int64_t from_step) {
  lines_.push_back({number_, from_step, -1, false});
  return Write();
}

absl::Status StartLog::Committed(int64_t step) {
  GRAFT_CHECK(!lines_.empty(), "Begin comes first");
  lines_.back().committed_step = std::max(lines_.back().committed_step, step);
  return Write();
}

absl::Status StartLog::EndedOrderly() {
  GRAFT_CHECK(!lines_.empty(), "Begin comes first");
  lines_.back().orderly = true;
  return Write();
}

absl::Status StartLog::Write() const {
  std::string text;
  const size_t first = lines_.size() > kKeptLines ? lines_.size() - kKeptLines : 0;
  for (size_t i = first; i < lines_.size(); ++i) {
    const Line& line = lines_[i];
    nlohmann::ordered_json object = {{"start", line.start}, {"from_step", line.from_step}};
    object["committed_step"] = nullptr;
    if (line.committed_step >= 0) object["committed_step"] = line.committed_step;
    if (line.orderly) object["orderly"] = true;
    absl::StrAppend(&text, object.dump(), "\n");
  }
  return AtomicWriteFile(path_, text);
}

}  // namespace graft::sharding
