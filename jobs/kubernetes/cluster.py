"""The part of the Kubernetes API that starting attempts takes, over HTTP.

KubernetesError
├── ClusterUnavailable   no answer, or one that may be another the next time
└── ClusterRefused       what was asked is wrong, or not allowed
"""

import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from jobs.errors import JobsError

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
IN_CLUSTER = "https://kubernetes.default.svc"
PAGE = 500

Object = dict[str, Any]


class KubernetesError(JobsError):
    pass


class ClusterUnavailable(KubernetesError):
    pass


class ClusterRefused(KubernetesError):
    pass


@dataclass(frozen=True)
class Kind:
    """A kind of object, by where the API has it."""

    api: str
    plural: str


JOBS = Kind("apis/batch/v1", "jobs")
PODS = Kind("api/v1", "pods")
TRAIN_JOBS = Kind("apis/trainer.kubeflow.org/v1alpha1", "trainjobs")


class Cluster:
    """One namespace of a cluster. Without a URL it is that of this pod, by its service account."""

    def __init__(
        self, url: str = "", namespace: str = "", *, account: Path = SERVICE_ACCOUNT
    ) -> None:
        within = not url
        verify = ssl.create_default_context(cafile=account / "ca.crt") if within else True
        its_own = (account / "namespace").read_text().strip() if within else "default"
        self.namespace = namespace or its_own
        self._http = httpx.Client(
            base_url=url or IN_CLUSTER,
            auth=Token(account / "token") if within else None,
            verify=verify,
            timeout=httpx.Timeout(30, connect=5),
            trust_env=False,
        )

    def create(self, kind: Kind, made: Object, *, dry_run: bool = False) -> bool:
        """False where it is there already. A field that the API does not know is refused."""
        wanted = {"fieldValidation": "Strict"} | ({"dryRun": "All"} if dry_run else {})
        answer = self._ask("POST", self._path(kind), params=wanted, json=made)
        if answer.status_code == 409:
            return False
        _require(answer)
        return True

    def list(self, kind: Kind, selector: str) -> Iterator[Object]:
        """Every object with these labels."""
        params = {"labelSelector": selector, "limit": str(PAGE)}
        while True:
            found = _require(self._ask("GET", self._path(kind), params=params))
            yield from found["items"]
            if not (rest := found.get("metadata", {}).get("continue")):
                return
            params["continue"] = rest

    def delete(self, kind: Kind, name: str) -> None:
        """With its pods, which have their grace period first; nothing where it is gone already."""
        how = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Foreground"}
        answer = self._ask("DELETE", f"{self._path(kind)}/{name}", json=how)
        if answer.status_code != 404:
            _require(answer)

    def close(self) -> None:
        self._http.close()

    def _path(self, kind: Kind) -> str:
        return f"/{kind.api}/namespaces/{self.namespace}/{kind.plural}"

    def _ask(self, verb: str, path: str, **options: Any) -> httpx.Response:
        try:
            return self._http.request(verb, path, **options)
        except (httpx.HTTPError, OSError) as error:
            text = f"The Kubernetes API does not answer: {type(error).__name__}."
            raise ClusterUnavailable(text) from error


class Token(httpx.Auth):
    """The service account's token, read anew each time: the kubelet renews it within the hour."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def auth_flow(self, request: httpx.Request) -> Iterator[httpx.Request]:  # type: ignore[override]
        request.headers["authorization"] = f"Bearer {self._path.read_text().strip()}"
        yield request


def _require(answer: httpx.Response) -> Object:
    """The object in an answer that says yes."""
    if answer.is_success:
        found: Object = answer.json()
        return found
    if answer.status_code in (408, 429) or answer.status_code >= 500:
        raise ClusterUnavailable(f"The Kubernetes API answers {answer.status_code}.")
    try:
        message = answer.json()["message"]
    except (ValueError, KeyError, TypeError):
        message = answer.text[:500]
    raise ClusterRefused(f"The Kubernetes API refuses it ({answer.status_code}): {message}")
