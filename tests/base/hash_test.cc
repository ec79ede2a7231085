#include "base/hash.h"

#include <algorithm>
#include <array>
#include <vector>

#include "base/philox.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_folder.h"

namespace graft {
namespace {

using testing::FailsWith;

// FIPS 180-2, appendix B.
TEST(Sha256, MatchesThePublishedVectors) {
  EXPECT_EQ(Sha256Hex(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(Sha256Hex("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  Sha256 hash;
  for (int i = 0; i < 1000; ++i) hash.Update(std::string(1000, 'a'));
  EXPECT_EQ(hash.HexDigest(), "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST(Sha256, OfAFileIsThatOfItsBytes) {
  const testing::TempFolder folder;
  const std::string contents(300'000, 'q');
  EXPECT_EQ(*Sha256File(folder.Write("a.bin", contents)), Sha256Hex(contents));
  EXPECT_THAT(Sha256File(folder.Path("b.bin")), FailsWith(ErrorKind::kInput, "b.bin"));
}

// Values of an independent implementation (Python integers).
TEST(Hash64, MatchesTheFormula) {
  EXPECT_EQ(Hash64("", 0), 0xE220A8397B1DCDAFu);
  EXPECT_EQ(Hash64("abcde", 5), 0x13D0DE56D24C1BB9u);
}

// Vectors of words and what is left of them, from any address.
TEST(Hash64, IsTheFormulaForEverySizeAndPart) {
  std::vector<unsigned char> bytes(300);
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<unsigned char>(37 * i + 5);
  for (std::size_t size = 0; size + 3 < bytes.size(); ++size) {
    const unsigned char* const data = bytes.data() + size % 4;
    for (const uint64_t first : {uint64_t{0}, uint64_t{1} << 33}) {
      uint64_t sum = 0;
      for (std::size_t at = 0; at < size; at += 4) {
        uint32_t word = 0;
        for (std::size_t i = at; i < std::min(size, at + 4); ++i)
          word |= uint32_t{data[i]} << (8 * (i - at));
        sum += SplitMix64(word ^ ((first + at / 4) * 0x9E3779B97F4A7C15u));
      }
      ASSERT_EQ(Hash64Part(data, size, first), sum) << size;
    }
    const std::size_t half = size / 8 * 4;
    EXPECT_EQ(Hash64(data, size), Hash64Part(data, half, 0) +
                                      Hash64Part(data + half, size - half, half / 4) +
                                      Hash64Length(size));
  }
}

TEST(Hash64, ChangesWithEveryBitWordOrderAndLength) {
  std::vector<unsigned char> bytes(64);
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<unsigned char>(7 * i);
  const uint64_t original = Hash64(bytes.data(), bytes.size());
  for (std::size_t bit = 0; bit < 8 * bytes.size(); ++bit) {
    bytes[bit / 8] ^= static_cast<unsigned char>(1u << (bit % 8));
    EXPECT_NE(Hash64(bytes.data(), bytes.size()), original) << "bit " << bit;
    bytes[bit / 8] ^= static_cast<unsigned char>(1u << (bit % 8));
  }
  std::swap(bytes[0], bytes[4]);
  EXPECT_NE(Hash64(bytes.data(), bytes.size()), original);
  const std::array<char, 4> zeros = {};
  EXPECT_NE(Hash64(zeros.data(), 3), Hash64(zeros.data(), 4));
}

}  // namespace
}  // namespace graft
