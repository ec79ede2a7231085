#include "comm/flight_dump.h"

#include <limits>
#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/file.h"
#include "base/json.h"
#include "base/status.h"
#include "base/text.h"

namespace graft::comm {
namespace {

using nlohmann::json;

constexpr char kFormat[] = "graft-flight";
constexpr int64_t kVersion = 1;
constexpr int kMaxRank = 99'999;
constexpr int64_t kMaxBytes = int64_t{1} << 20;
constexpr int64_t kAny = std::numeric_limits<int64_t>::max();
// The order of a row of `operations`.
constexpr const char* kColumns[] = {"sequence",    "communicator", "number",    "op",
                                    "type",        "peer",         "bytes",     "step",
                                    "micro_batch", "enqueued_us",  "waited_us", "finished_us"};

json RowOf(const FlightOperation& op) {
  return json::array({op.sequence, op.group, op.number, op.op, op.type, op.peer, op.bytes, op.step,
                      op.micro_batch, op.enqueued_us, op.waited_us, op.finished_us});
}

absl::StatusOr<FlightOperation> ReadRow(const json& row, const std::string& origin) {
  constexpr std::size_t kCount = std::size(kColumns);
  if (!row.is_array() || row.size() != kCount)
    return InputError(absl::StrCat(origin, ": found ", DescribeJson(row), ", must be an array of ",
                                   kCount, " values"));
  json object = json::object();
  for (std::size_t i = 0; i < kCount; ++i) object[kColumns[i]] = row[i];
  FlightOperation op;
  GRAFT_ASSIGN_OR_RETURN(op.sequence, GetInt(object, "sequence", 1, kAny, origin));
  GRAFT_ASSIGN_OR_RETURN(const int64_t group,
                         GetInt(object, "communicator", -1, FlightRecorder::kGroups - 1, origin));
  op.group = static_cast<int>(group);
  GRAFT_ASSIGN_OR_RETURN(op.number, GetInt(object, "number", 0, kAny, origin));
  GRAFT_ASSIGN_OR_RETURN(op.op, GetString(object, "op", origin));
  GRAFT_ASSIGN_OR_RETURN(op.type, GetString(object, "type", origin));
  GRAFT_ASSIGN_OR_RETURN(op.peer, GetInt(object, "peer", -1, kMaxRank, origin));
  GRAFT_ASSIGN_OR_RETURN(op.bytes, GetInt(object, "bytes", 0, kAny, origin));
  GRAFT_ASSIGN_OR_RETURN(op.step, GetInt(object, "step", -1, kAny, origin));
  GRAFT_ASSIGN_OR_RETURN(op.micro_batch, GetInt(object, "micro_batch", -1, kAny, origin));
  GRAFT_ASSIGN_OR_RETURN(op.enqueued_us, GetInt(object, "enqueued_us", 0, kAny, origin));
  GRAFT_ASSIGN_OR_RETURN(op.waited_us, GetInt(object, "waited_us", 0, kAny, origin));
  GRAFT_ASSIGN_OR_RETURN(op.finished_us, GetInt(object, "finished_us", 0, kAny, origin));
  return op;
}

absl::Status ReadGroups(const json& object, const std::string& origin, FlightDump* dump) {
  GRAFT_ASSIGN_OR_RETURN(const json* groups, GetArray(object, "communicators", origin));
  for (const json& entry : *groups) {
    const std::string where = absl::StrCat(origin, ": communicators");
    if (!entry.is_object())
      return InputError(
          absl::StrCat(where, ": found ", DescribeJson(entry), ", must be an object"));
    FlightGroup group;
    GRAFT_ASSIGN_OR_RETURN(group.name, GetString(entry, "name", where));
    GRAFT_ASSIGN_OR_RETURN(const int64_t size, GetInt(entry, "size", 1, kMaxRank + 1, where));
    GRAFT_ASSIGN_OR_RETURN(const int64_t rank, GetInt(entry, "rank", 0, size - 1, where));
    group.size = static_cast<int>(size);
    group.rank = static_cast<int>(rank);
    dump->groups.push_back(std::move(group));
  }
  return absl::OkStatus();
}

absl::Status ReadRank(const json& object, const std::string& origin, FlightDump* dump) {
  GRAFT_ASSIGN_OR_RETURN(const int64_t size, GetInt(object, "size", 1, kMaxRank + 1, origin));
  GRAFT_ASSIGN_OR_RETURN(const int64_t rank, GetInt(object, "rank", 0, size - 1, origin));
  GRAFT_ASSIGN_OR_RETURN(const int64_t data_rank,
                         GetInt(object, "data_rank", -1, size - 1, origin));
  GRAFT_ASSIGN_OR_RETURN(const int64_t stage, GetInt(object, "stage", -1, size - 1, origin));
  dump->size = static_cast<int>(size);
  dump->rank = static_cast<int>(rank);
  dump->data_rank = static_cast<int>(data_rank);
  dump->stage = static_cast<int>(stage);
  GRAFT_ASSIGN_OR_RETURN(dump->host, GetString(object, "host", origin));
  GRAFT_ASSIGN_OR_RETURN(dump->start, GetString(object, "start", origin));
  GRAFT_ASSIGN_OR_RETURN(dump->written_s, GetInt(object, "written_s", 0, kAny, origin));
  GRAFT_ASSIGN_OR_RETURN(dump->reason, GetString(object, "reason", origin));
  GRAFT_ASSIGN_OR_RETURN(dump->phase, GetString(object, "phase", origin));
  GRAFT_ASSIGN_OR_RETURN(dump->step, GetInt(object, "step", -1, kAny, origin));
  GRAFT_ASSIGN_OR_RETURN(dump->waiting, GetInt(object, "waiting", 0, kAny, origin));
  GRAFT_ASSIGN_OR_RETURN(dump->now_us, GetInt(object, "now_us", 0, kAny, origin));
  return absl::OkStatus();
}

}  // namespace

std::string FlightFileName(int rank) { return absl::StrFormat("rank-%05d.json", rank); }

bool ParseFlightFileName(const std::string& name, int* rank) {
  int number = 0;
  if (name.size() != 15 || !absl::StartsWith(name, "rank-") || !absl::EndsWith(name, ".json") ||
      !absl::SimpleAtoi(name.substr(5, 5), &number) || number < 0 || FlightFileName(number) != name)
    return false;
  if (rank != nullptr) *rank = number;
  return true;
}

void TakeRecorder(const FlightRecorder& recorder, FlightDump* dump) {
  dump->now_us = recorder.Now() / 1000;
  dump->waiting = recorder.waiting();
  dump->groups = recorder.Groups();
  dump->operations.clear();
  for (const FlightEntry& entry : recorder.Snapshot()) {
    dump->operations.push_back({.sequence = entry.sequence,
                                .group = entry.group,
                                .number = entry.number,
                                .op = entry.op,
                                .type = entry.type,
                                .peer = entry.peer,
                                .bytes = entry.bytes,
                                .step = entry.step,
                                .micro_batch = entry.micro_batch,
                                .enqueued_us = entry.enqueued_ns / 1000,
                                .waited_us = entry.waited_ns / 1000,
                                .finished_us = entry.finished_ns / 1000});
  }
}

std::string ToJson(const FlightDump& dump) {
  json object = {{"format", kFormat},   {"version", kVersion},     {"rank", dump.rank},
                 {"size", dump.size},   {"host", dump.host},       {"data_rank", dump.data_rank},
                 {"stage", dump.stage}, {"reason", dump.reason},   {"phase", dump.phase},
                 {"step", dump.step},   {"waiting", dump.waiting}, {"now_us", dump.now_us}};
  object["start"] = dump.start;
  object["written_s"] = dump.written_s;
  object["communicators"] = json::array();
  for (const FlightGroup& group : dump.groups) {
    object["communicators"].push_back(
        {{"name", group.name}, {"rank", group.rank}, {"size", group.size}});
  }
  object["columns"] = kColumns;
  object["operations"] = json::array();
  for (const FlightOperation& op : dump.operations) object["operations"].push_back(RowOf(op));
  return object.dump(-1, ' ', false, json::error_handler_t::replace) + "\n";
}

absl::Status WriteFlightDump(const std::string& folder, const FlightDump& dump) {
  GRAFT_RETURN_IF_ERROR(MakeDirs(folder));
  return AtomicWriteFile(JoinPath(folder, FlightFileName(dump.rank)), ToJson(dump));
}

absl::StatusOr<FlightDump> ReadFlightDump(const std::string& path) {
  const std::string origin = Printable(path, 512);
  GRAFT_ASSIGN_OR_RETURN(const json object,
                         ReadJsonFile(path, {.max_bytes = kMaxBytes, .max_depth = 4}));
  GRAFT_ASSIGN_OR_RETURN(const std::string format, GetString(object, "format", origin));
  if (format != kFormat)
    return InputError(absl::StrCat(origin, ": format: found \"", Printable(format),
                                   "\", must be \"", kFormat, "\""));
  GRAFT_RETURN_IF_ERROR(GetInt(object, "version", kVersion, kVersion, origin).status());
  FlightDump dump;
  GRAFT_RETURN_IF_ERROR(ReadRank(object, origin, &dump));
  GRAFT_RETURN_IF_ERROR(ReadGroups(object, origin, &dump));
  GRAFT_ASSIGN_OR_RETURN(const json* rows, GetArray(object, "operations", origin));
  for (const json& row : *rows) {
    const std::string where = absl::StrCat(origin, ": operations[", dump.operations.size(), "]");
    GRAFT_ASSIGN_OR_RETURN(FlightOperation op, ReadRow(row, where));
    if (op.group >= static_cast<int>(dump.groups.size()))
      return InputError(absl::StrCat(where, ": communicator: found ", op.group, ", the file has ",
                                     dump.groups.size()));
    dump.operations.push_back(std::move(op));
  }
  return dump;
}

}  // namespace graft::comm
