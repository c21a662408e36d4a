"""docs/observability.md names every metric and log field that there is, and no other."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from structlog.testing import capture_logs

from quire.app.settings import ServeSettings
from quire.app.telemetry.engine_metrics import EngineCollector
from quire.app.telemetry.logging import log_request
from quire.app.telemetry.metrics import Metrics
from quire.app.telemetry.process_metrics import ProcessCollector
from quire.app.telemetry.record import Asked, Content, RequestRecord
from quire.app.telemetry.service_metrics import ServiceCollector
from quire.engine.messages import KeyLimits
from quire.engine.sampling_params import SamplingParams
from tests.app.fake_engine import FakeEngine
from tests.app.test_metrics import STATUS

DOCS = Path(__file__).parents[2] / "docs" / "observability.md"


def documented(section: str) -> set[str]:
    """What the first column of the section's table names."""
    text = DOCS.read_text().split(f"\n## {section}\n")[1].split("\n## ")[0]
    rows = [row.split("|")[1] for row in text.splitlines() if row.startswith("|")]
    return {name for row in rows for name in re.findall(r"`([a-z0-9_:]+)`", row)}


def test_every_metric_is_documented_and_every_documented_one_exists() -> None:
    engine = FakeEngine()
    engine.status = cast(Any, STATUS)
    service: Any = SimpleNamespace(
        settings=SimpleNamespace(serve=ServeSettings(api_key_file="f"), engine_starts_file="/nowhere"),
        keys=SimpleNamespace(healthy=True, loaded_at=1.0), tls=SimpleNamespace(healthy=True, not_after=1.0))
    metrics = Metrics("m")
    collectors = [EngineCollector(cast(Any, engine), ServeSettings().engine, "m"), ServiceCollector(service),
                  ProcessCollector()]
    exposed = set(re.findall(r"^# TYPE (\S+)", metrics.expose(collectors).decode(), re.MULTILINE))
    assert {name for name in exposed if not name.endswith("_created")} == documented("Metrics")


def test_every_reason_of_a_refusal_is_documented_and_there_from_the_start() -> None:
    text = DOCS.read_text().split("\nReasons of a refusal.")[1].split("\n\n")[0]
    exposed = Metrics("m").expose([]).decode()
    assert set(re.findall(r"`([a-z_]+)`", text)) == set(re.findall(
        r'^quire:requests_rejected_total\{reason="(\w+)"\} 0\.0$', exposed, re.MULTILINE))


def test_every_log_field_is_documented_and_every_documented_one_exists() -> None:
    record = RequestRecord(
        "id", "POST", "/", "127.0.0.1", "trace", 1.0, ended=5.0, status=200, key=KeyLimits("k"), rejected="r",
        aborted="a", asked=Asked("chat", "m", False, SamplingParams(), "id"), content=Content(["p"], {0: "o"}),
        num_samples=1, longest_output=3, num_resumed=1, submitted=1.0, taken_up=2.0, first_token=3.0, last_token=4.0)
    with capture_logs() as logs:
        log_request(record)
    fields = set(logs[0]) - {"log_level"} | {"level", "timestamp"}
    assert fields == documented("Logs")
