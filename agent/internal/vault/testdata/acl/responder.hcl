# dbops-responder: locks down in an emergency, gathers evidence, and lifts what another responder locked.

# Stopping everything, and what is left of it.
path "dbops/lockdown" {
  capabilities = ["create", "read", "update"]
}

# Lifting it; the engine refuses who has locked.
path "dbops/unlock" {
  capabilities = ["create", "update"]
}

path "dbops/lockdown/break-glass" {
  capabilities = ["read"]
}

# All leases of the mount at once, and whether one is left.
path "sys/leases/revoke-prefix/dbops" {
  capabilities = ["update", "sudo"]
}

path "sys/leases/lookup/dbops/*" {
  capabilities = ["list", "sudo"]
}

# Evidence.
path "dbops/all/operations" {
  capabilities = ["read", "list"]
}

path "dbops/all/operations/*" {
  capabilities = ["read", "list"]
}

path "dbops/config/*" {
  capabilities = ["read", "list"]
}

path "dbops/roles/*" {
  capabilities = ["read", "list"]
}

path "dbops/static-roles/*" {
  capabilities = ["read", "list"]
}

path "dbops/connections/*" {
  capabilities = ["read", "list"]
}

path "dbops/policies/*" {
  capabilities = ["read", "list"]
}

path "dbops/agents" {
  capabilities = ["list"]
}

path "dbops/agents/" {
  capabilities = ["list"]
}

path "dbops/agents/+" {
  capabilities = ["read"]
}

path "dbops/revocations" {
  capabilities = ["read", "list"]
}

path "dbops/revocations/*" {
  capabilities = ["read", "list"]
}

path "dbops/settings" {
  capabilities = ["read"]
}

# Public keys of receipts.
path "dbops/keys" {
  capabilities = ["read"]
}

path "dbops/info" {
  capabilities = ["read"]
}
