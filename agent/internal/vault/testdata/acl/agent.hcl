# dbops-agent: one policy for all agents; each reaches its own paths only.

# The work protocol.
path "dbops/agents/{{identity.entity.aliases.auth_approle_1a2b3c4d.metadata.role_name}}/poll" {
  capabilities = ["update"]
}

path "dbops/agents/{{identity.entity.aliases.auth_approle_1a2b3c4d.metadata.role_name}}/operations/*" {
  capabilities = ["create", "read", "update"]
}

path "dbops/agents/{{identity.entity.aliases.auth_approle_1a2b3c4d.metadata.role_name}}/facts" {
  capabilities = ["read", "update"]
}

# Giving back its own leases, an operation at a time; no other prefix is allowed.
path "sys/leases/revoke-prefix/dbops/agents/{{identity.entity.aliases.auth_approle_1a2b3c4d.metadata.role_name}}/operations/*" {
  capabilities = ["update", "sudo"]
}

# Keeping leases alive while an operation runs.
path "sys/leases/renew" {
  capabilities = ["update"]
}

# No operation runs when no audit device would see it.
path "sys/audit" {
  capabilities = ["read", "sudo"]
}

path "sys/mounts/dbops/tune" {
  capabilities = ["read"]
}

# Its own token.
path "auth/token/lookup-self" {
  capabilities = ["read"]
}

path "auth/token/renew-self" {
  capabilities = ["update"]
}

path "auth/token/revoke-self" {
  capabilities = ["update"]
}
