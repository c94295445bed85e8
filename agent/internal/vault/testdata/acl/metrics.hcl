# dbops-metrics: scrapes metrics, and can do nothing else.

path "dbops/metrics" {
  capabilities = ["read"]
}
