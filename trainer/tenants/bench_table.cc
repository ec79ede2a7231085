#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "trainer/tenants/bench.h"

namespace graft::trainer {
namespace {

double Number(const nlohmann::ordered_json& result, const char* key, const char* part) {
  return result.at(key).at(part).get<double>();
}

// Whether the steps were CUDA graphs: asked for and done, asked for but not possible, not asked
// for.
const char* Graphs(const nlohmann::ordered_json& result) {
  if (!result.at("cuda_graphs").get<bool>()) return "-";
  return result.at("replayed_steps").get<int64_t>() > 0 ? "yes" : "no";
}

std::string Line(const nlohmann::ordered_json& result) {
  constexpr double kMilli = 1e3, kMega = 1e6;
  const std::string merged =
      result.contains("tpot_over_merged")
          ? absl::StrFormat("%7.2f", result.at("tpot_over_merged").get<double>())
          : "";
  return absl::StrFormat("%-20s %-6s %9.1f %9.1f %8.2f %8.2f %8.2f %8.1f %7.2f %7s %9.1f\n",
                         result.at("variant").get<std::string>(), Graphs(result),
                         kMilli * result.at("prompt_seconds").get<double>(),
                         kMilli * Number(result, "ttft_seconds", "median"),
                         kMilli * Number(result, "tpot_seconds", "median"),
                         kMilli * Number(result, "tpot_seconds", "p90"),
                         kMilli * Number(result, "tpot_seconds", "p99"),
                         result.at("decode_tokens_per_second").get<double>(),
                         result.at("tpot_over_bare").get<double>(), merged,
                         result.at("peak_memory_bytes").get<double>() / kMega);
}

}  // namespace

std::string TenantTableText(const nlohmann::ordered_json& results) {
  std::string text;
  for (const auto& cell : results.at("cells")) {
    absl::StrAppend(&text, text.empty() ? "" : "\n", "batch ", cell.at("batch").get<int64_t>(),
                    ", ", cell.at("mix").get<std::string>(), ": ",
                    cell.at("tenants").get<int64_t>(), " tenants, prompt ",
                    cell.at("prompt").get<int64_t>(), ", ", cell.at("new_tokens").get<int64_t>(),
                    " new tokens\n",
                    absl::StrFormat("%-20s %-6s %9s %9s %8s %8s %8s %8s %7s %7s %9s\n", "",
                                    "graphs", "prompt ms", "ttft ms", "tpot ms", "p90", "p99",
                                    "tok/s", "/ bare", "/merged", "peak MB"));
    for (const auto& result : cell.at("results")) text += Line(result);
  }
  return text;
}

}  // namespace graft::trainer
