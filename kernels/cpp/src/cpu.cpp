#include "cpu.h"

#include <atomic>
#include <cstring>

#include "status.h"

namespace fula {
namespace portable { extern const Ops kTable[4]; }
#if FULA_X86
namespace avx2 { extern const Ops kTable[4]; }
namespace avx512 { extern const Ops kTable[4]; }
#endif

namespace {

struct InstructionSet {
  const char *name;
  const Ops *table;
  bool (*present)();
};

// Best first.
const InstructionSet kSets[] = {
#if FULA_X86
    {"avx512", avx512::kTable,
     [] {
       return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
              __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
     }},
    {"avx2", avx2::kTable,
     [] {
       return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
              __builtin_cpu_supports("f16c");
     }},
#endif
    {"portable", portable::kTable, [] { return true; }},
};

const InstructionSet *best() {
  for (const InstructionSet &set : kSets)
    if (set.present()) return &set;
  return nullptr;  // not reached: the portable set is always there
}

std::atomic<const InstructionSet *> &chosen() {
  static std::atomic<const InstructionSet *> set{best()};
  return set;
}

}  // namespace

const Ops &ops_for(int dtype) { return chosen().load()->table[dtype]; }

}  // namespace fula

extern "C" const char *fula_get_cpu(void) { return fula::chosen().load()->name; }

extern "C" fula_status fula_set_cpu(const char *name) {
  if (!name) return fula::refuse(FULA_ERROR_NULL, "name is missing");
  for (const fula::InstructionSet &set : fula::kSets) {
    if (std::strcmp(set.name, name) != 0) continue;
    if (!set.present())
      return fula::refuse(FULA_ERROR_VALUE, "name = '%s': this processor lacks it", name);
    fula::chosen() = &set;
    return FULA_OK;
  }
  return fula::refuse(FULA_ERROR_VALUE, "name = '%s': must be avx512, avx2 or portable", name);
}
