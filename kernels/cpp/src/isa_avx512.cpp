#define FULA_ISA avx512
#define FULA_VECTOR_BYTES 64
#include "simd/tables.h"
