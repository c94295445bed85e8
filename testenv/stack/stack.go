// Package stack puts the real parts together the way an operator would: a Vault
// with our plugin, two PostgreSQL servers with the README's rights, an agent
// under its own identity, and people who log in. End-to-end tests and benchmarks
// start from here.
package stack

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/hashicorp/vault/api"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
)

// Names used throughout.
const (
	AgentName  = "host1"
	SourceName = "prod"
	TargetName = "staging"
	Database   = "shop"
)

// Options of a stack. The zero value is one Vault in memory, two servers and an
// agent.
type Options struct {
	Vault          testenv.VaultOptions
	Source, Target testenv.PostgresOptions
	// SourceServer and TargetServer are used instead of new ones.
	SourceServer, TargetServer *testenv.PostgresServer
	// Faults uses an agent with fault points.
	Faults bool
	// WithoutAgent leaves the agent out; StartAgent starts it later.
	WithoutAgent bool
	// Policy replaces the default policy's fields, which allow clones to
	// everybody who asks, 1000 an hour.
	Policy map[string]any
	// AgentConfig is further text for agent.hcl.
	AgentConfig string
	// AgentEnv is environment added for the agent.
	AgentEnv []string
	// MaxOperations the agent runs at once; default 1.
	MaxOperations int
}

// Stack is a running whole.
type Stack struct {
	T              testenv.TB
	Vault          *testenv.VaultServer
	Source, Target *testenv.PostgresServer
	Agent          *testenv.AgentProcess
	AgentConfig    string   // path of agent.hcl
	Dir            string   // holds state and identity of the agent
	runDir         string   // in memory, as below /run on a real host
	agents         []string // names of those that have a configuration
	RequesterToken string
	Requester      *api.Client

	mount wire.Mount
	opts  Options
}

// New starts everything and configures it. The source's database holds what Seed
// statements put there, nothing by default.
func New(t testenv.TB, opts Options) *Stack {
	t.Helper()
	s := &Stack{T: t, opts: opts, Dir: shortDir(t, ""), runDir: shortDir(t, "/dev/shm")}
	t.Cleanup(s.removeSandboxes)
	s.Vault = testenv.Vault(t, opts.Vault)
	s.mount = wire.Mount(s.Vault.Mount)
	if s.Source = opts.SourceServer; s.Source == nil {
		s.Source = testenv.Postgres(t, opts.Source)
		PrepareSource(s.Source)
	}
	if s.Target = opts.TargetServer; s.Target == nil {
		s.Target = testenv.Postgres(t, opts.Target)
		PrepareTarget(s.Target)
	}
	if s.Source.Value("postgres", "select count(*) from pg_database where datname = $1", Database) == "0" {
		s.Source.CreateDatabase(Database)
	}
	s.Connect(SourceName, s.Source, "postgres", Database)
	s.Connect(TargetName, s.Target, "postgres", Database)
	s.Policy("everyone", opts.Policy)
	s.Requester, s.RequesterToken = s.Person("alice", "dbops-requester")
	s.setup()
	if !opts.WithoutAgent {
		s.StartAgent()
	}
	return s
}

// removeSandboxes removes the containers of agents that were killed, or had no Vault
// any more to finish with: those of operations, and those that images are made of.
func (s *Stack) removeSandboxes() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	docker := testenv.Docker(s.T)
	for _, agent := range s.agents {
		found, err := docker.ContainerList(ctx, container.ListOptions{All: true, Filters: s.containersOf(agent)})
		if err != nil {
			s.T.Logf("list containers of agent %s: %v", agent, err)
		}
		for _, c := range found {
			if err := docker.ContainerRemove(ctx, c.ID, container.RemoveOptions{Force: true}); err != nil && !errdefs.IsNotFound(err) {
				s.T.Logf("remove container %s of agent %s: %v", c.ID, agent, err)
			}
		}
	}
}

// Containers finds those of the stack's first agent in Docker.
func (s *Stack) Containers() filters.Args { return s.containersOf(AgentName) }

func (s *Stack) containersOf(agent string) filters.Args {
	return filters.NewArgs(filters.Arg("label", "io.dbops.instance="+s.instance(agent)))
}

// instance is what the agent labels its containers with: agents of one name on one
// host, one in each test, have run directories of their own.
func (s *Stack) instance(agent string) string {
	sum := sha256.Sum256([]byte(agent + "\x00" + s.agentRunDir(agent)))
	return hex.EncodeToString(sum[:8])
}

func (s *Stack) agentRunDir(agent string) string { return filepath.Join(s.runDir, agent) }

// shortDir is a directory whose path leaves room for the names of sockets, which
// may have 107 bytes.
func shortDir(t testenv.TB, parent string) string {
	t.Helper()
	dir, err := os.MkdirTemp(parent, "dbops-stack-")
	if err != nil {
		t.Fatalf("make directory: %v", err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Logf("remove %s: %v", dir, err)
		}
	})
	return dir
}

// Mount is where the plugin is mounted.
func (s *Stack) Mount() wire.Mount { return s.mount }

// rootPassword is that of the plugin's own login on test servers.
const rootPassword = "root-of-dbops-only-in-tests"

// PrepareSource makes the roles the README asks for on a source.
func PrepareSource(p *testenv.PostgresServer) {
	prepareRoot(p)
	p.Exec("postgres",
		"CREATE ROLE dbops_inspect NOLOGIN",
		"CREATE ROLE dbops_read NOLOGIN BYPASSRLS",
		"GRANT pg_read_all_data TO dbops_read",
	)
}

// PrepareTarget makes the roles the README asks for on a target.
func PrepareTarget(p *testenv.PostgresServer) {
	prepareRoot(p)
	p.Exec("postgres",
		"CREATE ROLE dbops_inspect NOLOGIN",
		"CREATE ROLE dbops_owner NOLOGIN CREATEDB",
		"GRANT pg_signal_backend TO dbops_owner",
	)
}

func prepareRoot(p *testenv.PostgresServer) {
	p.Exec("postgres",
		"CREATE ROLE dbops_root LOGIN CREATEROLE PASSWORD '"+rootPassword+"'",
		"GRANT pg_signal_backend TO dbops_root",
	)
}

const createLogin = `CREATE ROLE "{{name}}" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}' CONNECTION LIMIT %d IN ROLE %s;`

// Roles are the creation statements of the three purposes.
func Roles() map[wire.Purpose]string {
	set := ` ALTER ROLE "{{name}}" SET role TO `
	return map[wire.Purpose]string{
		wire.PurposeInspect: fmt.Sprintf(createLogin, 4, "dbops_inspect"),
		wire.PurposeRead:    fmt.Sprintf(createLogin, 40, "dbops_read") + set + "dbops_read;",
		wire.PurposeWrite:   fmt.Sprintf(createLogin, 40, "dbops_owner") + set + "dbops_owner;",
	}
}

// Connect configures a connection of that name to a server, its roles and what
// operations may know of it. The plugin connects to one database, operations
// work on another.
func (s *Stack) Connect(name string, p *testenv.PostgresServer, connectTo, database string) {
	s.T.Helper()
	var allowed []string
	roles := map[string]any{}
	for purpose, statement := range Roles() {
		role := name + "-" + string(purpose)
		allowed = append(allowed, role)
		roles[string(purpose)] = role
		s.Write("roles/"+role, map[string]any{"db_name": name, "creation_statements": statement, "default_ttl": "15m", "max_ttl": "8h"})
	}
	config := map[string]any{
		"plugin_name": "postgresql-database-plugin", "connection_url": p.ConnectionURL(connectTo),
		"username": "dbops_root", "password": rootPassword, "allowed_roles": strings.Join(allowed, ","),
	}
	s.Write("config/"+name, config)
	s.Write("connections/"+name, map[string]any{"database": database, "purposes": roles, "labels": map[string]any{"env": name}})
}

// Policy writes a policy that allows everybody to clone, changed by fields.
func (s *Stack) Policy(name string, fields map[string]any) {
	s.T.Helper()
	policy := map[string]any{
		"operations": "clone", "sources": "*", "targets": "*", "require_authentication": true,
		"enable_network_isolation": true, "audit_operations": true, "max_operations_per_hour": 1000,
		"allowed_operations": "clone", "entities": "*",
	}
	for key, value := range fields {
		if value == nil {
			delete(policy, key)
			continue
		}
		policy[key] = value
	}
	s.Write("policies/"+name, policy)
}

// Write writes below the mount as root and fails the test if it is refused.
func (s *Stack) Write(path string, data map[string]any) *api.Secret {
	s.T.Helper()
	secret, err := s.Vault.Client.Logical().Write(string(s.mount)+"/"+path, data)
	if err != nil {
		s.T.Fatalf("write %s: %v", path, err)
	}
	return secret
}

// Person makes somebody who logs in with a password and has an entity, with the
// named ACL policies, and returns a client and its token.
func (s *Stack) Person(name string, policies ...string) (*api.Client, string) {
	s.T.Helper()
	auths, err := s.Vault.Client.Sys().ListAuth()
	if err != nil {
		s.T.Fatalf("list auth methods: %v", err)
	}
	if _, ok := auths["userpass/"]; !ok {
		if err := s.Vault.Client.Sys().EnableAuthWithOptions("userpass", &api.EnableAuthOptions{Type: "userpass"}); err != nil {
			s.T.Fatalf("enable userpass: %v", err)
		}
	}
	const password = "password-of-a-person-in-tests"
	_, err = s.Vault.Client.Logical().Write("auth/userpass/users/"+name, map[string]any{
		"password": password, "token_policies": strings.Join(policies, ","),
	})
	if err != nil {
		s.T.Fatalf("make %s: %v", name, err)
	}
	secret, err := s.Vault.NewClient("").Logical().Write("auth/userpass/login/"+name, map[string]any{"password": password})
	if err != nil {
		s.T.Fatalf("log in as %s: %v", name, err)
	}
	return s.Vault.NewClient(secret.Auth.ClientToken), secret.Auth.ClientToken
}

// CLI runs the dbops command line with a token and returns its output and exit
// status.
func (s *Stack) CLI(token string, args ...string) (stdout, stderr string, status int) {
	s.T.Helper()
	var out, errs strings.Builder
	cmd := exec.Command(testenv.CLI(s.T), args...)
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + s.Dir, "VAULT_ADDR=" + s.Vault.Address, "VAULT_TOKEN=" + token,
	}
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		s.T.Fatalf("run dbops %s: %v", strings.Join(args, " "), err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// Ask requests a clone as alice and returns its id.
func (s *Stack) Ask(data map[string]any) string {
	s.T.Helper()
	id, err := s.TryAsk(s.Requester, SourceName, TargetName, data)
	if err != nil {
		s.T.Fatalf("ask for a clone: %v", err)
	}
	return id
}

// TryAsk requests a clone and returns its id, or the refusal.
func (s *Stack) TryAsk(client *api.Client, source, target string, data map[string]any) (string, error) {
	secret, err := client.Logical().Write(s.mount.Request(wire.KindClone, source, target), data)
	if err != nil {
		return "", err
	}
	id, ok := secret.Data["id"].(string)
	if !ok {
		return "", fmt.Errorf("answer without an id: %v", secret.Data)
	}
	return id, nil
}

// Operation reads an operation as an operator sees it.
func (s *Stack) Operation(id string) (wire.Operation, error) {
	var op wire.Operation
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	secret, err := s.Vault.Client.Logical().ReadWithContext(ctx, s.mount.AllOperations()+"/"+id)
	if err != nil {
		return op, err
	}
	if secret == nil {
		return op, fmt.Errorf("no operation %s", id)
	}
	content, err := json.Marshal(secret.Data)
	if err != nil {
		return op, err
	}
	return op, json.Unmarshal(content, &op)
}

// AwaitFinal waits until an operation has ended and returns it.
func (s *Stack) AwaitFinal(id string, patience time.Duration) wire.Operation {
	s.T.Helper()
	var op wire.Operation
	testenv.Await(s.T, "the end of "+id, patience, func() error {
		var err error
		if op, err = s.Operation(id); err != nil {
			return err
		}
		if !op.State.Final() {
			return fmt.Errorf("it is %s, progress %+v", op.State, op.Progress)
		}
		return nil
	})
	return op
}

// Succeed asks for a clone, waits for it and fails the test unless it succeeds.
func (s *Stack) Succeed(data map[string]any, patience time.Duration) wire.Operation {
	s.T.Helper()
	op := s.AwaitFinal(s.Ask(data), patience)
	if op.State != wire.StateSucceeded {
		s.T.Fatalf("operation %s %s: %+v", op.ID, op.State, op.Result)
	}
	return op
}

// Logins lists the logins on a server that are not the test's own.
func Logins(p *testenv.PostgresServer) string {
	return p.Value("postgres", `select coalesce(string_agg(rolname, ', '), '') from pg_roles
		where rolcanlogin and rolname not in ('dbops_root', $1)`, p.User)
}

// Databases lists the databases on a server that are not its own.
func Databases(p *testenv.PostgresServer) string {
	return p.Value("postgres", `select coalesce(string_agg(datname, ', ' order by datname), '') from pg_database
		where datname not in ('postgres', 'template0', 'template1')`)
}

// StateDir is where the agent keeps journal and spool.
func (s *Stack) StateDir() string { return filepath.Join(s.Dir, AgentName, "state") }

// RunDir is where the agent makes the sockets of its sandboxes.
func (s *Stack) RunDir() string { return filepath.Join(s.runDir, AgentName) }
