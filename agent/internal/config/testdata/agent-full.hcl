name           = "db-host-1"
state_dir      = "/srv/dbops"
run_dir        = "/run/dbops"
max_operations = 4
log_level      = "debug"
log_format     = "text"

vault {
  address   = "https://vault.example.com:8200"
  ca_cert   = "/etc/dbops/ca.pem"
  namespace = "team"
  mount     = "data/dbops"

  approle {
    mount                       = "agents"
    role_id_file                = "/etc/dbops/role_id"
    secret_id_file              = "/etc/dbops/secret_id"
    wrapped                     = true
    remove_secret_id_after_read = true
    keep_token                  = true
  }
}

sandbox {
  tools_image = "postgres:17"
  docker_host = "unix:///run/docker.sock"
  memory_mib  = 512
  tmp_mib     = 128
}

telemetry {
  listen = "127.0.0.1:9649"
}
