// Vectors of one instruction set: loads and stores of any element type as sums.
//
// Included by isa_*.cpp after FULA_ISA (a namespace) and FULA_VECTOR_BYTES are defined. Compiler
// vectors, not intrinsics, wherever both give the same instructions.
#pragma once

#include <cstdint>
#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "../ops.h"

#define FULA_INLINE static inline __attribute__((always_inline))
#define FULA_INLINE_MEMBER inline __attribute__((always_inline))

namespace fula {
namespace FULA_ISA {

typedef float FloatVec __attribute__((vector_size(FULA_VECTOR_BYTES)));
typedef double DoubleVec __attribute__((vector_size(FULA_VECTOR_BYTES)));
typedef std::uint32_t WordVec __attribute__((vector_size(FULA_VECTOR_BYTES)));
typedef std::uint16_t HalfVec __attribute__((vector_size(FULA_VECTOR_BYTES / 2)));

template <class T> struct SumOf { using type = float; };
template <> struct SumOf<double> { using type = double; };
template <class T> using Sum = typename SumOf<T>::type;

template <class A> struct VecOf { using type = FloatVec; };
template <> struct VecOf<double> { using type = DoubleVec; };
template <class A> using Vec = typename VecOf<A>::type;

template <class A> constexpr int kWidth = FULA_VECTOR_BYTES / static_cast<int>(sizeof(A));

template <class To, class From> FULA_INLINE To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}

template <class A> FULA_INLINE Vec<A> splat(A value) { return Vec<A>{} + value; }

// ---- one element ------------------------------------------------------------------------------

FULA_INLINE float widen(float x) { return x; }
FULA_INLINE double widen(double x) { return x; }
FULA_INLINE float widen(BFloat16 x) {
  return bits_as<float>(static_cast<std::uint32_t>(x.bits) << 16);
}
FULA_INLINE float widen(Float16 x) {
  const std::uint32_t sign = static_cast<std::uint32_t>(x.bits & 0x8000u) << 16;
  const std::uint32_t magnitude = x.bits & 0x7fffu;
  if (magnitude >= 0x7c00u)  // infinity, NaN
    return bits_as<float>(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  // A float with the half's digits is too small by 2^112; the product is exact, subnormals too.
  const float scaled = bits_as<float>(magnitude << 13) * 0x1p112f;
  return bits_as<float>(sign | bits_as<std::uint32_t>(scaled));
}

FULA_INLINE void narrow(float *to, float x) { *to = x; }
FULA_INLINE void narrow(double *to, double x) { *to = x; }
FULA_INLINE void narrow(BFloat16 *to, float x) {
  const std::uint32_t word = bits_as<std::uint32_t>(x);
  const bool nan = (word & 0x7fffffffu) > 0x7f800000u;
  to->bits = nan ? 0x7fc0u : static_cast<std::uint16_t>((word + 0x7fffu + (word >> 16 & 1)) >> 16);
}
FULA_INLINE void narrow(Float16 *to, float x) {
  const std::uint32_t word = bits_as<std::uint32_t>(x);
  const std::uint16_t sign = static_cast<std::uint16_t>(word >> 16 & 0x8000u);
  const std::uint32_t magnitude = word & 0x7fffffffu;
  std::uint32_t half;
  if (magnitude > 0x7f800000u) half = 0x7e00u;        // NaN
  else if (magnitude >= 0x477ff000u) half = 0x7c00u;  // 65520 and above round to infinity
  else if (magnitude < 0x38800000u)  // below 2^-14: let float addition round to a multiple of 2^-24
    half = bits_as<std::uint32_t>(bits_as<float>(magnitude) + 0.5f) - 0x3f000000u;
  else half = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1)) >> 13;
  to->bits = static_cast<std::uint16_t>(sign | half);
}

// ---- one vector -------------------------------------------------------------------------------

FULA_INLINE FloatVec load(const float *p) { FloatVec v; __builtin_memcpy(&v, p, sizeof v); return v; }
FULA_INLINE DoubleVec load(const double *p) {
  DoubleVec v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
FULA_INLINE FloatVec load(const BFloat16 *p) {
  HalfVec h;
  __builtin_memcpy(&h, p, sizeof h);
  return bits_as<FloatVec>(__builtin_convertvector(h, WordVec) << 16);
}
FULA_INLINE FloatVec load(const Float16 *p) {
#if defined(__AVX512F__)
  return bits_as<FloatVec>(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p))));
#elif defined(__F16C__)
  return bits_as<FloatVec>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p))));
#else
  FloatVec v;
  for (int i = 0; i < kWidth<float>; ++i) v[i] = widen(p[i]);
  return v;
#endif
}

FULA_INLINE void store(float *p, FloatVec v) { __builtin_memcpy(p, &v, sizeof v); }
FULA_INLINE void store(double *p, DoubleVec v) { __builtin_memcpy(p, &v, sizeof v); }
FULA_INLINE void store(BFloat16 *p, FloatVec v) {
  const WordVec word = bits_as<WordVec>(v);
  const WordVec rounded = (word + 0x7fffu + (word >> 16 & 1)) >> 16;
  const WordVec quiet = WordVec{} + 0x7fc0u;
  const HalfVec h = __builtin_convertvector(v == v ? rounded : quiet, HalfVec);
  __builtin_memcpy(p, &h, sizeof h);
}
FULA_INLINE void store(Float16 *p, FloatVec v) {
#if defined(__AVX512F__)
  const __m256i h = _mm512_cvtps_ph(bits_as<__m512>(v), _MM_FROUND_TO_NEAREST_INT);
  _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), h);
#elif defined(__F16C__)
  const __m128i h = _mm256_cvtps_ph(bits_as<__m256>(v), _MM_FROUND_TO_NEAREST_INT);
  _mm_storeu_si128(reinterpret_cast<__m128i *>(p), h);
#else
  for (int i = 0; i < kWidth<float>; ++i) narrow(p + i, v[i]);
#endif
}

// The first n elements (n < width); the others are zero, or left alone.
template <class T> FULA_INLINE Vec<Sum<T>> load(const T *p, i64 n) {
  if (n >= kWidth<Sum<T>>) return load(p);
  T padded[kWidth<Sum<T>>] = {};
  for (i64 i = 0; i < n; ++i) padded[i] = p[i];
  return load(padded);
}
template <class T> FULA_INLINE void store(T *p, Vec<Sum<T>> v, i64 n) {
  if (n >= kWidth<Sum<T>>) return store(p, v);
  T padded[kWidth<Sum<T>>];
  store(padded, v);
  for (i64 i = 0; i < n; ++i) p[i] = padded[i];
}
// Zero the elements from n on.
template <class A> FULA_INLINE Vec<A> keep(Vec<A> v, i64 n) {
  for (i64 i = n; i < kWidth<A>; ++i) v[i] = 0;
  return v;
}

template <class A> FULA_INLINE Vec<A> load_sums(const void *p, i64 n) {
  return load(static_cast<const A *>(p), n);
}

// Sum of a vector, in a fixed order.
template <class V> FULA_INLINE double total(V v) {
  constexpr int width = sizeof(V) / sizeof(v[0]);
  double parts[width];
  for (int i = 0; i < width; ++i) parts[i] = static_cast<double>(v[i]);
  for (int half = width / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) parts[i] += parts[i + half];
  return parts[0];
}

// Sums of vectors in double: long sums are taken in float for kShort vectors at most. Start with
// `= {}`: arrays of them are cleared only as far as they are used.
constexpr i64 kShort = 8;

template <class A> struct LongSum {
  DoubleVec low, high;
  FULA_INLINE_MEMBER void add(FloatVec v) {
    typedef float HalfWide __attribute__((vector_size(FULA_VECTOR_BYTES / 2)));
    HalfWide halves[2];
    __builtin_memcpy(halves, &v, sizeof v);
    low += __builtin_convertvector(halves[0], DoubleVec);
    high += __builtin_convertvector(halves[1], DoubleVec);
  }
  double all() const { return total(low + high); }
  double at(i64 i) const {
    constexpr int W = kWidth<double>;
    return i < W ? low[i] : high[i - W];
  }
};
template <> struct LongSum<double> {
  DoubleVec sum;
  FULA_INLINE_MEMBER void add(DoubleVec v) { sum += v; }
  double all() const { return total(sum); }
  double at(i64 i) const { return sum[i]; }
};

}  // namespace FULA_ISA
}  // namespace fula
