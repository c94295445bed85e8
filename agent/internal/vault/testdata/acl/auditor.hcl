# dbops-auditor: reads every operation and every setting, changes nothing.

path "dbops/all/operations" {
  capabilities = ["read", "list"]
}

path "dbops/all/operations/*" {
  capabilities = ["read", "list"]
}

# What audit files are verified against.
path "dbops/chains" {
  capabilities = ["read"]
}

# What Vault does not audit by itself.
path "dbops/facts" {
  capabilities = ["read"]
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

path "dbops/posture" {
  capabilities = ["read"]
}

path "dbops/posture/+" {
  capabilities = ["read"]
}

path "dbops/metrics" {
  capabilities = ["read"]
}

# Public keys of receipts.
path "dbops/keys" {
  capabilities = ["read"]
}

path "dbops/info" {
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

path "dbops/lockdown" {
  capabilities = ["read"]
}

path "dbops/settings" {
  capabilities = ["read"]
}
