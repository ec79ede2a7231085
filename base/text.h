// Text that goes into messages and files: values from untrusted files made printable, "did you
// mean", numbers that return exactly. Everyone uses this. It does not localise and does not know
// about recipes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace graft {

// `value` as one harmless piece of a log line: control characters and invalid UTF-8 become '?', at
// most `max_bytes` bytes, cut at a character with "..." at the end.
std::string Printable(const std::string& value, std::size_t max_bytes = 200);

// Valid UTF-8 without NUL.
bool IsUtf8Text(const std::string& text);

// The candidate that `name` most likely means (edit distance at most a third of its length, rounded up), ""
// when none is near.
std::string NearestName(const std::string& name, const std::vector<std::string>& candidates);
// "; did you mean `x`?" or "".
std::string DidYouMean(const std::string& name, const std::vector<std::string>& candidates);
// "a, b, c".
std::string JoinNames(const std::vector<std::string>& names);

// The shortest decimal text that reads back as the same double: "0.001", "1e-04", "8.0" (always
// marked as a real number).
std::string FormatReal(double value);
// C99 "%a", which returns exactly; "nan" and "inf" as printf writes them.
std::string HexFloat(double value);
// Reads the whole text as a number (decimal or C99 hex). False on anything else, on overflow too.
// Independent of the locale.
bool ParseReal(const std::string& text, double* value);
// Reads the whole text as a decimal integer in int64. "0x10", "1e3", " 1" are refused.
bool ParseInt(const std::string& text, int64_t* value);
// 16 lower-case hex digits, and back.
std::string Hex64(uint64_t value);
bool ParseHex64(const std::string& text, uint64_t* value);
// "512 B", "1.5 KiB", "256.6 MiB".
std::string FormatBytes(int64_t bytes);

}  // namespace graft
