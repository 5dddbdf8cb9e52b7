"""Writes prometheusrule.yaml from rules.yaml: the same text as an object of Prometheus Operator."""

from pathlib import Path
from textwrap import indent

HERE = Path(__file__).resolve().parent
HEAD = """\
# Made from rules.yaml by `make k8s-rules`; change that one.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: luthier
  namespace: luthier
spec:
"""


def prometheusrule() -> str:
    return HEAD + indent((HERE / "rules.yaml").read_text(), "  ")


if __name__ == "__main__":
    (HERE / "prometheusrule.yaml").write_text(prometheusrule())
