package posture

import (
	"slices"
	"strings"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// RedisFacts are what was seen on a Redis or Valkey server.
type RedisFacts struct {
	Users []RedisUser
	// Own is the engine's own user.
	Own string
	// Settings by name; one that may not be read is missing.
	Settings map[string]string
}

// RedisUser is one ACL user, without its passwords.
type RedisUser struct {
	Name string
	// On says that it can log in, NoPass that any password does.
	On, NoPass bool
	// Rules are its rules about commands, "-@all +get …", and those of each of its
	// selectors.
	Rules []string
	// Data says that it reaches keys or channels.
	Data bool
}

// The settings that are looked at.
const (
	RedisBind          = "bind"
	RedisProtectedMode = "protected-mode"
	RedisPort          = "port"
)

// RedisSettings lists them.
func RedisSettings() []string { return []string{RedisBind, RedisProtectedMode, RedisPort} }

func redisChecks() []Check {
	return []Check{
		{"redis_default_open", wire.RiskCritical, "the user default logs in without a password, so whoever connects is in", "ACL SETUSER default off, or resetpass and a password", 0},
		{"redis_nopass", wire.RiskCritical, "users log in with any password", "ACL SETUSER … resetpass >…", 0},
		{"redis_dangerous_default", wire.RiskHigh, "the user default may run commands that take the server over or empty it", "ACL SETUSER default -@dangerous -@admin, or off", 0},
		{"redis_dangerous_users", wire.RiskHigh, "users other than the engine's may run commands that take the server over or empty it", "ACL SETUSER … -@dangerous -@admin, and allow by name what is needed", 0},
		{"redis_protected_mode", wire.RiskHigh, "protected-mode is off and the server listens on every address", "protected-mode yes, and bind to the addresses that are needed", 0},
		{"redis_default_on", wire.RiskMedium, "the user default, whose name everybody knows, can log in", "ACL SETUSER default off, and a user for each application", 0},
		{"redis_bind_all", wire.RiskMedium, "the server listens on every address", "bind to the addresses that are needed", 0},
		{"redis_plaintext_port", wire.RiskMedium, "the server takes sessions without TLS", "port 0, and tls-port", 0},
	}
}

// dangerous are the commands that take a server over or empty it, with the
// categories they are in.
var dangerous = map[string][]string{
	"acl|setuser": {"admin", "slow", "dangerous"},
	"config|set":  {"admin", "slow", "dangerous"},
	"debug":       {"admin", "slow", "dangerous"},
	"flushall":    {"keyspace", "write", "slow", "dangerous"},
	"flushdb":     {"keyspace", "write", "slow", "dangerous"},
	"keys":        {"keyspace", "read", "slow", "dangerous"},
	"migrate":     {"keyspace", "write", "slow", "dangerous"},
	"module|load": {"admin", "slow", "dangerous"},
	"monitor":     {"admin", "slow", "dangerous"},
	"replicaof":   {"admin", "slow", "dangerous"},
	"shutdown":    {"admin", "slow", "dangerous"},
	"swapdb":      {"keyspace", "write", "fast", "dangerous"},
}

// DangerousCommands lists them.
func DangerousCommands() []string {
	names := make([]string, 0, len(dangerous))
	for name := range dangerous {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// permits reports whether rules about commands, applied from left to right as the
// server does, allow a dangerous command.
func permits(rules, command string) bool {
	allowed := false
	name, _, _ := strings.Cut(command, "|")
	for rule := range strings.FieldsSeq(strings.ToLower(rules)) {
		plus := strings.HasPrefix(rule, "+")
		what := strings.TrimLeft(rule, "+-")
		category, isCategory := strings.CutPrefix(what, "@")
		switch {
		case rule == "allcommands", isCategory && category == "all" && plus:
			allowed = true
		case rule == "nocommands", isCategory && category == "all":
			allowed = false
		case isCategory && slices.Contains(dangerous[command], category),
			!isCategory && (what == command || what == name):
			allowed = plus
		}
	}
	return allowed
}

// dangerousOf lists the dangerous commands a user may run.
func (u RedisUser) dangerousOf() []string {
	var all []string
	for _, command := range DangerousCommands() {
		if slices.ContainsFunc(u.Rules, func(rules string) bool { return permits(rules, command) }) {
			all = append(all, command)
		}
	}
	return all
}

// rights are what a user may do, as in [LeastRights].
func (u RedisUser) rights() []string {
	var all []string
	for _, rules := range u.Rules {
		for rule := range strings.FieldsSeq(strings.ToLower(rules)) {
			if rule == "allcommands" {
				rule = "+@all"
			}
			if strings.HasPrefix(rule, "+") {
				all = append(all, rule)
			}
		}
	}
	if u.Data {
		all = append(all, "keys or channels")
	}
	return all
}

func (f *RedisFacts) judge(r *report, ours string) {
	var open, powerful []string
	for _, u := range f.Users {
		if u.Name == f.Own {
			r.addNames(checkRootRights, "the user has", excess(wire.EngineRedis, u.rights()))
		}
		if !u.On {
			continue
		}
		commands := u.dangerousOf()
		if u.Name == "default" {
			if u.NoPass {
				r.add("redis_default_open", "the user default needs no password")
			} else {
				r.add("redis_default_on", "the user default is on")
			}
			r.addNames("redis_dangerous_default", "default may run", commands)
			continue
		}
		if u.NoPass {
			open = append(open, u.Name)
		}
		if len(commands) > 0 && u.Name != f.Own && !isOurs(u.Name, ours) {
			powerful = append(powerful, u.Name+" ("+listed(commands)+")")
		}
	}
	r.addNames("redis_nopass", "users", open)
	r.addNames("redis_dangerous_users", "users", powerful)

	bind, known := f.Settings[RedisBind]
	everywhere := known && listensEverywhere(bind)
	switch {
	case everywhere && f.Settings[RedisProtectedMode] == "no":
		r.add("redis_protected_mode", "protected-mode is no, bind is %q", bind)
	case everywhere:
		r.add("redis_bind_all", "bind is %q", bind)
	}
	if port, known := f.Settings[RedisPort]; known && port != "0" {
		r.add("redis_plaintext_port", "port is %s", port)
	}
}

// listensEverywhere reports whether a value of bind means every address.
func listensEverywhere(bind string) bool {
	addresses := strings.Fields(bind)
	return len(addresses) == 0 || slices.ContainsFunc(addresses, func(a string) bool {
		a = strings.TrimPrefix(a, "-")
		return a == "*" || a == "0.0.0.0" || a == "::" || a == "::*"
	})
}
