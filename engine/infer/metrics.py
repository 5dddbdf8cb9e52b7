"""What the inference server counts, in a registry of its own."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_STEPS = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_MAX_ADAPTERS = 100  # that have a label of their own
_OTHERS = "other"
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """Names are luthier_inference_*.

    There may be thousands of adapters: the first hundred that generate have a label of their own,
    and the rest share one.
    """

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
        self.adapter_tokens = Counter(
            "luthier_inference_adapter_generated_tokens",
            "Tokens generated, by adapter; those that came late share a label.",
            ["adapter"],
            registry=self.registry,
        )
        self.queue_seconds = Histogram(
            "luthier_inference_queue_seconds",
            "From a sequence's arrival until it is in a batch.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.batch_rows = Histogram(
            "luthier_inference_batch_rows",
            "Sequences that share a step that generates.",
            buckets=_ROWS,
            registry=self.registry,
        )
        self.token_seconds = Histogram(
            "luthier_inference_inter_token_seconds",
            "Between two tokens of one sequence.",
            buckets=_STEPS,
            registry=self.registry,
        )
        self.prefix_tokens = Counter(
            "luthier_inference_prefix_tokens",
            "Prompt tokens whose attention state was copied instead of computed.",
            registry=self.registry,
        )
        self.turned_out = Counter(
            "luthier_inference_sequences_turned_out",
            "Sequences that lost their place to others for want of memory, and began anew.",
            registry=self.registry,
        )
        self._labels: set[str] = set()
        self.first_token_seconds = Histogram(
            "luthier_inference_time_to_first_token_seconds",
            "From the request until its first token, loading the adapter included.",
            buckets=_SECONDS,
            registry=self.registry,
        )

    def label_of(self, adapter: str) -> str:
        """The label that this adapter's tokens are counted under."""
        if adapter not in self._labels and len(self._labels) >= _MAX_ADAPTERS:
            return _OTHERS
        self._labels.add(adapter)
        return adapter
