// One query's softmax over one bank, in three passes that any number of lanes share: lane `l` of `lanes`
// takes candidates l, l + lanes, ... and the caller merges what the lanes return.
//
// Sums run over the candidates but the positive, relative to their own maximum. So a saturated row keeps its
// small loss (log1p) and its small gradient (1 - p of the positive is the sum of the others), and the largest
// coefficient is 1, whatever the dtype it is rounded to can hold.
#pragma once

#include <math.h>
#include <stdint.h>

#include "host_device.h"

namespace contrastive_i2v {

struct SoftmaxRow {
  float* logits;            // [count]; dot products before `find_maximum`
  const float* bank_scale;  // [count] 1/|z_j|, or null without normalisation
  const int64_t* groups;    // [count], or null
  int64_t query_group;
  int count;
  int positive;
  float scale;  // turns a dot product into a logit, but for bank_scale

  CI2V_HOST_DEVICE bool is_other(int j) const {
    return j != positive && !(groups != nullptr && groups[j] == query_group);
  }
  CI2V_HOST_DEVICE float scale_of(int j) const { return bank_scale != nullptr ? bank_scale[j] : 1.0f; }
};

struct Maximum {
  float others = -INFINITY;
  float poison = 0;  // NaN once any logit is NaN or infinite, whatever the softmax would make of it

  CI2V_HOST_DEVICE void merge(const Maximum& lane) {
    others = fmaxf(others, lane.others);
    poison += lane.poison;
  }
};

CI2V_HOST_DEVICE Maximum find_maximum(const SoftmaxRow& row, int lane, int lanes) {
  Maximum found;
  for (int j = lane; j < row.count; j += lanes) {
    const float logit = row.logits[j] * (row.scale * row.scale_of(j));
    row.logits[j] = logit;
    found.poison += 0 * logit;
    if (row.is_other(j)) found.others = fmaxf(found.others, logit);
  }
  return found;
}

struct Others {
  float rest = 0;     // sum_j e_j with e_j = exp(l_j - maximum)
  float largest = 0;  // max_j e_j / |z_j|

  CI2V_HOST_DEVICE void merge(const Others& lane) {
    rest += lane.rest;
    largest = fmaxf(largest, lane.largest);
  }
};

CI2V_HOST_DEVICE Others sum_others(const SoftmaxRow& row, float maximum, int lane, int lanes) {
  Others sums;
  for (int j = lane; j < row.count; j += lanes) {
    if (!row.is_other(j)) continue;
    const float weight = expf(row.logits[j] - maximum);
    sums.rest += weight;
    sums.largest = fmaxf(sums.largest, weight * row.scale_of(j));
  }
  return sums;
}

// -log p of the positive. Both forms are sums of terms >= 0.
CI2V_HOST_DEVICE float cross_entropy(float positive_logit, float maximum, float rest) {
  const float distance = maximum - positive_logit;
  if (distance <= 0) return log1pf(rest * expf(distance));
  return distance + logf(rest + expf(-distance));
}

// p_j / e_j, the same for every candidate but the positive.
CI2V_HOST_DEVICE float share_of_others(float positive_logit, float maximum, float rest) {
  const float distance = maximum - positive_logit;
  if (distance <= 0) return expf(distance) / (1 + rest * expf(distance));
  return 1 / (rest + expf(-distance));
}

struct Coefficients {
  float rest = 0;      // sum_j e_j / largest, of the rounded e_j
  float distance = 0;  // sum_j e_j (l_j - l_positive) / largest, of the rounded e_j

  CI2V_HOST_DEVICE void merge(const Coefficients& lane) {
    rest += lane.rest;
    distance += lane.distance;
  }
};

// Stores c_j = e_j / (|z_j| largest), 0 at the positive and at excluded candidates. `store(j, c)` returns c
// as it was rounded. The sums are of the rounded values: rounding then only perturbs p, and what a bank's
// rows have in common still cancels exactly in `sum_j c_j z_j - positive_weight z_positive`.
template <typename Store>
CI2V_HOST_DEVICE Coefficients write_coefficients(const SoftmaxRow& row, float maximum, float largest,
                                                 float positive_logit, int lane, int lanes,
                                                 const Store& store) {
  Coefficients sums;
  const float inverse = largest > 0 ? 1 / largest : 1.0f;
  for (int j = lane; j < row.count; j += lanes) {
    if (!row.is_other(j)) {
      store(j, 0.0f);
      continue;
    }
    const float weight = expf(row.logits[j] - maximum) * inverse;
    const float scale = row.scale_of(j);
    const float rounded = store(j, weight * scale);
    const float kept = scale == 0 ? weight : rounded / scale;
    sums.rest += kept;
    sums.distance += kept * (row.logits[j] - positive_logit);
  }
  return sums;
}

// What the gradient needs of one query and one bank:
// dloss/dF_i += factor * (sum_j c_j z_j - positive_weight * z_positive) - projection * x0_i.
struct BankTerm {
  float factor;
  float positive_weight;
  int positive;  // row of the bank
  float projection;
};

struct RowScales {
  float x0;      // 1/|x0|, or 1 without normalisation
  double tau;    // temperature
  double query;  // s_i * c_out_i / B, with c_out as x0 is stored when normalising
};

CI2V_HOST_DEVICE float logit_scale(float unscale, const RowScales& scales) {
  return static_cast<float>(static_cast<double>(unscale) * scales.x0 / scales.tau);
}

CI2V_HOST_DEVICE BankTerm finish_row(const SoftmaxRow& row, const RowScales& scales, double bank_weight,
                                     const Maximum& maximum, const Others& others,
                                     const Coefficients& coefficients) {
  const float positive_logit = row.logits[row.positive];
  const float largest = others.largest > 0 ? others.largest : 1.0f;
  const double share = share_of_others(positive_logit, maximum.others, others.rest);
  const double exact = bank_weight * scales.query / scales.tau * scales.x0 * share * largest;
  const float factor = static_cast<float>(exact) + maximum.poison;
  const float projection = row.bank_scale != nullptr
                               ? static_cast<float>(exact * scales.x0 * scales.tau * coefficients.distance)
                               : 0.0f;
  return {factor, coefficients.rest * row.scale_of(row.positive), row.positive, projection};
}

}  // namespace contrastive_i2v
