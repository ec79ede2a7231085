// Hashes: SHA-256 for files, the order-free 64-bit hash of reliability.md for tensors in memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "base/file.h"

namespace graft {

// SHA-256 of bytes that come in pieces.
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  void Update(const void* data, std::size_t size);
  void Update(const std::string& text) { Update(text.data(), text.size()); }
  // 64 lower-case hex digits. Call once.
  std::string HexDigest();

 private:
  struct Context;
  std::unique_ptr<Context> context_;
};

std::string Sha256Hex(const void* data, std::size_t size);
std::string Sha256Hex(const std::string& text);
absl::StatusOr<std::string> Sha256File(const std::string& path, const ReadOptions& options = {});

// Sum over i of splitmix64(w_i xor i * 0x9E3779B97F4A7C15) plus splitmix64(size), mod 2^64; w_i =
// i-th little-endian 4-byte word, the tail padded with zeros. Any change inside one word changes
// it, and parts may be summed in any order.
uint64_t Hash64(const void* data, std::size_t size);
// The summands of words only, of a part that begins at word `first_word` of a larger whole:
// Hash64(whole) = sum of its parts (all but the last of whole words) + Hash64Length(size of whole).
uint64_t Hash64Part(const void* data, std::size_t size, uint64_t first_word);
uint64_t Hash64Length(std::size_t size);

}  // namespace graft
