"""Reads OpenMetrics text from STDIN with the parser of the Python client and writes each series as JSON."""

import json
import sys

from prometheus_client.openmetrics.parser import text_string_to_metric_families

series = {}
for family in text_string_to_metric_families(sys.stdin.read()):
    for sample in family.samples:
        labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
        series[f"{sample.name}{{{labels}}}"] = {
            "value": sample.value,
            "exemplar": sample.exemplar.labels if sample.exemplar else None,
        }
json.dump(series, sys.stdout)
