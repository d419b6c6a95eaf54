"""A run's folder on disk: `Store`.

    RUN/spec.json, plan.json      what was asked, and how it was cut into waves
    RUN/plan.parquet              its cells, wave by wave
    RUN/cells/ab/*.json           finished cells, one shard per write; the source of truth
    RUN/stitches/ab/*.safetensors the stitches of a shard
    RUN/checkpoints/*.safetensors a wave's progress
    RUN/logs/wave-ID.log          what was said while a wave was worked on
    RUN/launches/*.json           versions and hardware of each start
    RUN/results.parquet, .csv     rebuilt from the shards
    RUN/similarity/*.json         pairs of donors; similarity.parquet, .csv are rebuilt from them

Every file is written beside its place, flushed, and renamed: readers see all of it or nothing.
There is no database and no lock, so several processes, or machines that share a network folder,
may write different waves of one run.
"""

from .finished import StoreWarning
from .run_folder import Store
from .tables import COLUMNS

__all__ = ["COLUMNS", "Store", "StoreWarning"]
