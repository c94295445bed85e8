package redis

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/account"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// answerOf returns the server's error answer, or "" when err is something else.
func answerOf(err error) string {
	var answer redis.Error
	if errors.As(err, &answer) && !errors.Is(err, redis.Nil) {
		return answer.Error()
	}
	return ""
}

// translate turns an error of go-redis into ours. An answer of the server is
// never repeated: it may hold what was sent. sent says that the command may have
// reached the server.
func translate(op string, err error, sent bool) error {
	var known *account.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &known):
		return err
	}
	answer := answerOf(err)
	if answer == "" {
		return &account.Error{Op: op, Code: wire.CodeUnavailable, Reason: "the server cannot be reached: " + networkReason(err), Ambiguous: sent}
	}
	e := &account.Error{Op: op, Code: wire.CodeEngine}
	word, _, _ := strings.Cut(answer, " ")
	switch {
	case word == "WRONGPASS", word == "NOAUTH", strings.Contains(answer, "invalid password"), strings.Contains(answer, "without any password configured"):
		e.Code, e.Reason = wire.CodeLoginRefused, "the server refuses the user name or password"
	case word == "NOPERM":
		e.Code, e.Reason = wire.CodePrivilege, "the connection's user may not do this; it needs +acl, and +config and +info for saving"
	case word == "LOADING", word == "MASTERDOWN", word == "CLUSTERDOWN", word == "BUSY", strings.Contains(answer, "max number of clients"):
		e.Code, e.Reason = wire.CodeUnavailable, "the server is not ready to answer"
	case strings.Contains(answer, "unknown command"), strings.Contains(answer, "unknown subcommand"):
		e.Code, e.Reason = wire.CodeUnsupported, "the server knows no ACLs; Redis 6 or newer is needed"
	default:
		e.Reason = "the server refused the command"
	}
	return e
}

// refusedRule turns the answer to a refused ACL SETUSER into an error that says
// which rule it was, by its number, and why, in words that hold no value.
func refusedRule(err error, rules []string) error {
	const marker = "Error in ACL SETUSER modifier '"
	answer := answerOf(err)
	_, rest, found := strings.Cut(answer, marker)
	if !found {
		return translate("create", err, true)
	}
	at := strings.LastIndex(rest, "': ")
	if at < 0 {
		return invalid("create", "the server refuses an ACL rule of the creation statements")
	}
	rule, said := rest[:at], rest[at:]
	reason := "it is not a rule the server knows"
	switch {
	case strings.Contains(said, "Unknown command or category"):
		reason = "the server knows no such command or category"
	case strings.Contains(said, "after the * pattern"):
		reason = "a pattern after * has no effect"
	case strings.Contains(said, "Allowing first-arg"):
		reason = "the first argument of a subcommand cannot be allowed alone"
	}
	which := "an ACL rule"
	if i := slices.Index(rules, rule); i >= 0 {
		which = fmt.Sprintf("ACL rule %d", i+1)
	}
	return invalid("create", "the server refuses %s of the creation statements: %s", which, reason)
}

// networkReason is [account.NetworkReason] with what only go-redis says.
func networkReason(err error) string {
	return account.NetworkReason(err, func(err error) string {
		if errors.Is(err, redis.ErrPoolTimeout) {
			return "all sessions to it are in use"
		}
		return ""
	})
}
