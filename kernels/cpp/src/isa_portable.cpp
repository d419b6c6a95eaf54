#define FULA_ISA portable
#define FULA_VECTOR_BYTES 16
#include "simd/tables.h"
