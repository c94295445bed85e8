name = "db-host-1"

vault {
  address = "http://127.0.0.1:8200"

  approle {
    role_id_file   = "role_id"
    secret_id_file = "secret_id"
  }
}

sandbox {
  tools_image = "postgres:17"
}
