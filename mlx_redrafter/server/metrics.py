"""What the server counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_FIRST = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300)
_BETWEEN = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)


class Metrics:
    """Counters of one server; nothing is shared between servers of one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ["model"]

        def counter(name: str, text: str, more: tuple[str, ...] = ()) -> Counter:
            return Counter(f"redrafter_{name}", text, [*labels, *more], registry=self.registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"redrafter_{name}", text, labels, registry=self.registry)

        self.answers = counter("answers", "Answers that ended, by reason", ("reason",))
        self.prompt_tokens = counter("prompt_tokens", "Tokens of prompts")
        self.cached_tokens = counter("cached_prompt_tokens", "Of these, found in the cache")
        self.tokens = counter("generated_tokens", "Tokens of answers")
        self.drafted = counter("drafted_tokens", "Candidates verified")
        self.accepted = counter("accepted_tokens", "Candidates accepted")
        self.steps = counter("steps", "Steps of sequences")
        self.running = gauge("running_sequences", "Sequences that are decoded now")
        self.waiting = gauge("waiting_sequences", "Sequences that wait")
        self.cache_bytes = gauge("prefix_cache_bytes", "Memory that the prefix cache holds")
        self.first_token = self._histogram("first_token_seconds", "Time to first token", _FIRST)
        self.between = self._histogram("between_tokens_seconds", "Time between tokens", _BETWEEN)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(
            f"redrafter_{name}", text, ["model"], registry=self.registry, buckets=buckets
        )

    def text(self) -> bytes:
        """All of them in Prometheus' text format."""
        return bytes(generate_latest(self.registry))
