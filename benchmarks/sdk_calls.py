"""A call of each method of OpenAI's SDK that Luthier's users may make, and what it must give.

A call raises where the method does not do what its users expect of it; it finds in `made` what the
calls before it left there.
"""

import hashlib
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import openai
from pydantic import BaseModel

HI: list[Any] = [{"role": "user", "content": "hi"}]
SHORT: dict[str, Any] = {"temperature": 0, "max_tokens": 8}
GRADER: Any = {
    "type": "string_check",
    "name": "same",
    "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}",
    "operation": "eq",
}
EVENTS: Any = ["fine_tuning.job.succeeded", "fine_tuning.job.failed", "fine_tuning.job.cancelled"]
UNKNOWN = "chatcmpl-0123456789abcdef01234567"
JOB_S = 120.0
DELIVERY_S = 15.0


class Yes(BaseModel):
    yes: bool


class Delivery(BaseModel):
    body: bytes
    headers: dict[str, str]


@dataclass
class Scene:
    """A client of a running service, its models, training rows, and a receiver of webhooks."""

    client: openai.OpenAI
    base: str
    adapter_id: str
    rows: bytes
    receiver: str
    deliveries: list[Delivery]
    made: dict[str, Any] = field(default_factory=dict)

    def rows_of(self, lines: int) -> tuple[str, bytes]:
        return "rows.jsonl", b"".join(self.rows.splitlines(keepends=True)[:lines])

    def job(self, epochs: int) -> Any:
        """A new job of the base on some rows."""
        file = self.client.files.create(file=self.rows_of(60), purpose="fine-tune")
        hyperparameters: Any = {"n_epochs": epochs, "batch_size": 8}
        return self.client.fine_tuning.jobs.create(
            model=self.base,
            training_file=file.id,
            seed=epochs,
            method={"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
        )

    def until(self, job_id: str, *statuses: str) -> Any:
        deadline = time.monotonic() + JOB_S
        while time.monotonic() < deadline:
            job = self.client.fine_tuning.jobs.retrieve(job_id)
            if job.status in statuses:
                return job
            time.sleep(0.3)
        raise AssertionError(f"job {job_id} is {job.status}, not {statuses} after {JOB_S:.0f} s")


Call = Callable[[Scene], Any]


@contextmanager
def receiver() -> Iterator[tuple[str, list[Delivery]]]:
    """A server on loopback that keeps what webhooks send it."""
    got: list[Delivery] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            got.append(Delivery(body=body, headers=headers))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            """Nothing: the table is what is said."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/hook", got
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def create_file(scene: Scene) -> None:
    made = scene.client.files.create(file=scene.rows_of(40), purpose="fine-tune")
    assert made.object == "file"
    scene.made["file"] = made.id


def wait_for_file(scene: Scene) -> None:
    assert scene.client.files.wait_for_processing(scene.made["file"]).status == "processed"


def list_files(scene: Scene) -> None:
    assert scene.made["file"] in [file.id for file in scene.client.files.list(limit=1)]


def retrieve_file(scene: Scene) -> None:
    found = scene.client.files.retrieve(scene.made["file"])
    assert found.bytes == len(scene.rows_of(40)[1])


def content_of_file(scene: Scene) -> None:
    assert scene.client.files.content(scene.made["file"]).read() == scene.rows_of(40)[1]


def old_content_of_file(scene: Scene) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        found = scene.client.files.retrieve_content(scene.made["file"])
    assert found.encode() == scene.rows_of(40)[1]


def delete_file(scene: Scene) -> None:
    assert scene.client.files.delete(scene.made["file"]).deleted
    assert scene.made["file"] not in [file.id for file in scene.client.files.list()]


def create_upload(scene: Scene) -> None:
    name, rows = scene.rows_of(50)
    upload = scene.client.uploads.create(
        bytes=len(rows), filename=name, mime_type="application/jsonl", purpose="fine-tune"
    )
    assert upload.status == "pending"
    scene.made["upload"] = upload.id


def create_part(scene: Scene) -> None:
    _, rows = scene.rows_of(50)
    half = len(rows) // 2
    scene.made["parts"] = [
        scene.client.uploads.parts.create(scene.made["upload"], data=piece).id
        for piece in (rows[:half], rows[half:])
    ]


def complete_upload(scene: Scene) -> None:
    _, rows = scene.rows_of(50)
    digest = hashlib.md5(rows).hexdigest()
    done = scene.client.uploads.complete(
        scene.made["upload"], part_ids=scene.made["parts"], md5=digest
    )
    assert done.status == "completed"
    assert done.file is not None
    assert scene.client.files.content(done.file.id).read() == rows


def cancel_upload(scene: Scene) -> None:
    upload = scene.client.uploads.create(
        bytes=10, filename="x.jsonl", mime_type="application/jsonl", purpose="fine-tune"
    )
    assert scene.client.uploads.cancel(upload.id).status == "cancelled"


def upload_chunked(scene: Scene) -> None:
    name, rows = scene.rows_of(45)
    done = scene.client.uploads.upload_file_chunked(
        file=rows,
        filename=name,
        bytes=len(rows),
        mime_type="application/jsonl",
        purpose="fine-tune",
        part_size=1 + len(rows) // 3,
    )
    assert done.status == "completed"


def create_job(scene: Scene) -> None:
    job = scene.job(1)
    assert job.object == "fine_tuning.job"
    scene.made["job"] = job.id


def retrieve_job(scene: Scene) -> None:
    job = scene.until(scene.made["job"], "succeeded", "failed")
    assert job.status == "succeeded", job.error
    assert (job.trained_tokens or 0) > 0
    scene.made["tuned"] = job.fine_tuned_model


def list_jobs(scene: Scene) -> None:
    assert scene.made["job"] in [job.id for job in scene.client.fine_tuning.jobs.list(limit=5)]


def list_events(scene: Scene) -> None:
    events = list(scene.client.fine_tuning.jobs.list_events(scene.made["job"], limit=50))
    assert {event.object for event in events} == {"fine_tuning.job.event"}
    assert any(event.type == "metrics" for event in events)


def list_checkpoints(scene: Scene) -> None:
    page = scene.client.fine_tuning.jobs.checkpoints.list(scene.made["job"])
    assert all(each.fine_tuning_job_id == scene.made["job"] for each in page)


def pause_job(scene: Scene) -> None:
    scene.made["long job"] = scene.job(60).id
    scene.until(scene.made["long job"], "running")
    scene.client.fine_tuning.jobs.pause(scene.made["long job"])
    scene.until(scene.made["long job"], "paused")


def resume_job(scene: Scene) -> None:
    scene.client.fine_tuning.jobs.resume(scene.made["long job"])
    scene.until(scene.made["long job"], "queued", "running")


def cancel_job(scene: Scene) -> None:
    scene.client.fine_tuning.jobs.cancel(scene.made["long job"])
    scene.until(scene.made["long job"], "cancelled")


def validate_grader(scene: Scene) -> None:
    found = scene.client.fine_tuning.alpha.graders.validate(grader=GRADER)
    assert found.grader is not None


def run_grader(scene: Scene) -> None:
    for answer, reward in (("42", 1.0), ("43", 0.0)):
        found = scene.client.fine_tuning.alpha.graders.run(
            grader=GRADER, model_sample="42", item={"answer": answer}
        )
        assert found.reward == reward


def share_checkpoint(scene: Scene) -> None:
    scene.client.fine_tuning.checkpoints.permissions.create(
        scene.adapter_id, project_ids=["proj_1"]
    )


def list_shares(scene: Scene) -> None:
    list(scene.client.fine_tuning.checkpoints.permissions.list(scene.adapter_id))


def retrieve_shares(scene: Scene) -> None:
    scene.client.fine_tuning.checkpoints.permissions.retrieve(scene.adapter_id)


def delete_share(scene: Scene) -> None:
    scene.client.fine_tuning.checkpoints.permissions.delete(
        "cp_1", fine_tuned_model_checkpoint=scene.adapter_id
    )


def list_models(scene: Scene) -> None:
    found = {model.id for model in scene.client.models.list()}
    assert {scene.base, scene.adapter_id} <= found


def retrieve_model(scene: Scene) -> None:
    for name in (scene.base, scene.adapter_id):
        model = scene.client.models.retrieve(name)
        assert (model.id, model.object) == (name, "model")


def delete_model(scene: Scene) -> None:
    assert scene.client.models.delete(scene.made["tuned"]).deleted
    try:
        scene.client.models.retrieve(scene.made["tuned"])
    except openai.NotFoundError:
        return
    raise AssertionError("a deleted model is still there")


def create_chat(scene: Scene) -> None:
    for model in (scene.base, scene.adapter_id):
        answer = scene.client.chat.completions.create(model=model, messages=HI, **SHORT)
        assert answer.choices[0].message.content
    pieces = scene.client.chat.completions.create(
        model=scene.base, messages=HI, stream=True, **SHORT
    )
    assert len([piece for piece in pieces if piece.choices]) > 2


def parse_chat(scene: Scene) -> None:
    answer = scene.client.chat.completions.parse(
        model=scene.base, messages=HI, response_format=Yes, temperature=0, max_tokens=64
    )
    assert isinstance(answer.choices[0].message.parsed, Yes)


def stream_chat(scene: Scene) -> None:
    with scene.client.chat.completions.stream(
        model=scene.base, messages=HI, response_format=Yes, temperature=0, max_tokens=64
    ) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert "content.delta" in kinds
    assert isinstance(final.choices[0].message.parsed, Yes)


def list_chats(scene: Scene) -> None:
    list(scene.client.chat.completions.list())


def retrieve_chat(scene: Scene) -> None:
    scene.client.chat.completions.retrieve(UNKNOWN)


def update_chat(scene: Scene) -> None:
    scene.client.chat.completions.update(UNKNOWN, metadata={"a": "b"})


def delete_chat(scene: Scene) -> None:
    scene.client.chat.completions.delete(UNKNOWN)


def messages_of_chat(scene: Scene) -> None:
    list(scene.client.chat.completions.messages.list(UNKNOWN))


def create_completion(scene: Scene) -> None:
    answer = scene.client.completions.create(
        model=scene.base, prompt=["Once", "Twice"], logprobs=2, echo=True, **SHORT
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.choices[0].text.startswith("Once")
    pieces = scene.client.completions.create(
        model=scene.adapter_id, prompt="Once", stream=True, **SHORT
    )
    assert "".join(piece.choices[0].text for piece in pieces if piece.choices)


def event_types(scene: Scene) -> None:
    assert set(EVENTS) <= set(scene.client.webhooks.event_types.list().data)


def create_endpoint(scene: Scene) -> None:
    made = scene.client.webhooks.create(name="ours", url=scene.receiver, event_types=EVENTS)
    assert made.signing_secret.startswith("whsec_")
    scene.made["endpoint"], scene.made["secret"] = made.id, made.signing_secret


def list_endpoints(scene: Scene) -> None:
    assert scene.made["endpoint"] in [each.id for each in scene.client.webhooks.list()]


def retrieve_endpoint(scene: Scene) -> None:
    assert scene.client.webhooks.retrieve(scene.made["endpoint"]).url == scene.receiver


def update_endpoint(scene: Scene) -> None:
    changed = scene.client.webhooks.update(
        scene.made["endpoint"], name="renamed", url=scene.receiver, event_types=EVENTS
    )
    assert changed.name == "renamed"


def try_endpoint(scene: Scene) -> None:
    scene.client.webhooks.test(scene.made["endpoint"], event_type=EVENTS[0])
    deadline = time.monotonic() + DELIVERY_S
    while not scene.deliveries:
        assert time.monotonic() < deadline, "nothing arrived"
        time.sleep(0.1)
    scene.made["delivery"] = scene.deliveries[-1]


def verify_signature(scene: Scene) -> None:
    got = scene.made["delivery"]
    scene.client.webhooks.verify_signature(got.body, got.headers, secret=scene.made["secret"])
    try:
        scene.client.webhooks.verify_signature(
            got.body + b" ", got.headers, secret=scene.made["secret"]
        )
    except openai.InvalidWebhookSignatureError:
        return
    raise AssertionError("a changed body passes")


def unwrap_event(scene: Scene) -> None:
    got = scene.made["delivery"]
    event = scene.client.webhooks.unwrap(got.body, got.headers, secret=scene.made["secret"])
    assert event.type == EVENTS[0]


def rotate_secret(scene: Scene) -> None:
    changed = scene.client.webhooks.rotate_secret(scene.made["endpoint"])
    assert changed.signing_secret != scene.made["secret"]


def delete_endpoint(scene: Scene) -> None:
    scene.client.webhooks.delete(scene.made["endpoint"])
    assert scene.made["endpoint"] not in [each.id for each in scene.client.webhooks.list()]


# In the order in which they can be called.
CALLS: dict[str, Call] = {
    "files.create": create_file,
    "files.wait_for_processing": wait_for_file,
    "files.list": list_files,
    "files.retrieve": retrieve_file,
    "files.content": content_of_file,
    "files.retrieve_content": old_content_of_file,
    "files.delete": delete_file,
    "uploads.create": create_upload,
    "uploads.parts.create": create_part,
    "uploads.complete": complete_upload,
    "uploads.cancel": cancel_upload,
    "uploads.upload_file_chunked": upload_chunked,
    "webhooks.event_types.list": event_types,
    "webhooks.create": create_endpoint,
    "webhooks.list": list_endpoints,
    "webhooks.retrieve": retrieve_endpoint,
    "webhooks.update": update_endpoint,
    "webhooks.test": try_endpoint,
    "webhooks.verify_signature": verify_signature,
    "webhooks.unwrap": unwrap_event,
    "webhooks.rotate_secret": rotate_secret,
    "webhooks.delete": delete_endpoint,
    "fine_tuning.jobs.create": create_job,
    "fine_tuning.jobs.retrieve": retrieve_job,
    "fine_tuning.jobs.list": list_jobs,
    "fine_tuning.jobs.list_events": list_events,
    "fine_tuning.jobs.checkpoints.list": list_checkpoints,
    "fine_tuning.jobs.pause": pause_job,
    "fine_tuning.jobs.resume": resume_job,
    "fine_tuning.jobs.cancel": cancel_job,
    "fine_tuning.alpha.graders.validate": validate_grader,
    "fine_tuning.alpha.graders.run": run_grader,
    "fine_tuning.checkpoints.permissions.create": share_checkpoint,
    "fine_tuning.checkpoints.permissions.list": list_shares,
    "fine_tuning.checkpoints.permissions.retrieve": retrieve_shares,
    "fine_tuning.checkpoints.permissions.delete": delete_share,
    "models.list": list_models,
    "models.retrieve": retrieve_model,
    "models.delete": delete_model,
    "chat.completions.create": create_chat,
    "chat.completions.parse": parse_chat,
    "chat.completions.stream": stream_chat,
    "chat.completions.list": list_chats,
    "chat.completions.retrieve": retrieve_chat,
    "chat.completions.update": update_chat,
    "chat.completions.delete": delete_chat,
    "chat.completions.messages.list": messages_of_chat,
    "completions.create": create_completion,
}
