# dbops-operator: connects database servers and agents, watches and cancels. Sees no password and no policy write.

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
  capabilities = ["read", "list"]
}

path "dbops/policies/*" {
  capabilities = ["read", "list"]
}

path "dbops/settings" {
  capabilities = ["read"]
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
