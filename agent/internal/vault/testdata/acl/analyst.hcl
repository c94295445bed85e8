# dbops-analyst: gets logins that read.

# Logins of roles that are named for what they give.
path "dbops/creds/readonly-*" {
  capabilities = ["read"]
}

path "dbops/info" {
  capabilities = ["read"]
}
