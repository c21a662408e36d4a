"""Prometheus' rules: they parse, fire when they should and only then, ask for what is exported, and each alert has a
line in the runbook. Prometheus and Alertmanager themselves read the shipped files."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.deploy.promql import metrics_in, unknown_in
from tests.deploy.run_prometheus import shipped_prometheus
from tests.e2e.server import serving, until

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load((PROMETHEUS / "rules.yml").read_text())["groups"] for rule in group["rules"]]
ALERTS = [rule for rule in RULES if "alert" in rule]
RECORDED = {rule["record"] for rule in RULES if "record" in rule}

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="Debian's package prometheus is missing")


def tool(*command: str, cwd: Path = PROMETHEUS) -> str:
    run = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout + run.stderr


@needs_promtool
def test_prometheus_takes_its_configuration_and_rules() -> None:
    tool("promtool", "check", "config", "prometheus.yml")
    assert f"{len(RULES)} rules found" in tool("promtool", "check", "rules", "--lint=all", "--lint-fatal", "rules.yml")


@needs_promtool
def test_alerts_fire_when_they_should_and_only_then() -> None:
    assert "FAILED" not in tool("promtool", "test", "rules", "rules_test.yml")


@pytest.mark.slow
@needs_promtool
@pytest.mark.parametrize("change", [
    ("p95_5m > 5", "p95_5m > 50"), ("14.4 * 0.001", "40 * 0.001"), ("[1h]) > 0", "[1h]) > 2"), ("== 0", "== 2")])
def test_the_rules_tests_notice_a_changed_rule(change: tuple[str, str], tmp_path: Path) -> None:
    text = (PROMETHEUS / "rules.yml").read_text()
    assert change[0] in text
    (tmp_path / "rules.yml").write_text(text.replace(*change))
    shutil.copy(PROMETHEUS / "rules_test.yml", tmp_path)
    assert subprocess.run(["promtool", "test", "rules", "rules_test.yml"], cwd=tmp_path, capture_output=True).returncode


def test_every_alert_is_tested_firing() -> None:
    expected = set(re.findall(r'alertname="(\w+)"', (PROMETHEUS / "rules_test.yml").read_text()))
    assert expected == {rule["alert"] for rule in ALERTS}


def test_rules_ask_only_for_what_is_exported_or_recorded() -> None:
    for rule in RULES:
        assert metrics_in(rule["expr"]), rule
        assert not unknown_in(rule["expr"], RECORDED), rule


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_every_alert_says_how_urgent_it_is_and_where_to_read_on(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in {"page", "ticket"}
    assert {"summary", "description", "runbook"} == set(rule["annotations"])
    path, _, heading = rule["annotations"]["runbook"].partition("#")
    sections = re.split(r"^#+ (.+)$", (ROOT / path).read_text(), flags=re.MULTILINE)
    by_anchor = {title.lower().replace(" ", "-"): text for title, text in zip(sections[1::2], sections[2::2])}
    assert f"`{rule['alert']}`" in by_anchor[heading]


@pytest.mark.skipif(shutil.which("amtool") is None, reason="Debian's package prometheus-alertmanager is missing")
def test_alertmanager_takes_its_configuration_and_routes_by_urgency() -> None:
    config = ROOT / "deploy" / "alertmanager" / "alertmanager.yml"
    tool("amtool", "check-config", str(config))
    for severity in ("page", "ticket"):
        routed = tool("amtool", "config", "routes", "test", f"--config.file={config}", f"severity={severity}")
        assert routed.splitlines()[0] == severity


def test_alertmanager_knows_the_alerts_that_it_names() -> None:
    config = yaml.safe_load((ROOT / "deploy" / "alertmanager" / "alertmanager.yml").read_text())
    names = {rule["alert"] for rule in ALERTS}
    for inhibition in config["inhibit_rules"]:
        for matcher in inhibition["source_matchers"] + inhibition["target_matchers"]:
            _, operator, value = re.split(r"(=~|!=|=)", matcher)
            wanted = re.compile(value.strip('"') if operator == "=~" else re.escape(value.strip('"')))
            assert any(wanted.fullmatch(name) for name in names), matcher


@pytest.mark.skipif(shutil.which("prometheus-blackbox-exporter") is None,
                    reason="Debian's package prometheus-blackbox-exporter is missing")
def test_the_blackbox_exporter_takes_its_configuration() -> None:
    tool("prometheus-blackbox-exporter", "--config.check", "--config.file=blackbox.yml")
    modules = yaml.safe_load((PROMETHEUS / "blackbox.yml").read_text())["modules"]
    scraped = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["scrape_configs"]
    assert [job["params"]["module"] for job in scraped if job["job_name"] == "edge"] == [list(modules)]


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving("-asc", "1", "--admin-port", "0") as server:
        metrics = server.events("admin port")[0]["url"].removeprefix("http://")
        with shipped_prometheus(metrics, tmp_path_factory.mktemp("prometheus")) as url:
            yield url


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("prometheus") is None, reason="Debian's package prometheus is missing")
def test_prometheus_scrapes_the_server_and_every_rule_works(prometheus: str) -> None:
    def ask(path: str, **parameters: str) -> Any:
        return httpx.get(f"{prometheus}/api/v1/{path}", params=parameters, timeout=10).json()["data"]

    def rules() -> list[dict[str, Any]]:
        return [rule for group in ask("rules")["groups"] for rule in group["rules"]]

    until(lambda: all(rule["health"] != "unknown" for rule in rules()), 60)
    assert {rule["health"] for rule in rules()} == {"ok"}, rules()
    until(lambda: ask("query", query='up{job="quire"} == 1')["result"], 60)
    until(lambda: ask("query", query='quire:engine_ready{job="quire"} == 1')["result"], 60)
    alarmed = {alert["labels"]["alertname"] for alert in ask("alerts")["alerts"] if alert["state"] == "firing"}
    assert not alarmed
