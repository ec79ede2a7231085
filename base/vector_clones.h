// GRAFT_CLONES in front of a function: one body, three instruction sets; the loader picks the best
// that the processor has. For plain loops that the compiler vectorises. Reductions name their lanes
// with `omp simd`, so that they vectorise without -ffast-math and their order is fixed for an
// instruction set.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_THREAD__)
#define GRAFT_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define GRAFT_CLONES
#endif
