package redis

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/account"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/posture"
)

var _ account.Inspector = (*Driver)(nil)

// inspectTimeout bounds an inspection, which is two round trips.
const inspectTimeout = 4 * time.Second

// mostUsers bounds how many users are asked for.
const mostUsers = 2000

// Inspect asks for the server's users and settings. The server answers with the
// hashes of users' passwords too; they are not looked at.
func (d *Driver) Inspect(ctx context.Context) (posture.Facts, error) {
	const op = "inspect"
	ctx, cancel := context.WithTimeout(ctx, inspectTimeout)
	defer cancel()
	f := &posture.RedisFacts{Own: d.ownName(), Settings: map[string]string{}}
	facts := posture.Facts{Redis: f, Session: posture.Session{TLS: d.config.TLS, Verified: d.config.TLS && !d.config.InsecureTLS}}
	cannot := func(what, right string) {
		facts.Unchecked = append(facts.Unchecked, posture.Unchecked{What: what, Why: "needs " + right})
	}

	var users *redis.Cmd
	settings := map[string]*redis.Cmd{}
	err := ask(ctx, d.client, func(pipe redis.Pipeliner) {
		users = pipe.Do(ctx, "ACL", "USERS")
		for _, name := range posture.RedisSettings() {
			settings[name] = pipe.Do(ctx, "CONFIG", "GET", name)
		}
	})
	if err != nil {
		return facts, translate(op, err, false)
	}
	for _, name := range posture.RedisSettings() {
		pair, err := settings[name].StringSlice()
		if err != nil || len(pair) != 2 {
			cannot(name, "+config|get")
			continue
		}
		f.Settings[name] = pair[1]
	}
	all, err := users.StringSlice()
	if err != nil {
		cannot("users", "+acl|users and +acl|getuser")
		return facts, nil
	}
	if len(all) > mostUsers {
		facts.Unchecked = append(facts.Unchecked, posture.Unchecked{What: "some users", Why: fmt.Sprintf("there are %d", len(all))})
		all = all[:mostUsers]
	}
	answers := make([]*redis.Cmd, len(all))
	err = ask(ctx, d.client, func(pipe redis.Pipeliner) {
		for i, name := range all {
			answers[i] = pipe.Do(ctx, "ACL", "GETUSER", name)
		}
	})
	if err != nil {
		return facts, translate(op, err, false)
	}
	refused := false
	for i, name := range all {
		fields, err := answers[i].Slice()
		switch {
		case err == nil:
			f.Users = append(f.Users, readUser(name, fields))
		case isAnswer(err):
			refused = true
		} // one that is gone meanwhile is nobody
	}
	if refused {
		cannot("users", "+acl|getuser")
	}
	return facts, nil
}

// readUser reads an answer of ACL GETUSER: names and values in turn.
func readUser(name string, fields []any) posture.RedisUser {
	u := posture.RedisUser{Name: name}
	readRules(&u, fields)
	for i := 0; i+1 < len(fields); i += 2 {
		switch fields[i] {
		case "flags":
			for _, flag := range texts(fields[i+1]) {
				u.On = u.On || flag == "on"
				u.NoPass = u.NoPass || flag == "nopass"
			}
		case "selectors":
			selectors, _ := fields[i+1].([]any)
			for _, selector := range selectors {
				if inner, ok := selector.([]any); ok {
					readRules(&u, inner)
				}
			}
		}
	}
	return u
}

// readRules reads what a user or a selector may do.
func readRules(u *posture.RedisUser, fields []any) {
	for i := 0; i+1 < len(fields); i += 2 {
		switch fields[i] {
		case "commands":
			u.Rules = append(u.Rules, strings.Join(texts(fields[i+1]), " "))
		case "keys", "channels":
			u.Data = u.Data || strings.TrimSpace(strings.Join(texts(fields[i+1]), "")) != ""
		}
	}
}

// texts reads a text, or a list of them: servers differ.
func texts(value any) []string {
	switch v := value.(type) {
	case string:
		return []string{v}
	case []any:
		all := make([]string, 0, len(v))
		for _, one := range v {
			if text, ok := one.(string); ok {
				all = append(all, text)
			}
		}
		return all
	default:
		return nil
	}
}
