// Arithmetic that a CUDA kernel and a CPU test share compiles for both.
#pragma once

#if defined(__CUDACC__)
#define CI2V_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define CI2V_HOST_DEVICE inline
#endif
