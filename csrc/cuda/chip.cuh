// Every instruction and intrinsic that the kernel uses and C++ lacks. The kernel is written against these
// names alone, so a test can give them another body and run the kernel, thread by thread, without a GPU.
#pragma once

#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace contrastive_i2v::cuda {

using bfloat16 = __nv_bfloat16;
using half = __half;

__device__ __forceinline__ float to_float(float v) { return v; }
__device__ __forceinline__ float to_float(bfloat16 v) { return __bfloat162float(v); }
__device__ __forceinline__ float to_float(half v) { return __half2float(v); }

template <typename T>
__device__ __forceinline__ T from_float(float v);
template <>
__device__ __forceinline__ float from_float<float>(float v) {
  return v;
}
template <>
__device__ __forceinline__ bfloat16 from_float<bfloat16>(float v) {
  return __float2bfloat16_rn(v);
}
template <>
__device__ __forceinline__ half from_float<half>(float v) {
  return __float2half_rn(v);
}

__device__ __forceinline__ int thread_index() { return threadIdx.x; }
__device__ __forceinline__ int block_index() { return blockIdx.x; }

__device__ __forceinline__ unsigned shared_address(const void* p) {
  return static_cast<unsigned>(__cvta_generic_to_shared(p));
}

// 16 bytes from device to shared memory; those after the first `bytes` become zeros.
__device__ __forceinline__ void copy_async(void* to, const void* from, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(bytes)
               : "memory");
}

// This thread's copies have landed.
__device__ __forceinline__ void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// A load past L1, which another SM's writes do not update.
template <typename V>
__device__ __forceinline__ V load_fresh(const V* from) {
  return __ldcg(from);
}

template <typename V>
__device__ __forceinline__ V shuffle_xor(V value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}

__device__ __forceinline__ void sync_warp() { __syncwarp(); }

// All threads of the CTA arrive, and what each wrote before, all see after.
__device__ __forceinline__ void sync_threads() { __syncthreads(); }

// The same for all threads of a cluster. Without clusters this is the CTA's own barrier.
__device__ __forceinline__ void sync_cluster(int cluster) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if (cluster > 1) {
    asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
    return;
  }
#endif
  __syncthreads();
}

// The same for the whole grid, which a cooperative launch keeps resident.
__device__ __forceinline__ void sync_grid() { cooperative_groups::this_grid().sync(); }

// The same place in the shared memory of CTA `rank` of the cluster.
template <typename P>
__device__ __forceinline__ const P* in_neighbour(P* mine, int rank, int cluster) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if (cluster > 1) return cooperative_groups::this_cluster().map_shared_rank(mine, rank);
#endif
  return mine;
}

// Four 8 x 8 matrices of 16-bit elements from shared memory: lane l gives row l % 8 of matrix l / 8, and gets
// of each matrix the elements 2 (l % 4) and the next of row l / 4.
__device__ __forceinline__ void load_matrices(unsigned (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// The same of the transposed matrices.
__device__ __forceinline__ void load_matrices_transposed(unsigned (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// c += a b with a [16, 16], b [16, 8], c [16, 8], summed in float.
__device__ __forceinline__ void multiply_16x8x16(float (&c)[4], const unsigned (&a)[4], unsigned b0,
                                                 unsigned b1, bfloat16) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void multiply_16x8x16(float (&c)[4], const unsigned (&a)[4], unsigned b0,
                                                 unsigned b1, half) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace contrastive_i2v::cuda
