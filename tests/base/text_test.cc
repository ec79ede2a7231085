#include "base/text.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace graft {
namespace {

TEST(Printable, StripsControlCharactersAndInvalidBytes) {
  EXPECT_EQ(Printable("plain text"), "plain text");
  EXPECT_EQ(Printable(std::string("a\0b\n\x1b[31mc\x7f", 11)), "a?b??[31mc?");
  EXPECT_EQ(Printable("caf\xC3\xA9"), "caf\xC3\xA9");
  EXPECT_EQ(Printable("\xC3("), "?(");
  EXPECT_EQ(Printable("\xC2\x85"), "?");             // C1 control
  EXPECT_EQ(Printable("\xED\xA0\x80"), "???");       // surrogate
  EXPECT_EQ(Printable("\xF4\x90\x80\x80"), "????");  // above U+10FFFF
  EXPECT_EQ(Printable("\xC0\xAF"), "??");            // overlong
}

TEST(Printable, CutsAtTheLimitBetweenCharacters) {
  EXPECT_EQ(Printable(std::string(200, 'x')), std::string(200, 'x'));
  EXPECT_EQ(Printable(std::string(201, 'x')), std::string(197, 'x') + "...");
  EXPECT_EQ(Printable("ab\xC3\xA9\xC3\xA9", 6), "ab\xC3\xA9\xC3\xA9");
  EXPECT_EQ(Printable("ab\xC3\xA9\xC3\xA9x", 6), "ab...");
}

TEST(IsUtf8Text, RefusesNulAndInvalidBytes) {
  EXPECT_TRUE(IsUtf8Text("a\xE2\x82\xAC\n"));
  EXPECT_FALSE(IsUtf8Text(std::string("a\0", 2)));
  EXPECT_FALSE(IsUtf8Text("\xE2\x82"));
  EXPECT_FALSE(IsUtf8Text("\x80"));
}

TEST(NearestName, FindsTyposAndNothingElse) {
  const std::vector<std::string> names = {"learning_rate", "epochs", "steps", "lr"};
  EXPECT_EQ(NearestName("learning_rte", names), "learning_rate");
  EXPECT_EQ(NearestName("step", names), "steps");
  EXPECT_EQ(NearestName("banana", names), "");
  EXPECT_EQ(NearestName("x", names), "");
  EXPECT_EQ(NearestName(std::string(1'000'000, 'e'), names), "");
  EXPECT_EQ(DidYouMean("epoch", names), "; did you mean `epochs`?");
  EXPECT_EQ(DidYouMean("banana", names), "");
}

TEST(FormatReal, IsShortAndReadsBackToTheSameBits) {
  EXPECT_EQ(FormatReal(1e-4), "1e-04");
  EXPECT_EQ(FormatReal(1e-3), "0.001");
  EXPECT_EQ(FormatReal(8), "8.0");
  EXPECT_EQ(FormatReal(0.1), "0.1");
  for (const double value : {0.1, 1e-8, 1.0 / 3, 1e22, 1e300, 5e-324, -0.0}) {
    double back = 1;
    ASSERT_TRUE(ParseReal(FormatReal(value), &back)) << value;
    EXPECT_EQ(HexFloat(back), HexFloat(value));
  }
}

TEST(HexFloat, ReturnsExactly) {
  EXPECT_EQ(HexFloat(1.0), "0x1p+0");
  EXPECT_EQ(HexFloat(-0.1), "-0x1.999999999999ap-4");
  for (const double value : {0.1, -2.5e-310, 1.7976931348623157e308, 0.0}) {
    double back = 1;
    ASSERT_TRUE(ParseReal(HexFloat(value), &back)) << value;
    EXPECT_EQ(back, value);
  }
}

TEST(ParseReal, RefusesWhatIsNotWhollyANumber) {
  double value = 0;
  EXPECT_TRUE(ParseReal("+1.5e3", &value));
  EXPECT_EQ(value, 1500);
  for (const char* text :
       {"", "-", "1e400", "1x", " 1", "1 ", "--1", "+-1", "0x", "1,5", "1_000"}) {
    EXPECT_FALSE(ParseReal(text, &value)) << text;
  }
}

TEST(ParseInt, RefusesWhatIsNotADecimalInteger) {
  int64_t value = 0;
  EXPECT_TRUE(ParseInt("-9223372036854775808", &value));
  EXPECT_EQ(value, std::numeric_limits<int64_t>::min());
  for (const char* text : {"", "9223372036854775808", "0x10", "1e3", " 1", "1.0", "+1"}) {
    EXPECT_FALSE(ParseInt(text, &value)) << text;
  }
}

TEST(Hex64, RoundTrips) {
  EXPECT_EQ(Hex64(0xDEADBEEF), "00000000deadbeef");
  uint64_t value = 0;
  EXPECT_TRUE(ParseHex64("ffffffffffffffff", &value));
  EXPECT_EQ(value, UINT64_MAX);
  EXPECT_FALSE(ParseHex64("ff", &value));
  EXPECT_FALSE(ParseHex64("00000000DEADBEEF", &value));
}

TEST(FormatBytes, PicksTheUnit) {
  EXPECT_EQ(FormatBytes(0), "0 B");
  EXPECT_EQ(FormatBytes(1023), "1023 B");
  EXPECT_EQ(FormatBytes(1536), "1.5 KiB");
  EXPECT_EQ(FormatBytes(int64_t{5} << 30), "5.0 GiB");
}

}  // namespace
}  // namespace graft
