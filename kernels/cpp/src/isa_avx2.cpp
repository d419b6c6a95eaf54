#define FULA_ISA avx2
#define FULA_VECTOR_BYTES 32
#include "simd/tables.h"
