"""Experiments that are no plain sweeps: each module makes rows of its own.

A driver module has `tasks(experiment) -> list[Task]`, `run(task, lab) -> list[Row]`, and may have
`pictures(lab, rows) -> list[Figure]` and `tables(lab, rows) -> list[Table]`. Finished tasks are
kept in files, so that a run resumes.
"""
