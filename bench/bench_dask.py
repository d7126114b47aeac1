"""Dask workers whose tasks run in interpreters, threads or processes, two of them each."""

import time
from contextlib import contextmanager

from bench import work
from bench.contenders import OURS, WORKERS, Contender
from bench.race import Case, Effort, Figure, race

# Of `work.compute`: some tens of milliseconds.
STEPS = 500_000
PAYLOAD = 20_000_000


class Cluster(Contender):
    """A local cluster, and a client of it; every Dask worker is a process of its own."""

    needs = ("distributed",)

    def __init__(self, name, processes, threads):
        self.name = name
        self._size = {"n_workers": processes, "threads_per_worker": threads}

    @contextmanager
    def open(self, workers=WORKERS):
        from distributed import Client, LocalCluster

        with (
            LocalCluster(
                **self._size,
                processes=True,
                host="127.0.0.1",
                dashboard_address="127.0.0.1:0",
                silence_logs=50,
            ) as cluster,
            Client(cluster, set_as_default=False) as client,
        ):
            self.prepare(client)
            yield client

    def prepare(self, client):
        """Set up what is not Dask's own."""


class Interpreters(Cluster):
    """Ours."""

    ours = True
    needs = ("subinterp.integrations.dask", "subinterp:InterpreterPool")

    def prepare(self, client):
        from subinterp.integrations.dask import SubinterpPlugin

        client.register_plugin(SubinterpPlugin())


CLUSTERS = (
    Interpreters(OURS, 1, WORKERS),
    Cluster("Dask, threads", 1, WORKERS),
    Cluster("Dask, processes", WORKERS, 1),
)


class Compute(Case):
    """Tasks of pure Python code."""

    name = "dask_compute"
    title = "Dask: tasks of pure Python, some 30 ms each"
    figures = (Figure("rate", "tasks a second", "/s", more_is_better=True),)
    contenders = CLUSTERS
    full = Effort(rounds=7, count=100)
    short = Effort(rounds=2, count=24)

    def work(self, client):
        """Do it all, and wait for the end."""
        futures = client.map(work.compute, [STEPS] * self.effort.count, pure=False)
        client.gather(futures)

    def turn(self, contender, client):
        start = time.perf_counter()
        self.work(client)
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "rate": self.effort.count / seconds}


class Small(Compute):
    """Tasks that do next to nothing: what Dask and the executor add."""

    name = "dask_small"
    title = "Dask: tasks that do nothing"
    full = Effort(rounds=7, count=1000)
    short = Effort(rounds=2, count=300)

    def work(self, client):
        client.gather(client.map(abs, range(self.effort.count), pure=False))


class LargeInput(Compute):
    """Tasks that take the same large input, which one of them has made."""

    name = "dask_large_input"
    title = f"Dask: tasks that read {PAYLOAD // 1_000_000} MB which another one has made"
    full = Effort(rounds=7, count=40)
    short = Effort(rounds=2, count=10)

    def work(self, client):
        made = client.submit(bytes, PAYLOAD, pure=False)
        futures = [client.submit(len, made, pure=False) for _ in range(self.effort.count)]
        client.gather(futures)


bench_dask_compute = race(Compute)
bench_dask_small = race(Small)
bench_dask_large_input = race(LargeInput)
