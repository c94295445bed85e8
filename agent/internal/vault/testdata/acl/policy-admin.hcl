# dbops-policy-admin: says who may do which operation where.

path "dbops/policies/*" {
  capabilities = ["create", "read", "update", "delete", "list"]
}

# Labels to write rules about.
path "dbops/connections/*" {
  capabilities = ["read", "list"]
}

# For sites with one responder: when who locked may unlock alone.
path "dbops/lockdown/break-glass" {
  capabilities = ["create", "read", "update", "delete", "list"]
}

# How long operations are kept: evidence is not for operators to shorten.
path "dbops/settings" {
  capabilities = ["create", "read", "update"]
}

path "dbops/info" {
  capabilities = ["read"]
}
