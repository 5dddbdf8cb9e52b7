"""Where KUBECONFIG leads to a cluster: what its API server says of the manifests; none is kept."""

import json
import subprocess
from pathlib import Path

from tests.k8s.manifests import KUBECTL, Object


def test_a_real_api_server_takes_every_object(
    kubeconfig: Path, dev: list[Object], gpu: list[Object]
) -> None:
    groups = kubectl(kubeconfig, "api-versions").stdout.split()
    objects = {(one["kind"], one["metadata"]["name"]): one for one in (*gpu, *dev)}
    known = [one for one in objects.values() if one["apiVersion"] in groups]
    # In a namespace that is there: a dry run makes none for the objects after it.
    for one in known:
        if one["metadata"].get("namespace"):
            one = one | {"metadata": one["metadata"] | {"namespace": "default"}}
        done = kubectl(
            kubeconfig,
            *("apply", "--server-side", "--dry-run=server", "--validate=strict"),
            *("--field-manager=luthier-test", "--force-conflicts", "--filename=-"),
            body=json.dumps(one),
        )
        assert done.returncode == 0, (one["kind"], one["metadata"]["name"], done.stderr)


def kubectl(
    kubeconfig: Path, *arguments: str, body: str | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [KUBECTL, f"--kubeconfig={kubeconfig}", "--request-timeout=20s", *arguments],
        input=body,
        capture_output=True,
        text=True,
    )
