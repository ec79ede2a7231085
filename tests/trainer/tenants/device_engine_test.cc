// The engine as it runs on devices, without one: the cache with fixed room, tables of edits and
// steps from DecodingInputs, on LibTorch's operators and host tensors, against the engine on the
// host. tests/gpu has the same on a GPU, with its kernels and graphs.
#include <gtest/gtest.h>

#include "models/device.h"
#include "tests/trainer/tenants/tenant_server.h"

namespace graft::trainer {
namespace {

class DeviceEngineTest : public ::testing::TestWithParam<const char*> {};

TEST_P(DeviceEngineTest, NoScheduleChangesATokenOfTheHosts) {
  Server host(GetParam());
  host.AddAll();
  const std::vector<TenantRequest> requests = MakeRequests(host, 3);
  const std::vector<std::vector<int64_t>> alone = AnswersAlone(&host, requests);
  const models::DeviceKernelsOnHost scope;
  Server device(GetParam());
  device.AddAll();
  EXPECT_EQ(AnswersAlone(&device, requests), alone);
  for (uint32_t seed = 0; seed < 40 && !HasFailure(); ++seed)
    RunSchedule(&device, requests, alone, seed);
}

TEST_P(DeviceEngineTest, TheLoopAnswersAsTheTables) {
  const models::DeviceKernelsOnHost scope;
  Server server(GetParam());
  server.AddAll();
  const std::vector<TenantRequest> requests = MakeRequests(server, 2);
  EXPECT_EQ(AnswersTogether(&server, requests, TenantKernel::kGrouped),
            AnswersTogether(&server, requests, TenantKernel::kLoop));
}

INSTANTIATE_TEST_SUITE_P(Shapes, DeviceEngineTest, ::testing::Values("llama-tiny", "gpt2-tiny"),
                         [](const auto& param) { return param.index == 0 ? "Llama" : "Gpt2"; });

}  // namespace
}  // namespace graft::trainer
