// Products of 16 x 16 blocks by a warp: tensor cores for 16-bit elements, fused multiply-adds with the same
// layout of the sums for float, whose logits need all 24 bits.
//
// Lane 4g + t holds of a 16 x 8 sum: [0], [1] row g, columns 2t and 2t + 1; [2], [3] the same of row g + 8.
// Include chip.cuh, or what stands in for it, first.
#pragma once

namespace contrastive_i2v::cuda {

template <typename T>
struct Block {
  static constexpr int kDepth = 16;  // of the inner dimension, a step
  struct A {
    unsigned r[4];
  };
  struct B {
    unsigned r[4];
  };

  // 16 rows of the left operand, each from `p` on.
  static __device__ __forceinline__ void load_a(A& a, const T* p, int stride, int lane) {
    load_matrices(a.r, p + (lane % 16) * stride + (lane / 16) * 8);
  }

  // 16 columns of the right operand, each a row in memory.
  static __device__ __forceinline__ void load_b(B& b, const T* p, int stride, int lane) {
    load_matrices(b.r, p + ((lane / 16) * 8 + lane % 8) * stride + ((lane / 8) % 2) * 8);
  }

  // 16 columns of the right operand, side by side in memory.
  static __device__ __forceinline__ void load_b_transposed(B& b, const T* p, int stride, int lane) {
    load_matrices_transposed(b.r, p + (lane % 16) * stride + (lane / 16) * 8);
  }

  // Coefficients [16 queries from `query`] x [16 candidates from `candidate`], as `Plan::coefficient_index`
  // lays them.
  static __device__ __forceinline__ void load_coefficients(A& a, const T* coefficients, int candidates,
                                                           int query, int candidate, int lane) {
    const size_t tile = static_cast<size_t>(query / 16) * (candidates / 16) + candidate / 16;
    const uint4 v = load_fresh(reinterpret_cast<const uint4*>(coefficients + tile * 256) + lane);
    a.r[0] = v.x;
    a.r[1] = v.y;
    a.r[2] = v.z;
    a.r[3] = v.w;
  }

  static __device__ __forceinline__ void multiply(float (&c)[2][4], const A& a, const B& b) {
    multiply_16x8x16(c[0], a.r, b.r[0], b.r[1], T());
    multiply_16x8x16(c[1], a.r, b.r[2], b.r[3], T());
  }
};

template <>
struct Block<float> {
  static constexpr int kDepth = 4;
  struct A {
    float4 r[2];  // rows g, g + 8
  };
  struct B {
    float4 r[4];  // columns 2t, 2t + 1, and those 8 further on
  };

  static __device__ __forceinline__ void load_a(A& a, const float* p, int stride, int lane) {
    const float* row = p + (lane / 4) * stride;
    a.r[0] = *reinterpret_cast<const float4*>(row);
    a.r[1] = *reinterpret_cast<const float4*>(row + 8 * stride);
  }

  static __device__ __forceinline__ void load_b(B& b, const float* p, int stride, int lane) {
    const float* row = p + 2 * (lane % 4) * stride;
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      b.r[n] = *reinterpret_cast<const float4*>(row + ((n / 2) * 8 + n % 2) * stride);
    }
  }

  static __device__ __forceinline__ void load_b_transposed(B& b, const float* p, int stride, int lane) {
    const float* column = p + 2 * (lane % 4);
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      float2 v[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) v[k] = *reinterpret_cast<const float2*>(column + k * stride + n * 8);
      b.r[2 * n] = make_float4(v[0].x, v[1].x, v[2].x, v[3].x);
      b.r[2 * n + 1] = make_float4(v[0].y, v[1].y, v[2].y, v[3].y);
    }
  }

  static __device__ __forceinline__ void load_coefficients(A& a, const float* coefficients, int candidates,
                                                           int query, int candidate, int lane) {
    const float* row = coefficients + static_cast<size_t>(query + lane / 4) * candidates + candidate;
    a.r[0] = load_fresh(reinterpret_cast<const float4*>(row));
    a.r[1] = load_fresh(reinterpret_cast<const float4*>(row + 8 * static_cast<size_t>(candidates)));
  }

  static __device__ __forceinline__ void multiply(float (&c)[2][4], const A& a, const B& b) {
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float4 &left = a.r[e / 2], &right = b.r[2 * n + e % 2];
        c[n][e] = fmaf(left.x, right.x, c[n][e]);
        c[n][e] = fmaf(left.y, right.y, c[n][e]);
        c[n][e] = fmaf(left.z, right.z, c[n][e]);
        c[n][e] = fmaf(left.w, right.w, c[n][e]);
      }
    }
  }
};

}  // namespace contrastive_i2v::cuda
