"""The Grafana dashboard: every query parses and asks for what is exported, panels and data source hang together."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.promql import metrics_in, unknown_in
from tests.deploy.test_rules import RECORDED

GRAFANA = Path(__file__).parents[2] / "deploy" / "grafana"
DASHBOARD: dict[str, Any] = json.loads((GRAFANA / "dashboards" / "quire.json").read_text())
PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES: list[str] = [target["expr"] for panel in PANELS for target in panel["targets"]]
VARIABLES: list[str] = [variable["name"] for variable in DASHBOARD["templating"]["list"]]


def test_every_query_asks_only_for_what_is_exported_or_recorded() -> None:
    for query in QUERIES:
        assert metrics_in(query), query
        assert not unknown_in(query, RECORDED), query
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            assert not unknown_in(variable["query"]["query"].partition("(")[2].rpartition(",")[0], RECORDED)


def test_a_metric_that_nobody_exports_is_noticed() -> None:
    query = 'sum by (le) (rate(vllm:no_such_seconds_bucket{job="x"}[5m])) / on (job) quire:engine_ready or up'
    assert metrics_in(query) == {"vllm:no_such_seconds_bucket", "quire:engine_ready", "up"}
    assert unknown_in(query, set()) == {"vllm:no_such_seconds_bucket"}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="Debian's package prometheus is missing")
def test_every_query_is_promql(tmp_path: Path) -> None:
    rules = [{"record": f"query:{number}", "expr": _filled_in(query)} for number, query in enumerate(QUERIES)]
    (tmp_path / "queries.yml").write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    run = subprocess.run(["promtool", "check", "rules", "--lint=none", "queries.yml"], cwd=tmp_path,
                         capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert f"{len(QUERIES)} rules found" in run.stdout


def _filled_in(query: str) -> str:
    """With Grafana's variables replaced; none is left over."""
    query = query.replace("$__rate_interval", "1m").replace("$__range", "1h")
    for name in VARIABLES:
        query = re.sub(rf"\${name}\b", ".*", query)
    assert "$" not in query, query
    return query


def test_every_panel_says_what_it_shows_and_in_which_unit() -> None:
    titles = [panel["title"] for panel in PANELS]
    assert len(set(titles)) == len(titles)
    for panel in PANELS:
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert len(panel["targets"]) == 1 or all(target["legendFormat"] for target in panel["targets"]), panel["title"]


def test_panels_do_not_overlap() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    for one, other in combinations([panel["gridPos"] for panel in DASHBOARD["panels"]], 2):
        apart_x = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        apart_y = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert apart_x or apart_y, (one, other)
        assert one["x"] + one["w"] <= 24


def test_grafana_finds_data_source_and_dashboard() -> None:
    provisioning = GRAFANA / "provisioning"
    source = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"][0]
    provider = yaml.safe_load((provisioning / "dashboards" / "quire.yaml").read_text())["providers"][0]
    grafana = yaml.safe_load((GRAFANA.parents[1] / "compose.yaml").read_text())["services"]["grafana"]
    mounted = {volume.split(":")[1]: volume.split(":")[0] for volume in grafana["volumes"]}
    assert mounted[provider["options"]["path"]] == "./deploy/grafana/dashboards"
    assert mounted["/etc/grafana/provisioning"] == "./deploy/grafana/provisioning"
    assert source["isDefault"] and source["type"] == "prometheus"
    scraped = yaml.safe_load((GRAFANA.parent / "prometheus" / "prometheus.yml").read_text())["global"]
    assert source["jsonData"]["timeInterval"] == scraped["scrape_interval"]
    assert {target["datasource"]["uid"] for panel in PANELS for target in panel["targets"]} == {"${datasource}"}
