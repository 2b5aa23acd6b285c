// A trivially copyable view of dense memory: {data, dtype, shape, strides}. Owners are Arena (activations, gradients),
// MappedFile (weights) and Buffer (parameters, optimizer state, KV cache). Quantized weights are not a dtype: see Weight.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tensor/error.h"

namespace thimble {

enum class DType : uint8_t { f32, f64, i32 };

struct Tensor {
  void* data = nullptr;
  DType dtype = DType::f32;
  int rank = 0;
  int64_t shape[4] = {1, 1, 1, 1};
  int64_t stride[4] = {0, 0, 0, 0};  // in elements

  // A contiguous f32 matrix [rows, cols].
  static Tensor matrix(float* data, int64_t rows, int64_t cols) {
    Tensor t;
    t.data = data;
    t.rank = 2;
    t.shape[0] = rows;
    t.shape[1] = cols;
    t.stride[0] = cols;
    t.stride[1] = 1;
    return t;
  }
  float* f32() const {
    THIMBLE_DCHECK(dtype == DType::f32);
    return static_cast<float*>(data);
  }
  int64_t rows() const { return shape[0]; }
  int64_t cols() const { return shape[1]; }
  int64_t numel() const { return shape[0] * shape[1] * shape[2] * shape[3]; }
};

}  // namespace thimble
