#include "base/hash.h"

#include <openssl/evp.h>

#include <cerrno>
#include <cstring>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/io_calls.h"
#include "base/philox.h"
#include "base/status.h"
#include "base/text.h"
#include "base/vector_clones.h"

namespace graft {
namespace {

// splitmix64(word xor index * golden), summed over whole words: here in one piece, for vectors.
GRAFT_CLONES uint64_t HashWords(const unsigned char* bytes, std::size_t words,
                                uint64_t first_word) {
  uint64_t sum = 0;
  for (std::size_t i = 0; i < words; ++i) {
    uint32_t word;
    std::memcpy(&word, bytes + 4 * i, 4);
    uint64_t x = (word ^ ((first_word + i) * 0x9E3779B97F4A7C15u)) + 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    sum += x ^ (x >> 31);
  }
  return sum;
}

}  // namespace

struct Sha256::Context {
  EVP_MD_CTX* evp = EVP_MD_CTX_new();
  ~Context() { EVP_MD_CTX_free(evp); }
};

Sha256::Sha256() : context_(std::make_unique<Context>()) {
  GRAFT_CHECK(EVP_DigestInit_ex(context_->evp, EVP_sha256(), nullptr) == 1, "SHA-256");
}

Sha256::~Sha256() = default;

void Sha256::Update(const void* data, std::size_t size) {
  GRAFT_CHECK(EVP_DigestUpdate(context_->evp, data, size) == 1, "SHA-256");
}

std::string Sha256::HexDigest() {
  static constexpr char kDigits[] = "0123456789abcdef";
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  GRAFT_CHECK(EVP_DigestFinal_ex(context_->evp, digest, &size) == 1, "SHA-256");
  std::string hex;
  for (unsigned int i = 0; i < size; ++i) {
    hex += kDigits[digest[i] >> 4];
    hex += kDigits[digest[i] & 15];
  }
  return hex;
}

std::string Sha256Hex(const void* data, std::size_t size) {
  Sha256 hash;
  hash.Update(data, size);
  return hash.HexDigest();
}

std::string Sha256Hex(const std::string& text) { return Sha256Hex(text.data(), text.size()); }

absl::StatusOr<std::string> Sha256File(const std::string& path, const ReadOptions& options) {
  int64_t size = 0;
  GRAFT_ASSIGN_OR_RETURN(const UniqueFd fd, OpenForReading(path, options, &size));
  Sha256 hash;
  std::vector<char> buffer(std::size_t{1} << 18);
  for (;;) {
    const ssize_t count = Io().Read(fd.get(), buffer.data(), buffer.size());
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) {
      return IoError(
          absl::StrCat(Printable(path, 512), ": reading it failed: ", std::strerror(errno)));
    }
    if (count == 0) return hash.HexDigest();
    hash.Update(buffer.data(), static_cast<std::size_t>(count));
  }
}

uint64_t Hash64Part(const void* data, std::size_t size, uint64_t first_word) {
  const auto* const bytes = static_cast<const unsigned char*>(data);
  const std::size_t words = size / 4, rest = size % 4;
  uint64_t sum = HashWords(bytes, words, first_word);
  if (rest > 0) {
    uint32_t word = 0;
    std::memcpy(&word, bytes + 4 * words, rest);
    sum += SplitMix64(word ^ ((first_word + words) * 0x9E3779B97F4A7C15u));
  }
  return sum;
}

uint64_t Hash64Length(std::size_t size) { return SplitMix64(size); }

uint64_t Hash64(const void* data, std::size_t size) {
  return Hash64Part(data, size, 0) + Hash64Length(size);
}

}  // namespace graft
