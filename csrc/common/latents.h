// x0 = c_skip * x_t + c_out * F of one element, and what a whole row of it needs.
#pragma once

#include <math.h>

#include "host_device.h"

namespace contrastive_i2v {

// x0 is kept as `x0 / unscale`, rounded to the latents' dtype. The power of two is exact, and it bounds the
// kept value by the larger of |x_t| and |F|: float16 cannot overflow, at any timestep.
struct StoredCoefficients {
  float skip;
  float out;
  float unscale;  // 1 for the cosine, which does not see a row's scale
};

// `normalize`: the coefficients over the larger of the two, so that abar -> 0 cannot overflow |x0|^2.
CI2V_HOST_DEVICE StoredCoefficients stored_coefficients(float skip, float out, bool normalize) {
  if (normalize) {
    const float gain = fmaxf(fabsf(skip), fabsf(out));
    if (gain != 0) {
      skip /= gain;
      out /= gain;
    }
  }
  const float bound = fabsf(skip) + fabsf(out);
  int exponent = 0;
  if (bound > 0 && bound < INFINITY) frexpf(bound, &exponent);  // bound < 2^exponent
  exponent = exponent < -100 ? -100 : exponent > 126 ? 126 : exponent;
  return {ldexpf(skip, -exponent), ldexpf(out, -exponent), normalize ? 1.0f : ldexpf(1.0f, exponent)};
}

CI2V_HOST_DEVICE float reconstruct(const StoredCoefficients& c, float noisy, float prediction) {
  return c.skip * noisy + c.out * prediction;
}

// 1/|row| from its squared norm; 0 for a zero row, which then has cosine 0 and no gradient. NaN stays NaN.
CI2V_HOST_DEVICE float inverse_norm(float squared) { return squared == 0 ? 0.0f : 1 / sqrtf(squared); }

// An infinite temperature would be a flat softmax, silently; on a GPU nobody can raise.
CI2V_HOST_DEVICE double checked_temperature(double tau) {
  return tau > 0 && tau < static_cast<double>(INFINITY) ? tau : static_cast<double>(NAN);
}

// Factors of a whole row are rounded to float once: an error in them does not average out over D.
CI2V_HOST_DEVICE float mse_scale(float weight, int queries, int elements) {
  return static_cast<float>(2.0 * weight / (static_cast<double>(elements) * queries));
}

}  // namespace contrastive_i2v
