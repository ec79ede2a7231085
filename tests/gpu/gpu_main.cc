// Runs the GPU tests on the first GPU; without one it fails.
#include <cstdio>
#include <string>
#include <utility>

#include <gtest/gtest.h>

#include "base/logging.h"
#include "comm/local_communicator.h"
#include "trainer/device.h"

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  graft::InitLogging("gpu_test");
  const auto alone = std::move(graft::comm::MakeLocalCommunicators(1)[0]);
  const auto device = graft::trainer::ChooseDevice("cuda", *alone);
  if (!device.ok()) {
    std::fprintf(stderr, "%s\n", std::string(device.status().message()).c_str());
    return 1;
  }
  return RUN_ALL_TESTS();
}
