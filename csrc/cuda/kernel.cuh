// The small regime in one launch. A CTA holds one slice of D, of a block of queries and of every bank, in
// shared memory from the first phase to the last:
//   1. load the slice, form x0 in place, sum its part of |F - y|^2 and of the norms;
//   2. dot products: each CTA of a cluster takes a share of the candidates and reads its neighbours' slices
//      through distributed shared memory, so the sum over the cluster's slices happens in the accumulator.
//      Operands travel instead of partial sums: at B = N = 256 that is half the bytes;
//   3. after the grid barrier, sum a query's partial dot products over the clusters in order, take its
//   softmax
//      and write its coefficients. Small problems: every cluster does all queries. Else every CTA does a few
//      and a second grid barrier follows, which costs less than reading all partial sums in every cluster;
//   4. coefficients times the bank slice that is still here, plus the gradient of the MSE.
// Every sum has a fixed order and no float is added atomically, so two runs are bitwise equal.
//
// Include chip.cuh, or what stands in for it, first.
#pragma once

#include "cta.cuh"
#include "gradient.cuh"
#include "products.cuh"
#include "rows.cuh"

namespace contrastive_i2v::cuda {

template <typename T>
__device__ __forceinline__ void run(const Problem& problem, char* shared) {
  const Cta<T> cta(problem, shared);
  load(cta);
  wait_for_copies();
  sync_threads();  // this CTA's slices are in shared memory, whoever copied them
  form_x0(cta);
  if (problem.normalize) sum_bank_norms(cta);
  sync_cluster(cta.plan.cluster);  // x0, the slices and the sums: written here, read by all of the cluster
  write_partial_sums(cta);
  write_partial_products(cta);
  sync_grid();  // partials: written by one CTA a split, read by whoever sums their query. Also: nobody
                // reads a neighbour's shared memory after it, so a CTA may exit from here on
  write_rows(cta);
  if (cta.plan.one_barrier) {
    sync_cluster(cta.plan.cluster);  // coefficients and terms: written in this cluster, read in this cluster
  } else {
    sync_grid();  // coefficients and terms: written by the query's CTA, read by all
  }
  if (block_index() == 0) write_losses(cta);
  if (problem.gradient != nullptr) write_gradient(cta);
}

}  // namespace contrastive_i2v::cuda
