// The optimizer's update and the pull towards theta_0 in one read and one write of each parameter, on the CPU.
//
// The order of operations and the places of fma are those of torch's own fused kernels, so that both paths agree.

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <initializer_list>
#include <vector>

namespace {

using at::Tensor;
using at::TensorList;

// Work is shared out in units of so many numbers, so that each thread gets as much, whatever the sizes of the tensors.
constexpr int64_t kUnit = 1024, kGrain = 16;
// How far ahead memory is asked for, in lines of the cache.
constexpr int64_t kAhead = 16;

template <typename T>
inline T multiply_add(T x, T y, T z) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  return std::fma(x, y, z);
#else
  return x * y + z;
#endif
}

// Call work(tensor, begin, end) for all numbers of all tensors, by several threads, in runs as long as can be.
template <typename F>
void each_run(TensorList tensors, const F& work) {
  std::vector<int64_t> starts{0};
  for (const auto& tensor : tensors) starts.push_back(starts.back() + (tensor.numel() + kUnit - 1) / kUnit);
  at::parallel_for(0, starts.back(), kGrain, [&](int64_t first, int64_t last) {
    int64_t t = std::upper_bound(starts.begin(), starts.end(), first) - starts.begin() - 1;
    for (; first < last; ++t) {
      const int64_t end = std::min(last, starts[t + 1]);
      work(t, (first - starts[t]) * kUnit, std::min((end - starts[t]) * kUnit, tensors[t].numel()));
      first = end;
    }
  });
}

// A few lines of the cache after another, while those that come later are asked for: by itself the processor does not
// follow so many streams at the speed of the memory.
template <typename T, size_t n, typename F>
inline void each_block(const std::array<const T*, n>& streams, int64_t begin, int64_t end, const F& work) {
  constexpr int64_t line = 64 / sizeof(T), block = 4 * line;
  for (int64_t first = begin; first < end; first += block) {
#if defined(__GNUC__)
    const int64_t later = first + kAhead * line;
    for (int64_t i = later; i < std::min(later + block, end); i += line) {
      for (const T* stream : streams) __builtin_prefetch(stream + i);
    }
#endif
    work(first, std::min(first + block, end));
  }
}

// scalars: sign, l2, shrink, 1 - beta1, beta2, 1 - beta2, eps, step size, sqrt(1 - beta2^t), a
template <typename T>
inline void adam_block(T* __restrict__ param, const T* __restrict__ grad, T* __restrict__ exp_avg,
                       T* __restrict__ exp_avg_sq, const T* __restrict__ anchor, const T* __restrict__ scalars,
                       int64_t begin, int64_t end) {
  const T sign = scalars[0], l2 = scalars[1], shrink = scalars[2], rest1 = scalars[3], beta2 = scalars[4];
  const T rest2 = scalars[5], eps = scalars[6], size = scalars[7], root = scalars[8], a = scalars[9];
  for (int64_t i = begin; i < end; ++i) {
    const T p = param[i];
    // Without decay nothing of p may get into g: it may be infinite.
    const T g = l2 == 0 ? sign * grad[i] : multiply_add(p, l2, sign * grad[i]);
    const T m = multiply_add(rest1, g - exp_avg[i], exp_avg[i]);
    const T v = multiply_add(rest2 * g, g, beta2 * exp_avg_sq[i]);
    const T updated = p * shrink + (-size * m) / (std::sqrt(v) / root + eps);
    param[i] = multiply_add(a, anchor[i] - updated, updated);
    exp_avg[i] = m;
    exp_avg_sq[i] = v;
  }
}

// scalars: sign, l2, momentum, 1 - dampening, lr, a
template <typename T, bool nesterov>
inline void sgd_block(T* __restrict__ param, const T* __restrict__ grad, T* __restrict__ buffer,
                      const T* __restrict__ anchor, const T* __restrict__ scalars, int64_t begin, int64_t end) {
  const T sign = scalars[0], l2 = scalars[1], momentum = scalars[2], rest = scalars[3], lr = scalars[4], a = scalars[5];
  for (int64_t i = begin; i < end; ++i) {
    const T p = param[i];
    // Without decay nothing of p may get into g: it may be infinite.
    const T g = l2 == 0 ? sign * grad[i] : multiply_add(p, l2, sign * grad[i]);
    const T b = multiply_add(rest, g, momentum * buffer[i]);
    const T updated = multiply_add(-lr, nesterov ? multiply_add(momentum, b, g) : b, p);
    param[i] = multiply_add(a, anchor[i] - updated, updated);
    buffer[i] = b;
  }
}

// What the Python side has seen to; here once more, for beyond it lies other memory.
void check(TensorList params, std::initializer_list<TensorList> others, const Tensor& scalars, int64_t width) {
  TORCH_CHECK(!params.empty(), "olor_mm: no tensors");
  const auto type = params[0].scalar_type();
  TORCH_CHECK(scalars.is_contiguous() && scalars.device().is_cpu() && scalars.scalar_type() == type &&
                  scalars.dim() == 2 && scalars.size(0) == static_cast<int64_t>(params.size()) &&
                  scalars.size(1) == width,
              "olor_mm: scalars must be of shape [", params.size(), ", ", width, "], of the parameters' dtype");
  for (const auto& some : others) {
    TORCH_CHECK(some.size() == params.size(), "olor_mm: ", some.size(), " tensors for ", params.size(), " parameters");
    for (size_t t = 0; t < params.size(); ++t) {
      TORCH_CHECK(some[t].numel() == params[t].numel() && some[t].scalar_type() == type &&
                      params[t].scalar_type() == type && some[t].device().is_cpu() && params[t].device().is_cpu() &&
                      params[t].is_non_overlapping_and_dense() && some[t].strides() == params[t].strides(),
                  "olor_mm: a tensor of size ", some[t].sizes(), " for a parameter of size ", params[t].sizes(),
                  ", or of another dtype, device or memory layout");
    }
  }
}

void adam(TensorList params, TensorList grads, TensorList exp_avgs, TensorList exp_avg_sqs, TensorList anchors,
          const Tensor& scalars) {
  check(params, {grads, exp_avgs, exp_avg_sqs, anchors}, scalars, 10);
  AT_DISPATCH_FLOATING_TYPES(params[0].scalar_type(), "olor_mm::adam", [&] {
    const scalar_t* table = scalars.const_data_ptr<scalar_t>();
    const int64_t width = scalars.size(1);
    each_run(params, [&](int64_t t, int64_t begin, int64_t end) {
      scalar_t *p = params[t].data_ptr<scalar_t>(), *m = exp_avgs[t].data_ptr<scalar_t>();
      scalar_t* v = exp_avg_sqs[t].data_ptr<scalar_t>();
      const scalar_t *g = grads[t].const_data_ptr<scalar_t>(), *anchor = anchors[t].const_data_ptr<scalar_t>();
      each_block<scalar_t, 5>({{p, g, m, v, anchor}}, begin, end, [&](int64_t first, int64_t last) {
        adam_block(p, g, m, v, anchor, table + t * width, first, last);
      });
    });
  });
}

template <bool nesterov>
void sgd_all(TensorList params, TensorList grads, TensorList buffers, TensorList anchors, const Tensor& scalars) {
  AT_DISPATCH_FLOATING_TYPES(params[0].scalar_type(), "olor_mm::sgd", [&] {
    const scalar_t* table = scalars.const_data_ptr<scalar_t>();
    const int64_t width = scalars.size(1);
    each_run(params, [&](int64_t t, int64_t begin, int64_t end) {
      scalar_t *p = params[t].data_ptr<scalar_t>(), *b = buffers[t].data_ptr<scalar_t>();
      const scalar_t *g = grads[t].const_data_ptr<scalar_t>(), *anchor = anchors[t].const_data_ptr<scalar_t>();
      each_block<scalar_t, 4>({{p, g, b, anchor}}, begin, end, [&](int64_t first, int64_t last) {
        sgd_block<scalar_t, nesterov>(p, g, b, anchor, table + t * width, first, last);
      });
    });
  });
}

void sgd(TensorList params, TensorList grads, TensorList buffers, TensorList anchors, const Tensor& scalars,
         bool nesterov) {
  check(params, {grads, buffers, anchors}, scalars, 6);
  nesterov ? sgd_all<true>(params, grads, buffers, anchors, scalars)
           : sgd_all<false>(params, grads, buffers, anchors, scalars);
}

}  // namespace

TORCH_LIBRARY(olor_mm, library) {
  library.def(
      "adam(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, Tensor[] anchors, "
      "Tensor scalars) -> ()",
      &adam);
  library.def(
      "sgd(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] buffers, Tensor[] anchors, Tensor scalars, "
      "bool nesterov) -> ()",
      &sgd);
}
