"""What the inference server counts, in a registry of its own."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """Names are luthier_inference_*. No label carries an adapter id: there may be thousands."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "luthier_inference_requests",
            "Requests for text or scores by outcome: ok, cancelled, or the error's code.",
            ["outcome"],
            registry=self.registry,
        )
        self.tokens_in = Counter(
            "luthier_inference_prompt_tokens", "Prompt tokens fed.", registry=self.registry
        )
        self.tokens_out = Counter(
            "luthier_inference_generated_tokens", "Tokens generated.", registry=self.registry
        )
        self.sequences = Gauge(
            "luthier_inference_sequences",
            "Sequences held, waiting ones too.",
            registry=self.registry,
        )
        self.resident = Gauge(
            "luthier_inference_resident_adapters",
            "Adapters in memory.",
            ["kind"],
            registry=self.registry,
        )
        self.loads = Counter(
            "luthier_inference_adapter_loads",
            "Adapters loaded on request: ok, or the error's code.",
            ["outcome"],
            registry=self.registry,
        )
        self.load_seconds = Histogram(
            "luthier_inference_adapter_load_seconds",
            "From the first request for an adapter until it is verified and in memory.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.evictions = Counter(
            "luthier_inference_adapter_evictions",
            "Adapters put out of memory.",
            registry=self.registry,
        )
        self.first_token_seconds = Histogram(
            "luthier_inference_time_to_first_token_seconds",
            "From the request until its first token, loading the adapter included.",
            buckets=_SECONDS,
            registry=self.registry,
        )
