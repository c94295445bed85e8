# dbops-admin: does what operators, connection admins, policy admins and auditors do; reads no data and approves nothing.

# Servers and the roles logins are made from.
path "dbops/config/*" {
  capabilities = ["create", "read", "update", "delete", "list"]
}

# What Vault does not audit by itself, where no agent acknowledges it.
path "dbops/facts" {
  capabilities = ["read"]
}

path "dbops/facts/ack" {
  capabilities = ["create", "update"]
}

path "dbops/roles/*" {
  capabilities = ["create", "read", "update", "delete", "list"]
}

path "dbops/static-roles/*" {
  capabilities = ["create", "read", "update", "delete", "list"]
}

# Rotating credentials and sessions now.
path "dbops/rotate-root/+" {
  capabilities = ["create", "update"]
}

path "dbops/rotate-role/+" {
  capabilities = ["create", "update"]
}

path "dbops/rotate-all/+" {
  capabilities = ["create", "update"]
}

path "dbops/reset/+" {
  capabilities = ["create", "update"]
}

path "dbops/reload/+" {
  capabilities = ["create", "update"]
}

path "dbops/agents" {
  capabilities = ["list"]
}

path "dbops/agents/" {
  capabilities = ["list"]
}

# An agent's settings, not its work protocol below.
path "dbops/agents/+" {
  capabilities = ["create", "read", "update", "delete", "list"]
}

# Every operation, unfiltered.
path "dbops/all/operations" {
  capabilities = ["read", "list"]
}

path "dbops/all/operations/*" {
  capabilities = ["read", "list"]
}

path "dbops/all/operations/+/cancel" {
  capabilities = ["create", "update"]
}

# After cleaning a target by hand.
path "dbops/all/operations/+/acknowledge" {
  capabilities = ["create", "update"]
}

path "dbops/revocations" {
  capabilities = ["read", "list"]
}

path "dbops/revocations/*" {
  capabilities = ["read", "list"]
}

# What is weak.
path "dbops/posture" {
  capabilities = ["read"]
}

path "dbops/posture/+" {
  capabilities = ["read"]
}

path "dbops/metrics" {
  capabilities = ["read"]
}

# Reading along, not changing.
path "dbops/connections/*" {
  capabilities = ["read", "list", "create", "update", "delete"]
}

path "dbops/policies/*" {
  capabilities = ["read", "list", "create", "update", "delete"]
}

path "dbops/settings" {
  capabilities = ["read", "create", "update"]
}

# Signing receipts with a new key.
path "dbops/keys/rotate" {
  capabilities = ["create", "update"]
}

# Public keys of receipts.
path "dbops/keys" {
  capabilities = ["read"]
}

path "dbops/lockdown" {
  capabilities = ["read"]
}

path "dbops/info" {
  capabilities = ["read"]
}

# For sites with one responder: when who locked may unlock alone.
path "dbops/lockdown/break-glass" {
  capabilities = ["create", "read", "update", "delete", "list"]
}

# What audit files are verified against.
path "dbops/chains" {
  capabilities = ["read"]
}

# Which audit devices exist.
path "sys/audit" {
  capabilities = ["read", "sudo"]
}

# What they show of this mount.
path "sys/mounts/dbops/tune" {
  capabilities = ["read"]
}
