"""Renders the chart with Helm's own engine: reads values as JSON, one set a line, and writes a line of JSON for each: the manifests, or why there are none."""

import json
import logging
import sys

import yaml
from helm_python.chart import Chart, lint

logging.disable(logging.CRITICAL)
chart = sys.argv[1]
report = lint(chart, strict=True)
findings = [m for m in report["messages"] if m["severity"] > 1] + report["errors"]
print(json.dumps({"lint": findings}))
with Chart.load(chart) as loaded:
    for line in sys.stdin:
        values = json.loads(line)
        try:
            loaded.validate_schema(values)
            files = loaded.render(values=values, name="demo", namespace="functions")
        except Exception as error:
            print(json.dumps({"refused": str(error)}))
            continue
        manifests = [part for name, text in files.items() if name.endswith(".yaml") for part in yaml.safe_load_all(text) if part]
        print(json.dumps({"manifests": manifests}))
