package redis

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/account"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// DefaultCreation is what a login may do when its role says nothing: read
// everything, as with Vault's own engine.
const DefaultCreation = `["~*", "+@read"]`

// parseRules reads creation statements, each a JSON array of ACL rules, into one
// list. Errors name places, never a rule's text.
func parseRules(statements []string) ([]string, error) {
	var rules []string
	for i, statement := range statements {
		if strings.TrimSpace(statement) == "" {
			continue
		}
		var part []string
		if err := json.Unmarshal([]byte(statement), &part); err != nil {
			return nil, invalid("create", "creation statement %d is not a JSON array of ACL rules such as %s", i+1, DefaultCreation)
		}
		for j, rule := range part {
			if rule == "" || strings.ContainsFunc(rule, control) {
				return nil, invalid("create", "rule %d of creation statement %d is empty or holds a control character", j+1, i+1)
			}
		}
		rules = append(rules, part...)
	}
	if len(rules) == 0 {
		return parseRules([]string{DefaultCreation})
	}
	return rules, nil
}

// checkName refuses names the server cannot hold, and quotes: the server would
// write them into its configuration file and not start from it again.
func checkName(op, name string) error {
	if name == "" || strings.ContainsFunc(name, control) || strings.ContainsAny(name, ` "'`) {
		return invalid(op, "the user name is empty or holds a blank, a quote or a control character, which Redis cannot keep")
	}
	return nil
}

func control(c rune) bool { return c < ' ' || c == 0x7f }

// quoted returns the number, from 1, of the first rule with a quote in it; 0 is
// none.
func quoted(rules []string) int {
	for i, rule := range rules {
		if strings.ContainsAny(rule, `"'`) {
			return i + 1
		}
	}
	return 0
}

// createCommand makes a login of the rules. Whatever they say, it is new, it has
// exactly this password and it can log in. The command takes effect whole or not
// at all.
func createCommand(name string, rules []string, password wire.Secret) []any {
	command := []any{"ACL", "SETUSER", name, "reset"}
	for _, rule := range rules {
		command = append(command, rule)
	}
	return append(command, "resetpass", passwordRule(password), "on")
}

// passwordRule sets a password without showing it.
func passwordRule(password wire.Secret) string {
	sum := sha256.Sum256([]byte(password.Reveal()))
	return "#" + hex.EncodeToString(sum[:])
}

func invalid(op, format string, args ...any) error {
	return &account.Error{Op: op, Code: wire.CodeInvalid, Reason: fmt.Sprintf(format, args...)}
}
