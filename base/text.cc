#include "base/text.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

namespace graft {
namespace {

// Bytes of the valid UTF-8 character that starts at `at`, 0 when there is none.
std::size_t Utf8Length(const std::string& text, std::size_t at) {
  const auto byte = [&](std::size_t i) -> unsigned {
    return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u;
  };
  const auto continues = [&](std::size_t i) { return (byte(i) & 0xC0u) == 0x80u; };
  const unsigned first = byte(at);
  if (first < 0x80) return 1;
  if (first >= 0xC2 && first <= 0xDF) return continues(at + 1) ? 2 : 0;
  if (first >= 0xE0 && first <= 0xEF) {
    const unsigned second = byte(at + 1);
    if (!continues(at + 1) || !continues(at + 2)) return 0;
    if ((first == 0xE0 && second < 0xA0) || (first == 0xED && second > 0x9F)) return 0;
    return 3;
  }
  if (first >= 0xF0 && first <= 0xF4) {
    const unsigned second = byte(at + 1);
    if (!continues(at + 1) || !continues(at + 2) || !continues(at + 3)) return 0;
    if ((first == 0xF0 && second < 0x90) || (first == 0xF4 && second > 0x8F)) return 0;
    return 4;
  }
  return 0;
}

bool IsControl(const std::string& text, std::size_t at, std::size_t length) {
  const auto first = static_cast<unsigned char>(text[at]);
  if (length == 1) return first < 0x20 || first == 0x7F;
  return length == 2 && first == 0xC2 && static_cast<unsigned char>(text[at + 1]) < 0xA0;
}

std::size_t EditDistance(const std::string& a, const std::string& b) {
  std::vector<std::size_t> row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t replaced = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, replaced});
    }
  }
  return row[b.size()];
}

}  // namespace

std::string Printable(const std::string& value, std::size_t max_bytes) {
  static constexpr char kCut[] = "...";
  std::string result;
  std::size_t last_fit = 0;  // longest prefix of whole characters that leaves room for kCut
  for (std::size_t at = 0; at < value.size();) {
    const std::size_t length = Utf8Length(value, at);
    if (length == 0 || IsControl(value, at, length)) {
      result += '?';
    } else {
      result.append(value, at, length);
    }
    at += length == 0 ? 1 : length;
    if (result.size() + 3 <= max_bytes) last_fit = result.size();
    if (result.size() > max_bytes) return result.substr(0, last_fit) + kCut;
  }
  return result;
}

bool IsUtf8Text(const std::string& text) {
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t length = Utf8Length(text, at);
    if (length == 0 || text[at] == '\0') return false;
    at += length;
  }
  return true;
}

std::string NearestName(const std::string& name, const std::vector<std::string>& candidates) {
  static constexpr std::size_t kLongestName = 64;
  if (name.size() > kLongestName) return "";
  std::string best;
  std::size_t best_distance = (name.size() + 2) / 3 + 1;
  for (const std::string& candidate : candidates) {
    const std::size_t distance = EditDistance(name, candidate);
    if (distance < best_distance && distance < candidate.size()) {
      best = candidate;
      best_distance = distance;
    }
  }
  return best;
}

std::string DidYouMean(const std::string& name, const std::vector<std::string>& candidates) {
  const std::string nearest = NearestName(name, candidates);
  return nearest.empty() ? "" : absl::StrCat("; did you mean `", nearest, "`?");
}

std::string JoinNames(const std::vector<std::string>& names) { return absl::StrJoin(names, ", "); }

std::string FormatReal(double value) {
  char buffer[64];
  const auto [end, error] = std::to_chars(buffer, buffer + sizeof(buffer), value);
  std::string text(buffer, end);
  const bool plain_integer = text.find_first_not_of("-0123456789") == std::string::npos;
  return plain_integer ? text + ".0" : text;
}

std::string HexFloat(double value) { return absl::StrFormat("%a", value); }

bool ParseReal(const std::string& text, double* value) {
  const bool negative = !text.empty() && text[0] == '-';
  const bool has_sign = negative || (!text.empty() && text[0] == '+');
  const char* begin = text.data() + (has_sign ? 1 : 0);
  const char* const end = text.data() + text.size();
  const bool hex = end - begin > 2 && begin[0] == '0' && (begin[1] == 'x' || begin[1] == 'X');
  if (hex) begin += 2;
  if (begin == end || *begin == '-' || *begin == '+') return false;
  double parsed = 0;
  const auto [stop, error] = std::from_chars(
      begin, end, parsed, hex ? std::chars_format::hex : std::chars_format::general);
  if (error != std::errc() || stop != end) return false;
  *value = negative ? -parsed : parsed;
  return true;
}

bool ParseInt(const std::string& text, int64_t* value) {
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, *value);
  return error == std::errc() && stop == end;
}

std::string Hex64(uint64_t value) { return absl::StrFormat("%016x", value); }

bool ParseHex64(const std::string& text, uint64_t* value) {
  if (text.size() != 16 || text.find_first_not_of("0123456789abcdef") != std::string::npos) {
    return false;
  }
  std::from_chars(text.data(), text.data() + text.size(), *value, 16);
  return true;
}

std::string FormatBytes(int64_t bytes) {
  static constexpr const char* kUnits[] = {"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  if (std::llabs(bytes) < 1024) return absl::StrCat(bytes, " B");
  double amount = static_cast<double>(bytes) / 1024;
  std::size_t unit = 0;
  while (std::fabs(amount) >= 1024 && unit + 1 < std::size(kUnits)) {
    amount /= 1024;
    ++unit;
  }
  return absl::StrFormat("%.1f %s", amount, kUnits[unit]);
}

}  // namespace graft
