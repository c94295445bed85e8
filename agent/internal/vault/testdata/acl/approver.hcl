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

path "dbops/info" {
  capabilities = ["read"]
}
