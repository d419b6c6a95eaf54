"""A run that several workers go on with, and what they have finished so far."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import tomli_w

from ...files.atomic import folder as made
from ...files.atomic import host_name, remove, replacing
from ...progress import Progress
from ...store import Store
from ...study.resources import Resources
from ...study.spec import EngineSpec, Spec


def now() -> str:
    """UTC, as shards have it."""
    return datetime.now(UTC).isoformat()


@dataclass(frozen=True)
class Manner:
    """How a run goes. `donors`: folder of trained donors, if not the usual one; `fail_fast`: stop
    at the first failed cell; `profile`: write a trace; `retry_failed`: do the cells that failed,
    and no others; `wait`: for the jobs of a cluster, which else go on by themselves."""

    donors: Path | None = None
    fail_fast: bool = False
    profile: bool = False
    retry_failed: bool = False
    wait: bool = True

    def todo(self, store: Store) -> set[str]:
        """Ids of the cells that a run in this manner does."""
        return set(store.failed() if self.retry_failed else store.missing())


def device_of(engine: EngineSpec) -> list[str]:
    """Arguments for a process of another machine, which finds its device itself unless one is
    named."""
    return ["--device", engine.device] if engine.device != "auto" else []


@dataclass(frozen=True)
class Launch:
    """What an engine starts workers for. `since`: the cells that failed before are tried once
    more. `command`: of `fula-fast`, where a worker is to do something else than to go on with the
    run in the store's folder."""

    store: Store
    resources: Resources
    engine: EngineSpec
    manner: Manner = Manner()
    since: str = field(default_factory=now)
    command: Sequence[str] = ()

    def elsewhere(self) -> list[str]:
        """`arguments`, for a worker of another machine."""
        return [*self.arguments(), *device_of(self.engine)]

    def arguments(self) -> list[str]:
        """Of `fula-fast`, for one worker."""
        if self.command:
            return [*self.command, "--since", self.since]
        found = ["work", str(self.store.folder.absolute()), "--since", self.since]
        how = self.manner
        found += ["--donors", str(how.donors.absolute())] if how.donors else []
        if how.wait:
            found.append("--no-report")  # who waits writes it, and tells a tracker
        elif self.engine.track:
            found += ["--track", self.engine.track]
        for name in ("fail_fast", "profile", "retry_failed"):
            found += [f"--{name.replace('_', '-')}"] * getattr(how, name)
        return found


@dataclass(frozen=True)
class Training:
    """Donors of a spec to be trained into `folder`, each once and in a process of its own."""

    spec: Spec
    names: Sequence[str]
    folder: Path
    resources: Resources

    @property
    def engine(self) -> EngineSpec:
        return self.spec.engine

    @contextmanager
    def commands(self) -> Iterator[dict[str, list[str]]]:
        """`fula-fast`'s arguments for each donor, while their spec's file is there: beside the
        donors, which every worker sees."""
        written = made(self.folder) / f"training-{host_name()}-{os.getpid()}.toml"
        place = ["train", str(written.absolute()), "--out", str(self.folder.absolute())]
        with replacing(written) as temporary:
            temporary.write_text(tomli_w.dumps(self.spec.dump()), "utf-8")
        try:
            yield {name: [*place, "--donor", name] for name in self.names}
        finally:
            remove(written)

    def at_once(self, free: int) -> int:
        """How many: as many as workers were asked for, else `free`."""
        return min(self.engine.workers or free, len(self.names))


class Watch:
    """Tells a display of the cells that workers finish."""

    def __init__(self, launch: Launch, progress: Progress) -> None:
        self._launch, self._progress = launch, progress
        self._told = launch.store.done()

    def look(self) -> int:
        """Tell of new rows; returns how many there were."""
        fresh = self._launch.store.settled(self._launch.since) - self._told
        rows = self._launch.store.rows(fresh) if fresh else []
        for row in rows:
            self._progress.cell_done(row)
        self._told |= fresh
        return len(rows)
