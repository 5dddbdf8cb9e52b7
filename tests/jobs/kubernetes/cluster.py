"""A cluster of a test with a house's jobs in it."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.kubernetes.cluster import Cluster
from jobs.kubernetes.dispatcher import Dispatcher
from jobs.kubernetes.manifest import Manifests, name_of
from jobs.kubernetes.template import read_template
from jobs.settings import Settings, as_environment
from tests.jobs.kubernetes.api_server import NAMESPACE, Api, kubernetes
from tests.workers import House, conversations

TEMPLATE = """
metadata:
  annotations: {team: ml}
spec:
  automountServiceAccountToken: false
  terminationGracePeriodSeconds: 30
  securityContext: {runAsNonRoot: true, seccompProfile: {type: RuntimeDefault}}
  containers:
    - name: trainer
      image: registry.example/luthier-worker:1
      envFrom: [{configMapRef: {name: luthier}}, {secretRef: {name: luthier}}]
      resources: {requests: {cpu: "1", memory: 1Gi}, limits: {memory: 2Gi}}
"""
MakeHouse = Callable[..., House]


@dataclass
class Yard:
    """A house, a cluster, and what hands the one's jobs to the other."""

    house: House
    api: Api
    url: str
    settings: Settings
    open: ExitStack

    def dispatcher(self, **options: Any) -> Dispatcher:
        assert self.settings.kubernetes_pod_template is not None
        template = read_template(self.settings.kubernetes_pod_template)
        manifests = Manifests(self.settings, template)
        return Dispatcher(self.house.store, self.cluster(), manifests, **options)

    def cluster(self) -> Cluster:
        made = Cluster(self.url, NAMESPACE)
        self.open.callback(made.close)
        return made

    def submit(self, **options: Any) -> str:
        return self.house.submit(self.house.add_dataset(conversations(40)), **options)

    def messages(self, job_id: str) -> list[str]:
        events, _ = self.house.store.jobs.events(self.house.tenant_id, job_id, limit=1000)
        return [event.message for event in events]

    def exit_codes(self, job_id: str, attempt: int) -> list[int | None]:
        name = name_of(job_id, attempt)
        return [pod.exit_code for pod in self.api.pods.values() if pod.job == name]


@contextmanager
def yard(
    make_house: MakeHouse, folder: Path, *, template: str = TEMPLATE, **settings: Any
) -> Iterator[Yard]:
    path = folder / "pod.yaml"
    path.write_text(template)
    environment: dict[str, str] = {}
    with kubernetes(environment) as (url, api), ExitStack() as stack:
        house = make_house(
            launcher="kubernetes",
            kubernetes_url=url,
            kubernetes_namespace=NAMESPACE,
            kubernetes_pod_template=path,
            **settings,
        )
        environment |= as_environment(house.settings)
        yield Yard(house, api, url, house.settings, stack)
