"""Jobs that wait for a slot, and whose turn it is."""

import threading
from collections.abc import Sequence

from m40llm.engine.job import Job


class Waiting:
    """Any thread may add, one takes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._jobs: list[Job] = []

    def __len__(self) -> int:
        return len(self._jobs)

    def add(self, job: Job) -> None:
        with self._lock:
            self._jobs.append(job)

    def put_back(self, job: Job) -> None:
        """What was taken, and could not begin: it came before those that wait."""
        with self._lock:
            self._jobs.insert(0, job)

    def take(self, clients: Sequence[str]) -> Job | None:
        """The next one: by priority, then whose client is among `clients`, those of the jobs at
        work, least often, then who must end first, then who came first. None where none waits."""
        with self._lock:
            if not self._jobs:
                return None
            job = min(self._jobs, key=lambda j: (-j.priority, clients.count(j.client), j.end_s))
            self._jobs.remove(job)
            return job

    def take_unwanted(self) -> list[Job]:
        """Those that were cancelled, or are late."""
        with self._lock:
            unwanted = [job for job in self._jobs if job.is_unwanted]
            self._jobs = [job for job in self._jobs if job not in unwanted]
        return unwanted

    def take_all(self) -> list[Job]:
        with self._lock:
            jobs, self._jobs = self._jobs, []
        return jobs

    def cancel_all(self) -> None:
        with self._lock:
            for job in self._jobs:
                job.is_cancelled = True
