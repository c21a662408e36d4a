#!/bin/sh
# The alerts of deploy/prometheus/rules.yml as a PrometheusRule for the Prometheus operator, on standard output:
#   deploy/k8s/prometheus-rule.sh | kubectl apply -f -
# kustomize cannot put a file's content into a field, and a second copy of the rules would go stale.
set -eu
cat <<'END'
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: quire
  namespace: quire
  labels:
    app.kubernetes.io/name: quire
spec:
END
sed -e '/^---$/d' -e 's/^./  &/' "${1:-$(dirname "$0")/../prometheus/rules.yml}"
