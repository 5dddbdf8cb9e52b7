"""An attempt as an object of Kubernetes: a batch/v1 Job, or a TrainJob on several machines."""

from dataclasses import dataclass
from typing import Any

from engine.spec import Resources
from jobs.exit_codes import Exit
from jobs.kubernetes.cluster import JOBS, TRAIN_JOBS, Kind, Object
from jobs.kubernetes.template import CONTAINER, merged
from jobs.model import Job, JobSpec
from jobs.settings import Settings

JOB, ATTEMPT, QUEUE = "luthier/job", "luthier/attempt", "luthier/queue"
KUEUE = "kueue.x-k8s.io/queue-name"
GPU = "nvidia.com/gpu"
# The attempt is over by its own word, whatever else happened to its pod.
ENDS = (Exit.FAILED, Exit.RETRYABLE, Exit.STOPPED)


@dataclass(frozen=True)
class Manifest:
    kind: Kind
    object: Object


@dataclass(frozen=True)
class Manifests:
    """Makes attempts' objects of the operator's pod template and settings."""

    settings: Settings
    template: Object

    def attempt(self, job: Job, number: int) -> Manifest:
        """Raises TemplateInvalid where the template says otherwise."""
        resources = job.spec.resources if isinstance(job.spec, JobSpec) else Resources()
        name = name_of(job.id, number)
        command = ["luthier", "attempt", job.id, str(number)]
        labels = self._labels(job.id, number)
        limits = {} if self.settings.train_device == "cpu" else {GPU: str(resources.gpus)}
        if resources.nodes > 1:
            return Manifest(TRAIN_JOBS, self._train_job(name, labels, command, resources, limits))
        return Manifest(JOBS, self._job(name, labels, command, limits))

    def _labels(self, job_id: str, number: int) -> dict[str, str]:
        return {
            "app.kubernetes.io/name": "luthier",
            "app.kubernetes.io/component": "attempt",
            JOB: job_id,
            ATTEMPT: str(number),
            QUEUE: self.settings.queue,
        }

    def _job(
        self, name: str, labels: dict[str, str], command: list[str], limits: dict[str, str]
    ) -> Object:
        grace = self.template["spec"].get("terminationGracePeriodSeconds")
        trainer: Object = {"name": CONTAINER, "command": command}
        if limits:
            trainer["resources"] = {"limits": limits}
        ours = {
            "metadata": {"labels": labels},
            "spec": {
                "restartPolicy": "Never",
                "terminationGracePeriodSeconds": grace or round(self.settings.drain_s * 2),
                "containers": [trainer],
            },
        }
        spec: Object = {
            # An attempt runs once: what comes after it is another attempt, which the table starts.
            "backoffLimit": 0,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {
                "rules": [
                    _at("FailJob", *ENDS),
                    # A second pod: its end must not be that of the one that has the attempt.
                    _at("Ignore", Exit.SUPERSEDED),
                    # Moved elsewhere before it could say a word: the same attempt in a new pod,
                    # which finds out by itself whether it may still begin.
                    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]},
                ]
            },
            "ttlSecondsAfterFinished": self.settings.kubernetes_ttl_s,
            "template": merged(self.template, ours),
        }
        return self._admitted(_object("batch/v1", "Job", name, labels, spec))

    def _train_job(
        self,
        name: str,
        labels: dict[str, str],
        command: list[str],
        resources: Resources,
        limits: dict[str, str],
    ) -> Object:
        """Its pods are of the runtime's template, which the operator writes in the cluster."""
        spec: Object = {
            "runtimeRef": {
                "apiGroup": "trainer.kubeflow.org",
                "kind": "ClusterTrainingRuntime",
                "name": self.settings.kubernetes_runtime,
            },
            "trainer": {
                "command": command,
                "numNodes": resources.nodes,
                "numProcPerNode": resources.gpus,
            }
            | ({"resourcesPerNode": {"limits": limits}} if limits else {}),
        }
        made = _object("trainer.kubeflow.org/v1alpha1", "TrainJob", name, labels, spec)
        return self._admitted(made)

    def _admitted(self, made: Object) -> Object:
        """With Kueue it is created suspended, and begins when Kueue has room for it."""
        if queue := self.settings.kubernetes_local_queue:
            made["metadata"]["labels"][KUEUE] = queue
            made["spec"]["suspend"] = True
        return made


def name_of(job_id: str, number: int) -> str:
    """The same for the same attempt, so that a second one cannot be."""
    return f"{job_id.replace('_', '-')}-{number}"


def _object(api: str, kind: str, name: str, labels: dict[str, str], spec: Object) -> Object:
    metadata: dict[str, Any] = {"name": name, "labels": dict(labels)}
    return {"apiVersion": api, "kind": kind, "metadata": metadata, "spec": spec}


def _at(action: str, *ends: Exit) -> Object:
    told = {"containerName": CONTAINER, "operator": "In", "values": [int(end) for end in ends]}
    return {"action": action, "onExitCodes": told}
