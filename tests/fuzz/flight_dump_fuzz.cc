#include "comm/flight_dump.h"

#include "comm/flight_report.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t* data, std::size_t size) {
  using namespace graft;  // NOLINT
  static const fuzz::Folder folder;
  const std::string name = comm::FlightFileName(0);
  folder.Write(name, fuzz::Text(data, size));
  const auto dump = comm::ReadFlightDump(folder.Path(name));
  fuzz::RequireClean(dump.status(), ErrorKind::kInput, name);
  const auto report = comm::DescribeFlight(folder.path());
  fuzz::RequireClean(report.status(), ErrorKind::kInput, folder.path());
  if (!dump.ok()) return 0;
  const std::string written = comm::ToJson(*dump);
  folder.Write(name, written);
  const auto again = comm::ReadFlightDump(folder.Path(name));
  fuzz::Require(again.ok() && comm::ToJson(*again) == written,
                "what was written reads back differently");
  return 0;
}
