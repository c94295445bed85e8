# dbops-approver: reviews plans; approves and rejects.

# What its groups may approve, and its own; any other id is answered like a missing one.
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

path "dbops/operations/+/report" {
  capabilities = ["read"]
}

# Whose approval counts, policies of the engine say by identity group.
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
