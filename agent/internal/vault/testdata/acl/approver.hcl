# dbops-approver: reviews plans; approves and rejects.

path "dbops/operations" {
  capabilities = ["read", "list"]
}

path "dbops/operations/" {
  capabilities = ["read", "list"]
}

path "dbops/operations/+" {
  capabilities = ["read"]
}

path "dbops/operations/+/plan" {
  capabilities = ["read"]
}

path "dbops/operations/+/approve" {
  capabilities = ["create", "update"]
}

path "dbops/operations/+/reject" {
  capabilities = ["create", "update"]
}

# Public keys of receipts.
path "dbops/keys" {
  capabilities = ["read"]
}

path "dbops/info" {
  capabilities = ["read"]
}
