#include "comm/flight_report.h"

#include <algorithm>
#include <map>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/file.h"
#include "base/status.h"
#include "base/text.h"

namespace graft::comm {
namespace {

std::string GroupName(const FlightOperation& op, const std::vector<FlightGroup>& groups) {
  if (op.group < 0) return "an unnamed communicator";
  return Printable(groups[static_cast<std::size_t>(op.group)].name, 64);
}

std::string Bytes(const FlightOperation& op) {
  return absl::StrCat(op.bytes, " bytes ", Printable(op.type, 16));
}

std::string Payload(const FlightOperation& op) {
  return op.bytes == 0 ? "" : absl::StrCat(" of ", Bytes(op));
}

// The collectives of one communicator as one rank began them, by number.
struct View {
  int rank = 0;
  const FlightDump* dump = nullptr;
  std::map<int64_t, const FlightOperation*> operations;
  int64_t last() const { return operations.empty() ? 0 : operations.rbegin()->first; }
  bool waits_in_last() const { return last() > 0 && operations.rbegin()->second->finished_us == 0; }
};

std::map<std::string, std::vector<View>> ViewsByGroup(const std::vector<FlightDump>& dumps) {
  std::map<std::string, std::vector<View>> views;
  for (const FlightDump& dump : dumps) {
    for (const FlightGroup& group : dump.groups) {
      views[group.name].push_back({.rank = dump.rank, .dump = &dump, .operations = {}});
    }
    for (const FlightOperation& op : dump.operations) {
      if (op.group < 0 || op.number == 0) continue;
      views[dump.groups[static_cast<std::size_t>(op.group)].name].back().operations[op.number] =
          &op;
    }
  }
  return views;
}

bool Alike(const FlightOperation& a, const FlightOperation& b) {
  return a.op == b.op && a.type == b.type && a.bytes == b.bytes && a.peer == b.peer;
}

// The first number that both rings still hold and that differs from the first view's.
std::string Difference(const std::string& group, const std::vector<View>& views) {
  std::map<int64_t, std::pair<const View*, const FlightOperation*>> first;
  std::map<int64_t, std::string> found;
  for (const View& view : views) {
    for (const auto& [number, op] : view.operations) {
      const auto [place, is_new] = first.try_emplace(number, &view, op);
      if (is_new || Alike(*place->second.second, *op)) continue;
      const FlightOperation& other = *place->second.second;
      found.try_emplace(number, absl::StrCat("operation ", number, " of ", Printable(group, 64),
                                             ": rank ", place->second.first->rank, " ",
                                             Printable(other.op, 16), Payload(other), ", rank ",
                                             view.rank, " ", Printable(op->op, 16), Payload(*op)));
    }
  }
  return found.empty() ? "" : found.begin()->second;
}

}  // namespace

std::string DescribeOperation(const FlightOperation& op, const std::vector<FlightGroup>& groups) {
  const std::string name = Printable(op.op, 16);
  if (op.number > 0) return absl::StrCat(name, " ", op.number, " of ", GroupName(op, groups));
  return absl::StrCat(name, op.op == "Recv" ? " from rank " : " to rank ", op.peer, " of ",
                      GroupName(op, groups));
}

std::string DescribeActivity(const FlightDump& dump) {
  const auto open =
      std::find_if(dump.operations.begin(), dump.operations.end(),
                   [&](const FlightOperation& op) { return op.sequence == dump.waiting; });
  if (dump.waiting > 0 && open != dump.operations.end()) {
    const double seconds =
        static_cast<double>(dump.now_us - std::max(open->waited_us, open->enqueued_us)) * 1e-6;
    return absl::StrFormat("waits %.1f s in %s (step %d%s)", seconds,
                           DescribeOperation(*open, dump.groups), open->step,
                           open->bytes == 0 ? "" : absl::StrCat(", ", Bytes(*open)));
  }
  if (dump.operations.empty()) return "computes; it has begun no operation";
  return absl::StrCat("computes after ", DescribeOperation(dump.operations.back(), dump.groups),
                      " (step ", dump.operations.back().step, ")");
}

FlightVerdict Judge(const std::vector<FlightDump>& dumps) {
  FlightVerdict verdict;
  std::set<int> present;
  int size = 0;
  for (const FlightDump& dump : dumps) {
    present.insert(dump.rank);
    size = std::max(size, dump.size);
  }
  for (int rank = 0; rank < size; ++rank) {
    if (present.count(rank) == 0) verdict.missing.push_back(rank);
  }
  for (const auto& [group, views] : ViewsByGroup(dumps)) {
    if (verdict.difference.empty()) verdict.difference = Difference(group, views);
    const auto [least, most] =
        std::minmax_element(views.begin(), views.end(),
                            [](const View& a, const View& b) { return a.last() < b.last(); });
    if (verdict.behind >= 0 || least->last() == most->last() || !most->waits_in_last()) continue;
    verdict.behind = least->rank;
    verdict.behind_text =
        absl::StrCat("rank ", least->rank, " has begun ", least->last(), " collectives of ",
                     Printable(group, 64), ", rank ", most->rank, " waits in ",
                     DescribeOperation(*most->operations.rbegin()->second, most->dump->groups));
  }
  return verdict;
}

bool IsFlightFolder(const std::string& folder) {
  const absl::StatusOr<std::vector<std::string>> names = ListFolder(folder);
  return names.ok() && std::any_of(names->begin(), names->end(), [](const std::string& name) {
           return ParseFlightFileName(name, nullptr);
         });
}

namespace {

// The dumps of the newest start in `folder`; *older counts those of other ones.
absl::StatusOr<std::vector<FlightDump>> ReadNewestStart(const std::string& folder, int* older) {
  GRAFT_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListFolder(folder));
  std::vector<FlightDump> all;
  for (const std::string& name : names) {
    int rank = 0;
    if (!ParseFlightFileName(name, &rank)) continue;
    const std::string path = JoinPath(folder, name);
    GRAFT_ASSIGN_OR_RETURN(FlightDump dump, ReadFlightDump(path));
    if (dump.rank != rank)
      return InputError(absl::StrCat(Printable(path, 512), ": rank: found ", dump.rank,
                                     ", the file name says ", rank));
    all.push_back(std::move(dump));
  }
  if (all.empty())
    return InputError(absl::StrCat(Printable(folder, 512), ": holds no rank-NNNNN.json"));
  const std::string newest =
      std::max_element(all.begin(), all.end(), [](const FlightDump& a, const FlightDump& b) {
        return a.written_s < b.written_s;
      })->start;
  *older = static_cast<int>(
      std::erase_if(all, [&](const FlightDump& dump) { return dump.start != newest; }));
  return all;
}

// Why the first of them was written: what the others say is that they heard of it.
std::string Reason(const std::vector<FlightDump>& dumps) {
  for (const FlightDump& dump : dumps) {
    if (!absl::EndsWith(dump.reason, kAlarmReason)) return dump.reason;
  }
  return dumps[0].reason;
}

}  // namespace

absl::StatusOr<std::string> DescribeFlight(const std::string& folder) {
  int older = 0;
  GRAFT_ASSIGN_OR_RETURN(const std::vector<FlightDump> dumps, ReadNewestStart(folder, &older));
  const FlightVerdict verdict = Judge(dumps);
  std::string text =
      absl::StrFormat("flight            %s\nranks             %d of %d left a dump\n",
                      Printable(folder, 512), dumps.size(), dumps[0].size);
  if (!verdict.missing.empty()) {
    absl::StrAppend(&text, "missing           rank ", verdict.missing[0], " is the first of ",
                    verdict.missing.size(), ": stopped, dead, or on a node that was cut off\n");
  }
  for (const FlightDump& dump : dumps) {
    absl::StrAppend(&text, "rank ", dump.rank, " (", Printable(dump.host, 64), ")  phase ",
                    Printable(dump.phase, 16), ", step ", dump.step, ": ", DescribeActivity(dump),
                    "\n");
  }
  if (verdict.behind >= 0) absl::StrAppend(&text, "behind            ", verdict.behind_text, "\n");
  absl::StrAppend(&text, "differs           ",
                  verdict.difference.empty() ? "nothing: every collective that two ranks began is "
                                               "the same on both"
                                             : verdict.difference,
                  "\n");
  absl::StrAppend(&text, "written because   ", Printable(Reason(dumps), 1000), "\n");
  if (older > 0)
    absl::StrAppend(&text, "left out          ", older, " files of an earlier start\n");
  return text;
}

}  // namespace graft::comm
