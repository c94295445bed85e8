# dbops-policy-admin: says who may do which operation where.

path "dbops/policies/*" {
  capabilities = ["create", "read", "update", "delete", "list"]
}

# Labels to write rules about.
path "dbops/connections/*" {
  capabilities = ["read", "list"]
}

path "dbops/info" {
  capabilities = ["read"]
}
