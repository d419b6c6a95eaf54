"""Measures of similarity: pure functions, and streams that gather them batch by batch.

`registry`: what a measure is, a record each, without torch; `catalogue`: the records that ship.
Another package adds its own by one call, `measures.register(Measure(...))`.

How a measure is computed: `pair`, second moments of two representations; `moments`, the same
gathered over batches for all site pairs; `matrices`, chosen measures over all pairs of sites, under
permutations too. The measures: `alignment`, `canonical`, `shape` (of a pair), `dissimilarity`,
`neighbours` and RBF kernels in `alignment` (of samples in memory), `outputs`. What they tell:
`chance`, `intervals`, with indices from `sampling`. `features`: activations as matrices; `memory`:
bytes before a run.

Of stitched models: `agreement` with the end donor's answers, and R^2 per site; `cka`: linear CKA;
`rank`: numerical rank of activations, rank and condition number of stitches; `sites`: terms and R^2
site by site; `self_accuracy`: of cross-layer matrices. Streams keep their sums in float64 on the
tensors' device and never wait for it before `result()`.
"""

from .registry import Features, Invariance, Measure, Needs, measure, measures, register

__all__ = ["Features", "Invariance", "Measure", "Needs", "measure", "measures", "register"]
