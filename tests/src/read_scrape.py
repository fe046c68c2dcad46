"""Reads OpenMetrics text from STDIN with the parser of Prometheus' Python client and writes its families and series as JSON."""

import json
import sys

from prometheus_client.openmetrics.parser import text_string_to_metric_families

families, series = {}, {}
for family in text_string_to_metric_families(sys.stdin.read()):
    families[family.name] = family.type
    for sample in family.samples:
        labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
        series[f"{sample.name}{{{labels}}}"] = sample.value
json.dump({"families": families, "series": series}, sys.stdout)
