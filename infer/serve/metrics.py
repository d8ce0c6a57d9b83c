"""Metrics of the server, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.process_collector import ProcessCollector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infer.engine import Drawing, Engine, StoppedError, TimeLimitError

SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """Counters of requests and pictures; every one begins with `ic_jax_`."""

    def __init__(self, engine: Engine):
        self.registry = registry = CollectorRegistry()
        self._requests = Counter(
            "ic_jax_requests", "HTTP requests", ["path", "status"], registry=registry
        )
        self._pictures = Counter(
            "ic_jax_pictures", "Pictures by their end", ["end"], registry=registry
        )
        self._seconds = Histogram(
            "ic_jax_picture_seconds",
            "Time from the request to the picture",
            buckets=SECONDS,
            registry=registry,
        )
        self._waiting_seconds = Histogram(
            "ic_jax_waiting_seconds",
            "Time from the request to the start of drawing",
            buckets=SECONDS,
            registry=registry,
        )
        self._batch = Histogram(
            "ic_jax_batch_pictures",
            "Pictures that were drawn together with one, itself included",
            buckets=(1, 2, 4, 8, 16),
            registry=registry,
        )
        gauges = {"waiting": lambda: engine.waiting, "drawing": lambda: engine.drawing}
        for state, count in gauges.items():
            gauge = Gauge(f"ic_jax_pictures_{state}", f"Pictures {state} now", registry=registry)
            gauge.set_function(count)
        ProcessCollector(registry=registry)

    def watch(self, drawing: Drawing) -> None:
        """Count a picture when it ends."""
        drawing.add_done_callback(lambda _: self._ended(drawing))

    def text(self) -> bytes:
        """Return the metrics in Prometheus' format."""
        return generate_latest(self.registry)

    def count_requests(self, app: ASGIApp, paths: set[str]) -> ASGIApp:
        """Return an application that counts its answers; other paths than these are "other"."""

        async def counted(scope: Scope, receive: Receive, send: Send) -> None:
            async def send_counted(message: Message) -> None:
                if message["type"] == "http.response.start":
                    path = scope["path"] if scope["path"] in paths else "other"
                    self._requests.labels(path, message["status"]).inc()
                await send(message)

            await app(scope, receive, send_counted)

        return counted

    def _ended(self, drawing: Drawing) -> None:
        self._pictures.labels(_end(drawing)).inc()
        if drawing.started is not None:
            self._waiting_seconds.observe(drawing.started - drawing.submitted)
        if not drawing.cancelled() and drawing.exception() is None:
            self._seconds.observe(drawing.seconds)
            self._batch.observe(drawing.batch)


def _end(drawing: Drawing) -> str:
    if drawing.cancelled():
        return "cancelled"
    match drawing.exception():
        case None:
            return "drawn"
        case TimeLimitError():
            return "overdue"
        case StoppedError():
            return "stopped"
    return "failed"
