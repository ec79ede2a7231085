#include "trainer/chrome_trace.h"

#include <algorithm>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"

namespace graft::trainer {
namespace {

using OrderedJson = nlohmann::ordered_json;

constexpr int kMainRow = 0;

double Micros(int64_t nanos) { return static_cast<double>(nanos) * 1e-3; }

OrderedJson Named(const char* what, int rank, const std::string& name) {
  return {
      {"ph", "M"}, {"name", what}, {"pid", rank}, {"tid", kMainRow}, {"args", {{"name", name}}}};
}

OrderedJson EventOf(const TraceSpan& span, const char* phase, int rank, int64_t at_ns) {
  return {{"ph", phase},         {"name", span.name}, {"cat", span.category},
          {"ts", Micros(at_ns)}, {"pid", rank},       {"tid", kMainRow}};
}

OrderedJson ArgumentsOf(const TraceSpan& span) {
  OrderedJson arguments = OrderedJson::object();
  for (const auto& [name, value] : span.arguments) arguments[name] = value;
  return arguments;
}

}  // namespace

std::string TraceEvents(const RankTrace& rank, int64_t offset_ns) {
  std::string text;
  const auto append = [&text](const OrderedJson& event) {
    absl::StrAppend(&text, text.empty() ? "" : ",\n", event.dump());
  };
  append(Named("process_name", rank.rank, absl::StrCat("rank ", rank.rank, ": ", rank.label)));
  append(Named("thread_name", rank.rank, "main thread"));
  append({{"ph", "M"},
          {"name", "process_sort_index"},
          {"pid", rank.rank},
          {"args", {{"sort_index", rank.rank}}}});
  // An outer span before the inner ones that begin with it.
  std::vector<TraceSpan> main = rank.main;
  std::stable_sort(main.begin(), main.end(), [](const TraceSpan& a, const TraceSpan& b) {
    return std::make_pair(a.begin_ns, -a.end_ns) < std::make_pair(b.begin_ns, -b.end_ns);
  });
  for (const TraceSpan& span : main) {
    OrderedJson event = EventOf(span, "X", rank.rank, span.begin_ns - offset_ns);
    event["dur"] = Micros(span.end_ns - span.begin_ns);
    event["args"] = ArgumentsOf(span);
    append(event);
  }
  for (size_t i = 0; i < rank.transfers.size(); ++i) {
    const TraceSpan& span = rank.transfers[i];
    // Of this process alone: events of a global id stand in no process's rows.
    const OrderedJson id = {{"local", absl::StrCat(i)}};
    OrderedJson begin = EventOf(span, "b", rank.rank, span.begin_ns - offset_ns);
    begin["id2"] = id;
    begin["args"] = ArgumentsOf(span);
    append(begin);
    OrderedJson end = EventOf(span, "e", rank.rank, span.end_ns - offset_ns);
    end["id2"] = id;
    append(end);
  }
  return text;
}

std::string TraceFile(const std::vector<std::string>& events, int64_t clock_error_ns) {
  std::string text =
      absl::StrCat("{\"displayTimeUnit\":\"ms\",\"otherData\":{\"program\":\"graft\",",
                   "\"clock_error_us\":", Micros(clock_error_ns), "},\"traceEvents\":[\n");
  bool first = true;
  for (const std::string& rank : events) {
    if (rank.empty()) continue;
    absl::StrAppend(&text, first ? "" : ",\n", rank);
    first = false;
  }
  return absl::StrCat(text, "\n]}\n");
}

}  // namespace graft::trainer
