// Which instruction set serves.
#pragma once

#include "ops.h"

namespace fula {

// The inner kernels for a float dtype (fula_dtype 0 ... 3) on the chosen instruction set.
const Ops &ops_for(int dtype);

}  // namespace fula
