# /etc/dbops/agent.hcl: configuration of dbops-agent on the host db1.
# "dbops setup -agent=db1" prints one that fits your Vault.

name = "db1" # of its AppRole and of agents/db1

# state_dir    = "/var/lib/dbops-agent" # journal and undelivered events: keep it
# run_dir      = "/run/dbops-agent"     # sockets and the token, in memory
max_operations = 1
log_level      = "info"
log_format     = "json"

vault {
  address = "https://vault.example.com:8200"
  ca_cert = "/etc/dbops/vault-ca.pem"
  mount   = "dbops"

  approle {
    mount          = "approle"
    role_id_file   = "/var/lib/dbops-agent/db1.role-id"
    secret_id_file = "/var/lib/dbops-agent/db1.wrapped-secret-id"

    # The one standing secret: it can be opened once, is removed after use, and a
    # restart goes on with the token. A reboot needs a new one (-new-secret-id).
    wrapped                     = true
    remove_secret_id_after_read = true
    keep_token                  = true
  }
}

sandbox {
  tools_image = "postgres:17" # pg_dump and pg_restore not older than the servers
  memory_mib  = 256
}

# Metrics for Prometheus, on this host only; leave it out for none.
telemetry {
  listen = "127.0.0.1:9649"
}
