"""Measures of similarity: pure functions, and streams that gather them batch by batch.

`agreement`: with the end donor's answers, and R^2 per site. `cka`: linear CKA. `rank`: numerical
rank of activations, rank and condition number of stitches. `sites`: terms and R^2 site by site.
`self_accuracy`: of cross-layer matrices. Streams keep their sums in float64 on
the tensors' device and never wait for it before `result()`.
"""
