// The kernels for GPUs, as far as a machine without one can tell; what they compute: tests/gpu.
#include "models/gpu_kernels.h"

#include <gtest/gtest.h>

#include "models/layers/device_decode_attention.h"
#include "models/layers/device_rows.h"
#include "models/layers/quantized_weight.h"

namespace graft::models {
namespace {

TEST(RowKernelsTest, CompileWithoutAGpu) {
  for (const char* architecture : {"sm_80", "sm_90", "sm_100"}) {
    for (const GpuKernels::Variant variant :
         {GpuKernels::Variant{false, 1}, {false, 4}, {true, 8}}) {
      for (GpuKernels* const kernels :
           {&device::RowKernels(), &QuantizedKernels(), &device::DecodeAttentionKernels()}) {
        const auto code = kernels->Compile(variant, architecture);
        ASSERT_TRUE(code.ok()) << code.status();
        EXPECT_GT(code->size(), 1000u);
      }
    }
  }
}

}  // namespace
}  // namespace graft::models
