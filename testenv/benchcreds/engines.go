package main

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/hashicorp/vault/api"

	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
)

// engine is one way to get logins.
type engine struct {
	name  string
	mount string
	role  string
	// against is the engine it is compared with; "" for what others are compared with.
	against string
	// only, if set, is the one number of clients it is measured with.
	only       int
	revokeOnly bool
	// missing says why it cannot be measured.
	missing string
}

// Names in the report.
const (
	builtin      = "built-in"
	ours         = "dbops"
	oursLow      = "dbops, scram_iterations=1"
	builtinRedis = "built-in, Redis"
	oursRedis    = "dbops, Redis"
	builtinGrant = "built-in, grants"
	oursGrant    = "dbops, grants"
)

// creation is the statement of the guides, for both.
const creation = `CREATE ROLE "{{name}}" WITH LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}';`

// granting is that of the guides for readers. Grants on one table meet.
var granting = []string{creation, `GRANT SELECT ON ALL TABLES IN SCHEMA public TO "{{name}}";`}

// tables are how many there are to grant.
const tables = 20

// manyClients is where most ratios are taken.
const manyClients = 8

// engines configures both engines, alike and with their defaults.
func (s *stand) engines() []*engine {
	s.must(s.vault.Client.Sys().Mount("database", &api.MountInput{Type: "database"}), "mount the built-in engine")
	s.postgres.CreateDatabase("shop")
	for n := range tables {
		s.postgres.Exec("shop", fmt.Sprintf("CREATE TABLE t%d (n int)", n))
	}
	postgres := func(mount string) error {
		config := map[string]any{
			"plugin_name": "postgresql-database-plugin", "connection_url": s.postgres.ConnectionURL("postgres"),
			"username": s.postgres.User, "password": s.postgres.Password, "allowed_roles": "*",
			"password_authentication": "scram-sha-256",
		}
		if err := s.configure(mount, "postgres", config, []string{creation}); err != nil {
			return err
		}
		config["connection_url"] = s.postgres.ConnectionURL("shop")
		return s.configure(mount, "shop", config, granting)
	}
	s.must(postgres("database"), "configure the built-in engine")
	s.must(postgres(s.vault.Mount), "configure ours")
	engines := []*engine{
		{name: builtin, mount: "database", role: "postgres"},
		{name: ours, mount: s.vault.Mount, role: "postgres", against: builtin},
		// Logins that stay would make each grant dearer.
		{name: builtinGrant, mount: "database", role: "shop", only: manyClients, revokeOnly: true},
		{name: oursGrant, mount: s.vault.Mount, role: "shop", against: builtinGrant, only: manyClients, revokeOnly: true},
	}

	low := &engine{name: oursLow, mount: s.vault.Mount, role: "postgres-low", against: builtin, only: manyClients}
	config := map[string]any{
		"plugin_name": "postgresql-database-plugin", "connection_url": s.postgres.ConnectionURL("postgres"),
		"username": s.postgres.User, "password": s.postgres.Password, "allowed_roles": "*", "scram_iterations": 1,
	}
	if err := s.configure(s.vault.Mount, "postgres-low", config, []string{creation}); err != nil {
		low.missing = oneLine(err)
	} else if !s.usesFewIterations(low) {
		low.missing = "the server holds verifiers of another number of iterations"
	}
	engines = append(engines, low)

	redis := testenv.Redis(s.t, testenv.RedisOptions{})
	for _, e := range []*engine{{name: builtinRedis, mount: "database"}, {name: oursRedis, mount: s.vault.Mount, against: builtinRedis}} {
		e.role, e.only, e.revokeOnly = "redis", manyClients, true
		config := map[string]any{
			"plugin_name": "redis-database-plugin", "host": redis.Host, "port": redis.Port,
			"username": redis.User, "password": redis.Password, "allowed_roles": "*",
		}
		if err := s.configure(e.mount, "redis", config, []string{`["~*", "+@read"]`}); err != nil {
			e.missing = oneLine(err)
		}
		engines = append(engines, e)
	}
	for _, e := range engines {
		if e.missing == "" {
			// Once before anything is measured: it opens sessions and fills caches.
			lease, err := e.create(s.vault.Client)
			s.must(err, "%s", e.name)
			s.must(revoke(s.vault.Client, lease), "%s", e.name)
			continue
		}
		s.t.Logf("%s cannot be measured: %s", e.name, e.missing)
	}
	return engines
}

// configure writes a connection and a role of the same name.
func (s *stand) configure(mount, name string, config map[string]any, statements []string) error {
	if _, err := s.vault.Client.Logical().Write(mount+"/config/"+name, config); err != nil {
		return err
	}
	_, err := s.vault.Client.Logical().Write(mount+"/roles/"+name, map[string]any{
		"db_name": name, "creation_statements": statements, "default_ttl": "1h", "max_ttl": "2h",
	})
	return err
}

// oneLine is Vault's refusal without its line breaks.
func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }

// usesFewIterations asks the server, for a setting may be taken and not heeded.
func (s *stand) usesFewIterations(e *engine) bool {
	const few = `SELECT count(*) FROM pg_authid WHERE rolpassword LIKE 'SCRAM-SHA-256$1:%'`
	lease, err := e.create(s.vault.Client)
	s.must(err, "%s", e.name)
	found := s.postgres.Value("postgres", few) == "1"
	s.must(revoke(s.vault.Client, lease), "%s", e.name)
	return found
}

// create gets a login and returns its lease.
func (e *engine) create(client *api.Client) (string, error) {
	secret, err := client.Logical().Read(e.mount + "/creds/" + e.role)
	if err != nil {
		return "", err
	}
	if secret == nil || secret.LeaseID == "" || secret.Data["password"] == "" {
		return "", fmt.Errorf("%s answered no lease", e.name)
	}
	return secret.LeaseID, nil
}

// revoke ends a lease and waits until its login is gone.
func revoke(client *api.Client, lease string) error {
	_, err := client.Logical().Write("sys/leases/revoke", map[string]any{"lease_id": lease, "sync": true})
	return err
}

// entries are how many entries one request adds to Vault's Raft log; each is
// one or more writes that reach the disk together.
type entries struct{ create, revoke float64 }

// countEntries counts with one client, so that writes of two requests never share
// an entry.
func (s *stand) countEntries(engines []*engine) map[*engine]entries {
	const times = 20
	counted := make(map[*engine]entries)
	for _, e := range engines {
		if e.missing != "" {
			continue
		}
		var leases []string
		before := s.raftIndex()
		for range times {
			lease, err := e.create(s.vault.Client)
			s.must(err, "count entries of %s", e.name)
			leases = append(leases, lease)
		}
		between := s.raftIndex()
		for _, lease := range leases {
			s.must(revoke(s.vault.Client, lease), "count entries of %s", e.name)
		}
		counted[e] = entries{create: float64(between-before) / times, revoke: float64(s.raftIndex()-between) / times}
	}
	return counted
}

func (s *stand) raftIndex() int64 {
	answer, err := s.vault.Client.Logical().ReadRaw("sys/leader")
	s.must(err, "read sys/leader")
	defer answer.Body.Close()
	var leader struct {
		Index int64 `json:"raft_committed_index"`
	}
	s.must(json.NewDecoder(answer.Body).Decode(&leader), "decode sys/leader")
	if leader.Index == 0 {
		s.t.Fatalf("sys/leader tells no raft index")
	}
	return leader.Index
}
