package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/hashicorp/vault/api"

	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
)

// setUp runs dbops setup against the bare Vault, as its operator would.
func (d *demo) setUp(s *stage) {
	d.step("The Vault operator's part: dbops setup")
	program := filepath.Join(s.vault.PluginDir, "vault-plugin-secrets-dbops")
	d.copyProgram(testenv.Plugin(d.t), program)
	arguments := []string{
		"-plugin-path=" + program, "-enable-audit-file=" + s.auditFile, "-agent=" + agentName,
		"-agent-cidrs=127.0.0.1/32", "-tools-image=" + testenv.Image(d.t, testenv.PartTools), "-out=" + d.dir,
		"-agent-keep-token=false", // this one need not survive a restart
	}
	d.shown("operator ", "dbops setup "+strings.Join(arguments, " "))
	out, code := d.dbops(s, s.vault.RootToken, append([]string{"setup", "-format=json"}, arguments...)...)
	var done struct {
		Actions []struct{ Verb, Object string }
		HCL     string `json:"agent_hcl"`
	}
	if code != 0 || json.Unmarshal([]byte(out), &done) != nil {
		d.t.Fatalf("demo: dbops setup ended with %d: %s", code, out)
	}
	for _, action := range done.Actions {
		d.say("   %-8s%s", action.Verb, action.Object)
	}
	s.agentHCL = done.HCL

	_, code = d.dbops(s, s.vault.RootToken, append([]string{"setup", "-format=json"}, arguments...)...)
	d.expect(code == 0, "a second run of it finds everything as it should be")

	s.operator = d.duty(s, "operator")
	s.connections = d.duty(s, "connection-admin")
	s.policy = d.duty(s, "policy-admin")
}

// duty is a client with the rights of one duty and no others: no step from here
// on is done as root.
func (d *demo) duty(s *stage, name string) *api.Client {
	secret, err := s.vault.Client.Auth().Token().Create(&api.TokenCreateRequest{
		Policies: []string{"dbops-" + name}, TTL: "1h", NoParent: true,
	})
	if err != nil {
		d.t.Fatalf("demo: token for %s: %v", name, err)
	}
	return s.vault.NewClient(secret.Auth.ClientToken)
}

// setting is one key=value of a vault write. A secret is shown as such.
type setting struct {
	key    string
	value  any
	secret bool
}

// write writes to Vault and shows the command that does the same.
func (d *demo) write(who string, client *api.Client, path string, settings ...setting) {
	body := map[string]any{}
	command := "vault write " + path
	for _, one := range settings {
		body[one.key] = one.value
		switch value := one.value.(type) {
		case map[string]string:
			for _, key := range sortedKeys(value) {
				command += fmt.Sprintf(" %s=%s=%s", one.key, key, value[key])
			}
		default:
			text := fmt.Sprint(value)
			if one.secret {
				text = "…"
			} else if strings.ContainsAny(text, " {}'\"\n*&") {
				text = "'" + shorten(strings.ReplaceAll(text, "\n", " ")) + "'"
			}
			command += " " + one.key + "=" + text
		}
	}
	d.shown(who+" ", command)
	if _, err := client.Logical().Write(path, body); err != nil {
		d.t.Fatalf("demo: %s: %v", command, err)
	}
}

func shorten(text string) string {
	if len(text) > 60 {
		return text[:57] + "…"
	}
	return text
}

func sortedKeys(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for key := range m {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}

// connect tells Vault of the two servers.
func (d *demo) connect(s *stage) {
	d.step("Connections, roles and what operations may know of them")
	for _, side := range []struct {
		name, database, password string
		server                   *testenv.PostgresServer
		roles                    map[string]string
	}{
		{"prod", "shop", s.sourcePassword, s.source, map[string]string{"inspect": inspectStatement, "read": readStatement}},
		{"staging", "postgres", s.targetPassword, s.target, map[string]string{"inspect": inspectStatement, "write": writeStatement}},
	} {
		ca, err := os.ReadFile(side.server.CAFile)
		if err != nil {
			d.t.Fatalf("demo: %v", err)
		}
		url := fmt.Sprintf("postgresql://{{username}}:{{password}}@%s/%s?sslmode=verify-full", side.server.Address(), side.database)
		d.write("operator", s.operator, "dbops/config/"+side.name,
			setting{key: "plugin_name", value: "postgresql-database-plugin"},
			setting{key: "connection_url", value: url},
			setting{key: "tls_ca", value: string(ca)},
			setting{key: "username", value: "dbops_vault"}, setting{key: "password", value: side.password, secret: true},
			setting{key: "allowed_roles", value: side.name + "-*"})
		purposes := map[string]string{}
		for _, purpose := range sortedKeys(side.roles) {
			purposes[purpose] = side.name + "-" + purpose
			d.write("operator", s.operator, "dbops/roles/"+purposes[purpose],
				setting{key: "db_name", value: side.name}, setting{key: "default_ttl", value: "15m"}, setting{key: "max_ttl", value: "1h"},
				setting{key: "creation_statements", value: side.roles[purpose]})
		}
		d.write("dba", s.connections, "dbops/connections/"+side.name,
			setting{key: "database", value: "shop"}, setting{key: "labels", value: map[string]string{"env": side.name}},
			setting{key: "agents", value: agentName}, setting{key: "operations_only", value: true},
			setting{key: "purposes", value: purposes})
	}
}

// introduce makes two people who may ask, and a policy that allows one of them
// something.
func (d *demo) introduce(s *stage) {
	d.step("Two people, and a policy about one of them")
	root := s.vault.Client
	if err := root.Sys().EnableAuthWithOptions("userpass", &api.EnableAuthOptions{Type: "userpass"}); err != nil {
		d.t.Fatalf("demo: %v", err)
	}
	methods, err := root.Sys().ListAuth()
	if err != nil {
		d.t.Fatalf("demo: %v", err)
	}
	s.alice, s.bob = d.person(s, methods["userpass/"].Accessor, "alice"), d.person(s, methods["userpass/"].Accessor, "bob")
	d.write("security", s.policy, "dbops/policies/refresh-staging",
		setting{key: "entities", value: s.alice.entity},
		setting{key: "operations", value: "clone"}, setting{key: "sources", value: "prod"}, setting{key: "targets", value: "staging"},
		setting{key: "allowed_operations", value: "clone"}, setting{key: "max_operations_per_hour", value: 5},
		setting{key: "require_authentication", value: true}, setting{key: "enable_network_isolation", value: true},
		setting{key: "audit_operations", value: true}, setting{key: "require_tls", value: true})
	d.expect(s.alice.entity != "" && s.bob.entity != "", "alice and bob are logged in, known to Vault as entities; both may ask, the policy names alice")
}

// person is somebody who has logged in.
type person struct{ name, token, entity string }

// person makes an identity with a password and logs in with it.
func (d *demo) person(s *stage, accessor, name string) person {
	root, password := s.vault.Client, d.secret()
	d.write("operator", root, "auth/userpass/users/"+name,
		setting{key: "password", value: password, secret: true}, setting{key: "token_policies", value: "dbops-requester"})
	d.shown("operator ", "vault write identity/entity name="+name)
	entity, err := root.Logical().Write("identity/entity", map[string]any{"name": name})
	if err != nil {
		d.t.Fatalf("demo: make entity %s: %v", name, err)
	}
	id := fmt.Sprint(entity.Data["id"])
	d.write("operator", root, "identity/entity-alias",
		setting{key: "name", value: name}, setting{key: "canonical_id", value: id}, setting{key: "mount_accessor", value: accessor})
	d.shown(name+" ", "vault login -method=userpass username="+name)
	login, err := root.Logical().Write("auth/userpass/login/"+name, map[string]any{"password": password})
	if err != nil {
		d.t.Fatalf("demo: log in as %s: %v", name, err)
	}
	if login.Auth.EntityID != id {
		d.t.Fatalf("demo: %s is entity %s, not %s", name, login.Auth.EntityID, id)
	}
	return person{name: name, token: login.Auth.ClientToken, entity: id}
}

// copyProgram installs a program with mode 0700.
func (d *demo) copyProgram(from, to string) {
	content, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, content, 0o700)
	}
	if err != nil {
		d.t.Fatalf("demo: install %s: %v", filepath.Base(to), err)
	}
}

// command is the dbops program with somebody's token.
func (d *demo) command(s *stage, token string, arguments ...string) *exec.Cmd {
	cmd := exec.CommandContext(d.ctx, testenv.CLI(d.t), arguments...)
	cmd.Env = []string{"VAULT_ADDR=" + s.vault.Address, "VAULT_TOKEN=" + token, "HOME=" + d.dir, "TERM=" + os.Getenv("TERM")}
	return cmd
}

// dbops runs the program and returns all it printed, and its exit code.
func (d *demo) dbops(s *stage, token string, arguments ...string) (string, int) {
	cmd := d.command(s, token, arguments...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	return d.finish(cmd, &out)
}

func (d *demo) finish(cmd *exec.Cmd, out *bytes.Buffer) (string, int) {
	err := cmd.Run()
	if cmd.ProcessState == nil {
		d.t.Fatalf("demo: run dbops: %v", err)
	}
	return strings.TrimSpace(out.String()), cmd.ProcessState.ExitCode()
}
