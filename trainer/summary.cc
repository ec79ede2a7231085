#include "trainer/summary.h"

#include <algorithm>
#include <map>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

namespace graft::trainer {
namespace {

std::string RowOf(const adapters::Method& method, const std::vector<models::SiteSpec>& sites) {
  std::set<int> layers;
  for (const models::SiteSpec& site : sites) layers.insert(site.id.layer);
  const models::SiteSpec& first = sites.front();
  return absl::StrFormat("\n  %-10s %5d  %-12s %7s %7s %14s", models::RoleName(first.id.role),
                         sites.size(), RangesText({layers.begin(), layers.end()}),
                         Grouped(first.in_features), Grouped(first.out_features),
                         Grouped(method.CountParameters(sites)));
}

}  // namespace

std::string Grouped(int64_t number) {
  std::string grouped;
  const std::string digits = absl::StrCat(number);
  for (size_t i = 0; i < digits.size(); ++i) {
    if (i > 0 && (digits.size() - i) % 3 == 0) grouped += ',';
    grouped += digits[i];
  }
  return grouped;
}

std::string RangesText(const std::vector<int>& numbers) {
  std::vector<std::string> ranges;
  for (size_t begin = 0; begin < numbers.size();) {
    size_t end = begin + 1;
    while (end < numbers.size() && numbers[end] == numbers[end - 1] + 1) ++end;
    ranges.push_back(end - begin == 1 ? absl::StrCat(numbers[begin])
                                      : absl::StrCat(numbers[begin], "-", numbers[end - 1]));
    begin = end;
  }
  return absl::StrJoin(ranges, ", ");
}

std::string SiteMatchTable(const adapters::Method& method,
                           const std::vector<models::SiteSpec>& matched) {
  if (method.trains_backbone()) {
    return absl::StrFormat("method %s: all %d tensors of the model", method.name(),
                           method.Parameters(matched).size());
  }
  std::map<models::Role, std::vector<models::SiteSpec>> by_role;
  for (const models::SiteSpec& site : matched) by_role[site.id.role].push_back(site);
  std::string table =
      absl::StrFormat("adapter %s: %d sites\n  %-10s %5s  %-12s %7s %7s %14s", method.name(),
                      matched.size(), "role", "sites", "layers", "in", "out", "parameters");
  for (const auto& [role, sites] : by_role) absl::StrAppend(&table, RowOf(method, sites));
  return table;
}

std::string ParameterLine(int64_t trainable, int64_t total) {
  const double percent =
      total > 0 ? 100.0 * static_cast<double>(trainable) / static_cast<double>(total) : 0.0;
  return absl::StrFormat("trainable %s of %s parameters (%.3f %%)", Grouped(trainable),
                         Grouped(total), percent);
}

}  // namespace graft::trainer
