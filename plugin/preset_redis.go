package plugin

import (
	"encoding/json"
	"fmt"
)

// redisRules are the ACL rules of a preset. They hold on the whole server, which
// has neither owners nor rights per database. @dangerous is what stops or empties
// a server, or shows what is in it all at once; @write has the making of functions.
// SELECT is one of @connection since Redis 7 only.
func redisRules(p preset) []string {
	switch p {
	case presetReadwrite:
		return []string{"~*", "+@read", "+@write", "+@connection", "+select", "+@transaction", "-@scripting", "-@dangerous"}
	case presetOwner:
		return []string{"~*", "&*", "+@all", "-@admin", "-@dangerous", "+flushdb", "+keys", "+sort", "+info"}
	default:
		return []string{"~*", "+@read", "+@connection", "+select", "-@dangerous"}
	}
}

// expandRedis works out a preset. Nothing has to be prepared.
func expandRedis(c *connection, r *role) (expansion, error) {
	if r.CredentialType != credentialPassword {
		return expansion{}, presetError(c, "Redis knows users by password only")
	}
	rules, err := json.Marshal(redisRules(r.Preset))
	if err != nil {
		return expansion{}, fmt.Errorf("write ACL rules: %w", err)
	}
	return expansion{Creation: []string{string(rules)}, Revocation: []string{"ACL DELUSER {{name}}"}}, nil
}
