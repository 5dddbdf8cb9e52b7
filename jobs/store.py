"""The jobs database as one object: what the roles are given."""

from jobs.adapters import Adapters
from jobs.board import Board
from jobs.database import Database
from jobs.datasets import Datasets
from jobs.dispatches import Dispatches
from jobs.leases import Leases
from jobs.pipelines import Pipelines
from jobs.tenants import Tenants
from jobs.throughputs import Throughputs


class Store:
    """The nouns of one database. Clients' methods take the tenant first, workers' the attempt."""

    def __init__(
        self,
        url: str,
        *,
        pepper: str = "",
        lease_s: float = 30.0,
        max_attempts: int = 3,
        max_live_jobs: int = 1000,
    ) -> None:
        self.database = Database(url)
        self.tenants = Tenants(self.database, pepper)
        self.datasets = Datasets(self.database)
        self.jobs = Board(self.database, max_live_jobs=max_live_jobs)
        self.pipelines = Pipelines(self.database, max_live_jobs=max_live_jobs)
        self.leases = Leases(self.database, lease_s=lease_s, max_attempts=max_attempts)
        self.dispatches = Dispatches(self.database)
        self.adapters = Adapters(self.database)
        self.throughputs = Throughputs(self.database)

    def close(self) -> None:
        self.database.close()
