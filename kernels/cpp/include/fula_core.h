/* fula_core: the engine's kernels for any host program. C interface, no Python, no torch.
 *
 * Conventions
 *   - Every function returns a `fula_status`; `fula_error_message()` tells the calling thread which
 *     argument of its last failed call was wrong, its value and the rule. Nothing is thrown, and
 *     outputs are untouched when arguments are refused.
 *   - The caller owns all memory. An output must not overlap an input or another output.
 *   - Functions may be called from several threads at once. Work is spread over the library's own
 *     threads (`fula_set_num_threads`); results have the same bits for every number of threads.
 *   - L lanes, B samples a lane, C channels. Lanes are concatenated along the batch axis,
 *     lane-major: (L*B, C, H, W). Targets are shared by the lanes.
 *   - `activation` below means a float tensor in one of two dense layouts, the same one for all
 *     activations of a call: contiguous (N, C, ...), or channels-last (strides as if the shape
 *     were (N, ..., C)). Strides of axes of length 1 are ignored. Batch axes come before C.
 *   - `sums` means float32, or float64 where the activations are float64.
 *   - Arguments marked [opt] may be NULL.
 *   - Tensors of one call are all on the CPU or all on one CUDA device. A library built with
 *     FULA_CUDA serves the latter (float32, bfloat16, float16; not `fula_gram`) in the order of the
 *     thread's stream, without waiting for it; other builds refuse them with FULA_ERROR_DEVICE. Such
 *     a call works in the context that holds the memory and leaves the thread's as it was. Memory of
 *     a stream-ordered pool belongs to no context: the thread's serves where it is of that device,
 *     else the device's primary context.
 */
#ifndef FULA_CORE_H
#define FULA_CORE_H

#include <stdint.h>

#if defined(__GNUC__)
#define FULA_API __attribute__((visibility("default")))
#else
#define FULA_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define FULA_MAX_RANK 5

typedef enum fula_status {
  FULA_OK = 0,
  FULA_ERROR_NULL = 1,   /* a required argument, or the data of a non-empty tensor, is missing */
  FULA_ERROR_DTYPE = 2,  /* an element type this argument cannot have */
  FULA_ERROR_SHAPE = 3,  /* ranks or lengths that do not fit together */
  FULA_ERROR_STRIDE = 4, /* neither of the documented layouts, or a mix of both */
  FULA_ERROR_INDEX = 5,  /* an index out of range */
  FULA_ERROR_VALUE = 6,  /* a number out of range or not finite */
  FULA_ERROR_MEMORY = 7, /* scratch memory could not be had */
  FULA_ERROR_DEVICE = 8  /* tensors of different devices, or a device this build does not serve */
} fula_status;

typedef enum fula_dtype {
  FULA_FLOAT32 = 0,
  FULA_BFLOAT16 = 1,
  FULA_FLOAT16 = 2,
  FULA_FLOAT64 = 3,
  FULA_UINT8 = 4,
  FULA_BOOL = 5,
  FULA_INT32 = 6,
  FULA_INT64 = 7
} fula_dtype;

typedef enum fula_device { FULA_CPU = 0, FULA_CUDA = 1 } fula_device;

/* A view of somebody's memory. Strides count elements. */
typedef struct fula_tensor {
  void *data;
  int32_t dtype;  /* fula_dtype */
  int32_t device; /* fula_device */
  int32_t rank;   /* 0 ... FULA_MAX_RANK */
  int64_t shape[FULA_MAX_RANK];
  int64_t stride[FULA_MAX_RANK];
} fula_tensor;

/* Version of the library, "major.minor.patch". */
FULA_API const char *fula_version(void);
/* Why the calling thread's last failed call failed; "" before any failure. */
FULA_API const char *fula_error_message(void);
/* Threads of the pool, the caller included. At first: the environment's FULA_NUM_THREADS, else its
 * OMP_NUM_THREADS, else every usable processor. */
FULA_API int32_t fula_get_num_threads(void);
FULA_API fula_status fula_set_num_threads(int32_t count);
/* Instruction set in use: "avx512", "avx2" or "portable". Setting one the processor lacks is an
 * error; the default is the best. */
FULA_API const char *fula_get_cpu(void);
FULA_API fula_status fula_set_cpu(const char *name);

/* 1 where this build serves CUDA devices, whether or not there is one; else 0. */
FULA_API int32_t fula_has_cuda(void);
/* The CUDA stream (a CUstream of the tensors' device; NULL is the default stream) of the calling
 * thread's next calls. */
FULA_API fula_status fula_set_stream(void *stream);

/* Batch norm with every lane's own statistics, residual add, ReLU, and distance to a target.
 *
 *     y = relu(weight * (x - mean_l) / sqrt(var_l + eps) + bias + residual)
 *     dist2[l, b] = sum over sample b of (y_l - target)^2
 *
 * x, residual [opt], y: activations (L*B, C, ...); target [opt]: activation (B, C, ...);
 * weight, bias: sums (C) or (L, C); mean, var: sums (L, C), contiguous: written when `training`
 * (biased variance over B and positions), else read; dist2 [opt, together with target]: sums (L, B).
 */
FULA_API fula_status fula_lane_norm_forward(
    const fula_tensor *x, const fula_tensor *weight, const fula_tensor *bias,
    const fula_tensor *mean, const fula_tensor *var, const fula_tensor *residual,
    const fula_tensor *target, int64_t lanes, int32_t training, double eps, int32_t relu,
    const fula_tensor *y, const fula_tensor *dist2);

/* Gradients of `fula_lane_norm_forward` from those of y (dy [opt]) and dist2 (ddist2 [opt]).
 *
 * x, weight, bias, mean, var, residual, target, lanes, training, eps, relu: as in the forward call,
 * mean and var as it wrote or read them (no gradient flows through them as outputs). The output is
 * computed again, not read. At y = 0 the ReLU passes nothing. dx [opt], dresidual [opt]: activations
 * as x; dweight [opt], dbias [opt]: sums (L, C), each lane's own part.
 */
FULA_API fula_status fula_lane_norm_backward(
    const fula_tensor *dy, const fula_tensor *ddist2, const fula_tensor *x,
    const fula_tensor *weight, const fula_tensor *bias, const fula_tensor *mean,
    const fula_tensor *var, const fula_tensor *residual, const fula_tensor *target, int64_t lanes,
    int32_t training, double eps, int32_t relu, const fula_tensor *dx,
    const fula_tensor *dresidual, const fula_tensor *dweight, const fula_tensor *dbias);

/* Squared distances of any number of depths: dist2[i][l, b] = sum of (activation - target)^2.
 *
 * activations: `count` activations (L_i*B_i, ...) of any rank >= 1; targets: (B_i, ...); the two of
 * one depth share dtype and layout; dist2: sums (L_i, B_i), contiguous.
 */
FULA_API fula_status fula_hint_terms_forward(int64_t count, const fula_tensor *activations,
                                             const fula_tensor *targets, const fula_tensor *dist2);

/* dactivations[i] = 2 * ddist2[i][l, b] * (activation - target), shaped as the activations. */
FULA_API fula_status fula_hint_terms_backward(int64_t count, const fula_tensor *activations,
                                              const fula_tensor *targets,
                                              const fula_tensor *ddist2,
                                              const fula_tensor *dactivations);

/* Each lane's affine stitch, and its distance to its target.
 *
 *     y_l = weight_l . x[x_index_l] + bias_l
 *     dist2[l, b] = sum over sample b of (y_l - target[target_index_l])^2
 *
 * x: activation (S, B, C1, ...); target [opt]: activation (T, B, C2, ...); y [opt]: activation
 * (L*B, C2, ...); tokens are channels-last with their position axis moved behind C, vectors have
 * no axis behind C. weight (L, C2, C1), bias (L, C2): sums, contiguous. x_index, target_index
 * [opt, together with target]: int64 (L), contiguous, always on the host. dist2 [opt, together with
 * target]: sums (L, B). Products of half-precision activations are taken with the weight rounded to
 * their dtype.
 */
FULA_API fula_status fula_stitch_hint_forward(
    const fula_tensor *x, const fula_tensor *weight, const fula_tensor *bias,
    const fula_tensor *x_index, const fula_tensor *target, const fula_tensor *target_index,
    const fula_tensor *y, const fula_tensor *dist2);

/* Gradients of `fula_stitch_hint_forward` from those of y (dy [opt]) and dist2 (ddist2 [opt]).
 *
 * y [opt]: the forward output; without it the stitch is computed again where ddist2 needs it.
 * dweight (L, C2, C1), dbias (L, C2): sums; dx [opt]: activation as x, summed over the lanes that
 * read it (zero where none does).
 */
FULA_API fula_status fula_stitch_hint_backward(
    const fula_tensor *dy, const fula_tensor *ddist2, const fula_tensor *x,
    const fula_tensor *weight, const fula_tensor *bias, const fula_tensor *x_index,
    const fula_tensor *target, const fula_tensor *target_index, const fula_tensor *y,
    const fula_tensor *dweight, const fula_tensor *dbias, const fula_tensor *dx);

typedef enum fula_norm { FULA_LINF = 0, FULA_L2 = 1 } fula_norm;

/* One projected ascent step in pixels, inside [0, 1].
 *
 * FULA_LINF: x_adv + step * sign(grad), clipped to x_clean +- eps. FULA_L2: x_adv + step * grad /
 * ||grad|| per sample, its offset from x_clean shortened to eps. A zero gradient moves nothing.
 * x_adv, grad, x_clean, out: (N, ...), dense, of one dtype and layout. step, eps: finite, >= 0.
 */
FULA_API fula_status fula_pgd_step(const fula_tensor *x_adv, const fula_tensor *grad,
                                   const fula_tensor *x_clean, double step, double eps,
                                   int32_t norm, const fula_tensor *out);

/* A batch from a resident data set: zero-pad, crop, flip, scale to [0, 1], paste markers.
 *
 *     out[b, :, y, x] = images[i, y + dy[i] - pad, x' + dx[i] - pad, :] / 255,  i = index[b],
 *     x' = W - 1 - x where flip[i], else x; zero outside the image
 *
 * images: uint8 (N, H, W, C), contiguous; index: (B); dy, dx in [0, 2*pad], flip (bool): (N), by
 * sample. markers [opt]: float32 (M, h, w, C), contiguous, pasted last at (marker_y[i],
 * marker_x[i]), the one numbered marker_index[i]; these three: (N), present together with markers.
 * Integer vectors are int32 or int64, contiguous; on a CUDA device they are not checked, index and
 * marker_index are int64 and the others of one dtype. out: float32, bfloat16 or float16 (B, C, H, W),
 * channels-last.
 */
FULA_API fula_status fula_augment(const fula_tensor *images, const fula_tensor *index,
                                  const fula_tensor *dy, const fula_tensor *dx,
                                  const fula_tensor *flip, int64_t pad, const fula_tensor *markers,
                                  const fula_tensor *marker_index, const fula_tensor *marker_y,
                                  const fula_tensor *marker_x, const fula_tensor *out);

/* Normal equations of least squares with a bias, accumulated in float64. With X = [x, 1]:
 *
 *     xtx = X' X  (c1+1, c1+1),   xty = X' y  (c1+1, c2)
 *
 * x (rows, c1), y (rows, c2): one float dtype, any strides; xtx, xty: float64, contiguous; with
 * `accumulate` the results are added to them.
 */
FULA_API fula_status fula_gram(const fula_tensor *x, const fula_tensor *y, int32_t accumulate,
                               const fula_tensor *xtx, const fula_tensor *xty);

#ifdef __cplusplus
}
#endif
#endif
