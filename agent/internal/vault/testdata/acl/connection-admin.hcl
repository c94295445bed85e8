# dbops-connection-admin: says what operations may know of a connection: labels, protection, purposes.

path "dbops/connections/*" {
  capabilities = ["create", "read", "update", "delete", "list"]
}

# Names to choose from.
path "dbops/config/*" {
  capabilities = ["read", "list"]
}

path "dbops/roles/*" {
  capabilities = ["read", "list"]
}

path "dbops/info" {
  capabilities = ["read"]
}
