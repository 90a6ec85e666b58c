// Runs csrc/cuda/kernel.cuh on the CPU: the scheduler of emulated_chip.h's fibers and one entry point for
// ctypes.

#include <setjmp.h>
#include <ucontext.h>

#include <memory>
#include <random>

// clang-format off
#include "emulated_chip.h"
#include "../../csrc/cuda/kernel.cuh"
// clang-format on

namespace emulated {

Grid grid;
Thread* current = nullptr;

namespace {

constexpr size_t kStack = 64 << 10;

struct Fiber : Thread {
  bool started = false;
  jmp_buf here;
  ucontext_t first;
};

jmp_buf scheduler;
ucontext_t scheduler_context;
std::function<void()> body;

void enter() {
  body();
  current->done = true;
  _longjmp(scheduler, 1);
}

// _setjmp and _longjmp switch without the system call that swapcontext makes.
void run_until_it_waits(Fiber& fiber, char* stack) {
  current = &fiber;
  if (_setjmp(scheduler) != 0) return;
  if (fiber.started) _longjmp(fiber.here, 1);
  fiber.started = true;
  getcontext(&fiber.first);
  fiber.first.uc_stack.ss_sp = stack;
  fiber.first.uc_stack.ss_size = kStack;
  fiber.first.uc_link = &scheduler_context;
  makecontext(&fiber.first, enter, 0);
  setcontext(&fiber.first);
}

// Runs `body` as every thread of the grid. Warps, and the lanes in them, take turns in an order that `seed`
// picks.
bool run_grid(int blocks, int cluster, int threads, unsigned seed, const std::function<void()>& kernel) {
  body = kernel;
  const int warps = blocks * threads / 32;
  std::vector<Warp> warp(warps);
  std::vector<Fiber> fibers(static_cast<size_t>(warps) * 32);
  const std::unique_ptr<char[]> stacks(new char[fibers.size() * kStack]);
  for (size_t n = 0; n < fibers.size(); ++n) {
    fibers[n].index = static_cast<int>(n) % threads;
    fibers[n].block = static_cast<int>(n) / threads;
    fibers[n].warp = &warp[n / 32];
  }
  for (Warp& one : warp) one.meeting.expected = 32;
  grid.blocks.assign(blocks, {threads});
  grid.clusters.assign(blocks / cluster, {threads * cluster});
  grid.all = {threads * blocks};

  std::vector<int> order(warps), lanes(32);
  for (int n = 0; n < warps; ++n) order[n] = n;
  for (int n = 0; n < 32; ++n) lanes[n] = n;
  std::mt19937 random(seed);
  for (bool any = true; any;) {
    any = false;
    std::shuffle(order.begin(), order.end(), random);
    std::shuffle(lanes.begin(), lanes.end(), random);
    for (const int w : order) {
      for (bool again = true; again;) {
        again = false;
        for (const int lane : lanes) {
          const size_t n = static_cast<size_t>(w) * 32 + lane;
          if (!fibers[n].can_run()) continue;
          run_until_it_waits(fibers[n], stacks.get() + n * kStack);
          again = any = true;
        }
      }
    }
  }
  return std::all_of(fibers.begin(), fibers.end(), [](const Fiber& fiber) { return fiber.done; });
}

}  // namespace

void switch_to_scheduler() {
  Fiber& fiber = *static_cast<Fiber*>(current);
  if (_setjmp(fiber.here) == 0) _longjmp(scheduler, 1);
}

}  // namespace emulated

namespace {

using namespace contrastive_i2v;

constexpr size_t kGuard = 256;
constexpr char kMark = 0x5a;

// Memory full of NaN with marks around it.
struct Guarded {
  explicit Guarded(size_t size) : bytes(size), all(size + 3 * kGuard, kMark) {
    data = all.data() + kGuard;
    data += (kGuard - reinterpret_cast<uintptr_t>(data) % kGuard) % kGuard;
    memset(data, 0xff, bytes);
  }
  bool intact() const {
    const auto is_mark = [](char c) { return c == kMark; };
    return std::all_of(all.data(), static_cast<const char*>(data), is_mark) &&
           std::all_of(static_cast<const char*>(data) + bytes, all.data() + all.size(), is_mark);
  }

  size_t bytes;
  std::vector<char> all;
  char* data;
};

}  // namespace

extern "C" {

enum { kDone, kDoesNotFit, kDeadlock, kOutOfBounds };

struct Call {
  int element_size, is_half;
  int64_t queries, elements;
  int banks;
  const int64_t* counts;
  const void *prediction, *noisy, *target;
  const float *c_skip, *c_out, *mse_weights, *contrastive_weights;
  const int64_t* query_groups;
  const void** bank_rows;
  const int64_t** positives;
  const int64_t** bank_groups;
  const double* bank_weights;
  const float* temperature_tensor;
  double temperature;
  int normalize;
  int shared_bytes;
  const int* ctas;
  unsigned seed;
  void* gradient;
  float *loss, *mse, *contrastive;
  int* chosen;  // row_blocks, slices, slice_width, cluster, one_barrier, shared bytes, unit_pairs, aligned
};

int64_t plan_shared_bytes(int64_t queries, int64_t candidates, int64_t elements, int banks, int element_size,
                          int shared_bytes, const int* ctas, int* chosen) {
  small::Limits limits;
  limits.shared_bytes = shared_bytes;
  std::copy(ctas, ctas + 4, limits.ctas);
  const small::Plan plan = small::make_plan(queries, candidates, elements, banks, element_size, limits);
  if (!plan.fits()) return -1;
  const int values[] = {plan.row_blocks,  plan.slices,       plan.slice_width, plan.cluster,
                        plan.one_barrier, plan.shared.bytes, plan.unit_pairs,  plan.block_rows};
  std::copy(std::begin(values), std::end(values), chosen);
  return static_cast<int64_t>(plan.workspace.bytes);
}

int run_kernel(const Call* call) {
  cuda::Problem problem;
  problem.prediction = call->prediction;
  problem.noisy = call->noisy;
  problem.target = call->target;
  problem.c_skip = call->c_skip;
  problem.c_out = call->c_out;
  problem.mse_weights = call->mse_weights;
  problem.contrastive_weights = call->contrastive_weights;
  problem.query_groups = call->query_groups;
  problem.temperature_tensor = call->temperature_tensor;
  problem.temperature = call->temperature;
  problem.normalize = call->normalize != 0;
  for (int k = 0; k < call->banks; ++k) {
    cuda::Bank& bank = problem.banks[k];
    bank.rows = call->bank_rows[k];
    bank.positives = call->positives == nullptr ? nullptr : call->positives[k];
    bank.groups = call->bank_groups == nullptr ? nullptr : call->bank_groups[k];
    bank.weight = call->bank_weights[k];
    bank.count = static_cast<int>(call->counts[k]);
  }
  small::Limits limits;
  limits.shared_bytes = call->shared_bytes;
  std::copy(call->ctas, call->ctas + 4, limits.ctas);
  const small::Plan plan = small::make_plan(call->queries, cuda::place_banks(problem, call->banks),
                                            call->elements, call->banks, call->element_size, limits);
  if (!plan.fits()) return kDoesNotFit;
  problem.aligned = cuda::rows_are_aligned(problem, call->banks, call->elements, call->element_size);
  const int values[] = {plan.row_blocks,  plan.slices,       plan.slice_width, plan.cluster,
                        plan.one_barrier, plan.shared.bytes, plan.unit_pairs,  problem.aligned};
  std::copy(std::begin(values), std::end(values), call->chosen);
  problem.gradient = call->gradient;
  problem.loss = call->loss;
  problem.mse = call->mse;
  problem.contrastive = call->contrastive;
  problem.plan = plan;

  Guarded workspace(plan.workspace.bytes);
  problem.workspace = workspace.data;
  std::vector<std::unique_ptr<Guarded>> shared;
  emulated::grid.shared.clear();
  emulated::grid.shared_bytes = plan.shared.bytes;
  for (int n = 0; n < plan.ctas(); ++n) {
    shared.push_back(std::make_unique<Guarded>(plan.shared.bytes));
    emulated::grid.shared.push_back(shared.back()->data);
  }
  const auto thread = [&] {
    char* mine = emulated::grid.shared[cuda::block_index()];
    if (call->element_size == 4) {
      cuda::run<float>(problem, mine);
    } else if (call->is_half) {
      cuda::run<cuda::half>(problem, mine);
    } else {
      cuda::run<cuda::bfloat16>(problem, mine);
    }
  };
  if (!emulated::run_grid(plan.ctas(), plan.cluster, small::kThreads, call->seed, thread)) return kDeadlock;
  bool intact = workspace.intact();
  for (const auto& one : shared) intact = intact && one->intact();
  return intact ? kDone : kOutOfBounds;
}

}  // extern "C"
