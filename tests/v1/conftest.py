"""The service on real sockets, for OpenAI's own clients."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import openai
import pytest

from api.app import create_app
from api.services import Services, open_services
from tests.api.making import publish_adapter, unhurried
from tests.api.serving import serve
from tests.engine.infer import world as inference
from tests.engine.infer.world import World, write_base
from tests.v1.house import House, open_house

TEMPLATE = (
    "{% if tools %}tools: {{ tools | tojson }}\n{% endif %}"
    "{% for m in messages %}{{ m.role }}: {{ m.content }}"
    "{% for call in m.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}"
    "{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@dataclass(frozen=True)
class Live:
    """A running API in front of a running inference server, with one adapter."""

    url: str
    key: str
    services: Services
    world: World
    adapter_id: str

    def tenant_key(self, name: str) -> str:
        tenant = self.services.store.tenants.create(name)
        return self.services.store.tenants.issue_key(tenant.id, "test")[0]

    def client(self, key: str | None = None) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key or self.key, max_retries=0)

    def async_client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key=self.key, max_retries=0)

    @property
    def no_blanks(self) -> dict[str, int]:
        """A bias for documents: a random model would put blanks without end between their parts."""
        texts = {i: self.world.tokenizer.decode([i]) for i in range(400)}
        return {str(i): -100 for i, text in texts.items() if text != text.strip()}


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("live")
    base = write_base(folder / "base", context=8192)
    (base / "chat_template.jinja").write_text(TEMPLATE)
    plain = write_base(folder / "plain", context=8192)
    world = World(folder, base)
    with ExitStack() as stack:
        server = stack.enter_context(inference.serve(world))
        settings = unhurried(
            data_dir=folder / "data",
            base_models={"tiny": str(base), "plain": str(plain)},
            inference_url=str(server.base_url),
        )
        services = open_services(settings)
        adapter_id = publish_adapter(services, "ours", folder / "published")
        world.add_lora(adapter_id)
        tenant = services.store.tenants.find("ours")
        key, _ = services.store.tenants.issue_key(tenant.id, "test")
        port = stack.enter_context(serve(create_app(services)))
        yield Live(f"http://127.0.0.1:{port}", key, services, world, adapter_id)


@pytest.fixture
def client(live: Live) -> Iterator[openai.OpenAI]:
    """OpenAI's own client, of the tenant whose adapter there is."""
    with live.client() as client:
        yield client


@pytest.fixture(scope="session")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """`luthier serve` with an adapter that it trained."""
    with open_house(tmp_path_factory.mktemp("house") / "data") as house:
        yield house
