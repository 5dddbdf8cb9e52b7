"""The jobs database as one object: what the roles are given."""

from jobs.adapters import Adapters
from jobs.audit import Audit
from jobs.board import Board
from jobs.database import Database
from jobs.datasets import Datasets
from jobs.dispatches import Dispatches
from jobs.leases import Leases
from jobs.pipelines import Pipelines
from jobs.quotas import DEFAULTS, Quotas, TenantQuotas
from jobs.spending import Spending
from jobs.tenants import Tenants
from jobs.throughputs import Throughputs
from jobs.uploads import Uploads


class Store:
    """The nouns of one database. Clients' methods take the tenant first, workers' the attempt."""

    def __init__(
        self,
        url: str,
        *,
        pepper: str = "",
        lease_s: float = 30.0,
        max_attempts: int = 3,
        quotas: Quotas = DEFAULTS,
    ) -> None:
        self.database = Database(url)
        self.tenants = Tenants(self.database, pepper, quotas)
        self.quotas = TenantQuotas(self.database, quotas)
        self.spending = Spending(self.database, quotas)
        self.audit = Audit(self.database)
        self.datasets = Datasets(self.database, quotas)
        self.uploads = Uploads(self.database, quotas)
        self.jobs = Board(self.database, quotas)
        self.pipelines = Pipelines(self.database, quotas)
        self.leases = Leases(
            self.database, lease_s=lease_s, max_attempts=max_attempts, quotas=quotas
        )
        self.dispatches = Dispatches(self.database, quotas)
        self.adapters = Adapters(self.database, quotas)
        self.throughputs = Throughputs(self.database)

    def close(self) -> None:
        self.database.close()
