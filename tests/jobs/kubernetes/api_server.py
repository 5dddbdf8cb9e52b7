"""A Kubernetes API for tests: the part of batch/v1, pods and TrainJobs that attempts take.

Objects are validated as strictly as a real server does with fieldValidation=Strict, and the pods of
admitted Jobs really run, as processes of this machine.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import kubernetes_validate

from tests.workers import REPO

Object = dict[str, Any]
NAMESPACE = "luthier"
VERSION = "1.37"  # of the schemas
LUTHIER = [sys.executable, "-m", "cli.main"]  # what is `luthier` in an image


@dataclass
class Pod:
    """A pod, and its process once it runs."""

    name: str
    job: str
    labels: dict[str, str]
    spec: Object
    process: subprocess.Popen[bytes] | None = None
    disrupted: bool = False
    out_of_memory: bool = False
    exit_code: int | None = None
    problem: Object = field(default_factory=dict)  # of its status, while it is kept from running

    def view(self) -> Object:
        status: Object = {"phase": self._phase(), "conditions": []}
        if self.process is not None:
            status["containerStatuses"] = [{"name": "trainer", "state": self._state()}]
        if self.disrupted:
            status["conditions"].append({"type": "DisruptionTarget", "status": "True"})
        metadata = {"name": self.name, "labels": self.labels}
        return {"metadata": metadata, "spec": self.spec, "status": status | self.problem}

    def _phase(self) -> str:
        if self.process is None:
            return "Pending"
        if self.exit_code is None:
            return "Running"
        return "Failed" if self.exit_code else "Succeeded"

    def _state(self) -> Object:
        if self.exit_code is None:
            return {"running": {}}
        reason = "OOMKilled" if self.out_of_memory else "Error"
        return {"terminated": {"exitCode": self.exit_code, "reason": reason}}


class Api:
    """What the cluster has, and what a test does to it."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = environment
        self.jobs: dict[str, Object] = {}
        self.train_jobs: dict[str, Object] = {}
        self.pods: dict[str, Pod] = {}
        self.created: list[str] = []
        self.problem: Object = {}  # what keeps new pods from running
        self.program: Callable[[list[str]], list[str]] = lambda command: LUTHIER + command[1:]
        self.lock = threading.RLock()

    # What the API does

    def create(self, plural: str, made: Object) -> tuple[int, Object]:
        there = self.jobs if plural == "jobs" else self.train_jobs
        name = made["metadata"]["name"]
        with self.lock:
            if name in there:
                return 409, _refusal(409, f'{plural} "{name}" already exists')
            if why := _invalid(plural, made):
                return 422, _refusal(422, why)
            there[name] = made | {"status": {}}
            self.created.append(name)
            if plural == "jobs" and not made["spec"].get("suspend"):
                self._run(name)
        return 201, made

    def find(self, plural: str, selector: str) -> list[Object]:
        with self.lock:
            if plural == "pods":
                found = [pod.view() for pod in self.pods.values()]
            else:
                found = list((self.jobs if plural == "jobs" else self.train_jobs).values())
            wanted = dict(one.split("=", 1) for one in selector.split(","))
            return [one for one in found if wanted.items() <= one["metadata"]["labels"].items()]

    def delete(self, plural: str, name: str) -> int:
        there = self.jobs if plural == "jobs" else self.train_jobs
        with self.lock:
            if name not in there:
                return 404
            there[name]["metadata"]["deletionTimestamp"] = "now"
            for pod in self._pods_of(name):
                self._stop(pod)
            if not any(pod.process and pod.exit_code is None for pod in self._pods_of(name)):
                self._remove(name)
        return 200

    # What happens in a cluster

    def admit(self) -> None:
        """Kueue has room: every suspended Job begins."""
        with self.lock:
            for name, job in self.jobs.items():
                if job["spec"].pop("suspend", False):
                    self._run(name)

    def run_again(self, name: str) -> Pod:
        """A second pod of the same Job, as happens when a machine is thought to be dead."""
        with self.lock:
            return self._run(name)

    def disrupt(self, name: str) -> None:
        """A machine is drained: its pods have their grace period, then they are killed."""
        with self.lock:
            for pod in self._pods_of(name):
                pod.disrupted = True
                self._stop(pod)

    def run_out_of_memory(self, name: str) -> None:
        """The kernel kills everything in the pods' memory group."""
        with self.lock:
            for pod in self._pods_of(name):
                pod.out_of_memory = True
                assert pod.process is not None
                os.killpg(pod.process.pid, signal.SIGKILL)

    def condition(self, name: str) -> str:
        """`Complete`, or `Failed` with its reason, or nothing yet."""
        conditions = self.jobs[name]["status"].get("conditions", [])
        return " ".join(f"{c['type']} {c.get('reason', '')}".strip() for c in conditions)

    def close(self) -> None:
        with self.lock:
            for pod in self.pods.values():
                if pod.process is not None and pod.exit_code is None:
                    os.killpg(pod.process.pid, signal.SIGKILL)

    # The kubelet and the Job controller

    def _run(self, name: str) -> Pod:
        template = self.jobs[name]["spec"]["template"]
        number = len(self._pods_of(name)) + 1
        labels = dict(template["metadata"]["labels"])
        pod = Pod(f"{name}-{number}", name, labels, template["spec"], problem=self.problem)
        self.pods[pod.name] = pod
        if not self.problem:
            (trainer,) = (c for c in pod.spec["containers"] if c["name"] == "trainer")
            pod.process = subprocess.Popen(
                self.program(trainer["command"]),
                cwd=REPO,
                env=self._environment,
                start_new_session=True,
                stdin=subprocess.DEVNULL,
            )
            threading.Thread(target=self._wait, args=(pod,), daemon=True).start()
        return pod

    def _wait(self, pod: Pod) -> None:
        assert pod.process is not None
        code = pod.process.wait()
        with self.lock:
            pod.exit_code = code if code >= 0 else 128 - code
            self._settle(pod)

    def _settle(self, pod: Pod) -> None:
        """What one pod's end means for its Job: podFailurePolicy, then backoffLimit 0."""
        job = self.jobs.get(pod.job)
        if job is None:
            return
        if "deletionTimestamp" in job["metadata"]:
            if all(one.exit_code is not None for one in self._pods_of(pod.job)):
                self._remove(pod.job)
        elif pod.exit_code == 0:
            _conclude(job, "Complete", "")
        elif (action := _action(job, pod)) == "Ignore":
            if all(one.exit_code is not None for one in self._pods_of(pod.job)):
                self._run(pod.job)
        else:
            _conclude(job, "Failed", action)
            for other in self._pods_of(pod.job):
                self._stop(other)

    def _stop(self, pod: Pod) -> None:
        process = pod.process
        if process is None or pod.exit_code is not None:
            return
        process.send_signal(signal.SIGTERM)
        grace = pod.spec["terminationGracePeriodSeconds"]
        killer = threading.Timer(grace, lambda: process.poll() is None and process.kill())
        killer.daemon = True
        killer.start()

    def _remove(self, name: str) -> None:
        self.jobs.pop(name, None)
        self.train_jobs.pop(name, None)
        self.pods = {n: pod for n, pod in self.pods.items() if pod.job != name}

    def _pods_of(self, name: str) -> list[Pod]:
        return [pod for pod in self.pods.values() if pod.job == name]


def _action(job: Object, pod: Pod) -> str:
    for rule in job["spec"].get("podFailurePolicy", {}).get("rules", ()):
        codes = rule.get("onExitCodes")
        if codes and pod.exit_code in codes["values"]:
            return "PodFailurePolicy" if rule["action"] == "FailJob" else str(rule["action"])
        if rule.get("onPodConditions") and pod.disrupted:
            return str(rule["action"])
    assert job["spec"]["backoffLimit"] == 0
    return "BackoffLimitExceeded"


def _conclude(job: Object, kind: str, reason: str) -> None:
    condition = {"type": kind, "status": "True"} | ({"reason": reason} if reason else {})
    job["status"].setdefault("conditions", []).append(condition)


def _invalid(plural: str, made: Object) -> str | None:
    if plural == "trainjobs":
        return _invalid_train_job(made)
    try:
        kubernetes_validate.validate(made, VERSION, strict=True)
        pod = {"apiVersion": "v1", "kind": "Pod"} | made["spec"]["template"]
        kubernetes_validate.validate(pod, VERSION, strict=True)
    except kubernetes_validate.ValidationError as error:
        return str(error)
    return None


# By field, the fields that TrainJobs in trainer.kubeflow.org/v1alpha1 have there, of those in use.
TRAIN_JOB = {
    "spec": {"runtimeRef", "trainer", "suspend"},
    "runtimeRef": {"apiGroup", "kind", "name"},
    "trainer": {"image", "command", "args", "numNodes", "numProcPerNode", "resourcesPerNode"},
}


def _invalid_train_job(made: Object) -> str | None:
    spec = made["spec"]
    parts = {"spec": spec, "runtimeRef": spec["runtimeRef"], "trainer": spec["trainer"]}
    for name, part in parts.items():
        if unknown := set(part) - TRAIN_JOB[name]:
            return f"unknown field in {name}: {unknown}"
    return None


def _refusal(code: int, message: str) -> Object:
    return {"kind": "Status", "status": "Failure", "code": code, "message": message}


@contextmanager
def kubernetes(environment: dict[str, str]) -> Iterator[tuple[str, Api]]:
    """A cluster with one namespace: the URL of its API, and the cluster."""
    api = Api(environment)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(api))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", api
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        api.close()


ROUTES = {
    f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs": "jobs",
    f"/api/v1/namespaces/{NAMESPACE}/pods": "pods",
    f"/apis/trainer.kubeflow.org/v1alpha1/namespaces/{NAMESPACE}/trainjobs": "trainjobs",
}


def _handler(api: Api) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(url.query).items()}
            items = api.find(ROUTES[url.path], query["labelSelector"])
            first, most = int(query.get("continue", 0)), int(query["limit"])
            more = str(first + most) if len(items) > first + most else ""
            page = {"items": items[first : first + most], "metadata": {"continue": more}}
            self._answer(200, page)

        def do_POST(self) -> None:
            url = urlsplit(self.path)
            assert parse_qs(url.query)["fieldValidation"] == ["Strict"]
            self._answer(*api.create(ROUTES[url.path], self._body()))

        def do_DELETE(self) -> None:
            path, _, name = self.path.rpartition("/")
            assert self._body()["propagationPolicy"] == "Foreground"
            self._answer(api.delete(ROUTES[path], name), {})

        def _body(self) -> Object:
            found: Object = json.loads(self.rfile.read(int(self.headers["content-length"])))
            return found

        def _answer(self, code: int, body: Object) -> None:
            data = json.dumps(body).encode()
            self.send_response(code)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


def wait_for(holds: Callable[[], bool], timeout_s: float = 120) -> None:
    until = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < until, "it never came to hold"
        time.sleep(0.05)
