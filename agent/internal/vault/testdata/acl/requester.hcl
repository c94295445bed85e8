# dbops-requester: asks for operations and follows its own.

# Asking. Which source and target, policies of the engine decide.
path "dbops/clone/+/+" {
  capabilities = ["create", "update"]
}

path "dbops/merge/+/+" {
  capabilities = ["create", "update"]
}

path "dbops/migrate/+/+" {
  capabilities = ["create", "update"]
}

path "dbops/backup/+" {
  capabilities = ["create", "update"]
}

path "dbops/restore/+/+" {
  capabilities = ["create", "update"]
}

# Its own operations; a foreign id is answered like a missing one.
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

path "dbops/operations/+/receipt" {
  capabilities = ["read"]
}

path "dbops/operations/+/cancel" {
  capabilities = ["create", "update"]
}

# Public keys of receipts.
path "dbops/keys" {
  capabilities = ["read"]
}

path "dbops/info" {
  capabilities = ["read"]
}
