package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/hashicorp/vault/api"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv/stack"
)

// atOnce is how many operations run when the mount is locked.
const atOnce = 10

// copying starts atOnce clones into databases of their own and returns their ids
// once all of them copy: the target takes a tenth of a second for each row. One
// that a busy machine lets fail before is asked for again; asked are all.
func copying(t *testing.T, s *stack.Stack) (ids, asked []string) {
	t.Helper()
	s.Source.Exec(stack.Database,
		"CREATE FUNCTION slow(int) RETURNS boolean LANGUAGE sql AS 'SELECT true'",
		"CREATE TABLE slow_rows (n int PRIMARY KEY, CHECK (slow(n)))",
		"INSERT INTO slow_rows SELECT generate_series(1, 3000)",
		"CREATE OR REPLACE FUNCTION slow(int) RETURNS boolean LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.1); RETURN true; END'",
	)
	ask := func(target string) string {
		id, err := s.TryAsk(s.Requester, stack.SourceName, target, nil)
		require.NoError(t, err)
		asked = append(asked, id)
		return id
	}
	for i := range atOnce {
		name := "target" + strconv.Itoa(i)
		s.Target.Exec("postgres", "CREATE DATABASE "+name+" OWNER dbops_owner")
		s.Target.Exec(name, "CREATE TABLE marker AS SELECT 'untouched'::text AS content")
		s.Connect(name, s.Target, "postgres", name)
	}
	for i := range atOnce {
		ids = append(ids, ask("target"+strconv.Itoa(i)))
	}
	testenv.Await(t, "all operations to copy", 3*time.Minute, func() error {
		for i, id := range ids {
			op, err := s.Operation(id)
			if err != nil {
				return err
			}
			if op.State.Final() {
				t.Logf("%s ended before the lockdown: %+v", id, op.Result)
				ids[i] = ask(op.Target)
				return fmt.Errorf("%s ended: %+v", id, op.Result)
			}
			if op.Progress == nil || op.Progress.Step != wire.StepCopy {
				return fmt.Errorf("%s is %s, %+v", id, op.State, op.Progress)
			}
		}
		return nil
	})
	return ids, asked
}

// leaseCount counts the leases below a prefix, as root.
func leaseCount(t *testing.T, client *api.Client, prefix string) int {
	t.Helper()
	listed, err := client.Logical().List("sys/leases/lookup/" + prefix)
	require.NoError(t, err)
	if listed == nil {
		return 0
	}
	names, _ := listed.Data["keys"].([]any)
	count := 0
	for _, name := range names {
		if below := fmt.Sprint(name); strings.HasSuffix(below, "/") {
			count += leaseCount(t, client, prefix+below)
		} else {
			count++
		}
	}
	return count
}

// leasedSessions counts the sessions of leased logins on a server.
func leasedSessions(p *testenv.PostgresServer) string {
	return p.Value("postgres", `SELECT count(*) FROM pg_stat_activity WHERE usename LIKE 'dbops-%'`)
}

// checkEvidence reads the directory that dbops lockdown wrote about operations, of
// which those planned tell their tables.
func checkEvidence(t *testing.T, dir string, planned, ids []string) {
	t.Helper()
	info, err := os.Stat(dir)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o700), info.Mode().Perm())
	files, err := os.ReadDir(dir)
	require.NoError(t, err)
	sums, err := os.ReadFile(filepath.Join(dir, "SHA256SUMS"))
	require.NoError(t, err)
	for _, file := range files {
		info, err := file.Info()
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o600), info.Mode().Perm(), file.Name())
		content, err := os.ReadFile(filepath.Join(dir, file.Name()))
		require.NoError(t, err)
		if file.Name() != "SHA256SUMS" {
			sum := sha256.Sum256(content)
			require.Contains(t, string(sums), hex.EncodeToString(sum[:])+"  "+file.Name())
		}
	}
	read := func(name string, into any) {
		content, err := os.ReadFile(filepath.Join(dir, name))
		require.NoError(t, err)
		require.NoError(t, json.Unmarshal(content, into), name)
	}
	var operations []wire.Operation
	read("operations.json", &operations)
	require.Len(t, operations, len(ids))
	var entities []struct {
		Name       string   `json:"name"`
		Operations []string `json:"operations"`
	}
	read("entities.json", &entities)
	require.Len(t, entities, 1)
	require.ElementsMatch(t, ids, entities[0].Operations)
	var tables []struct {
		ID     string `json:"operation_id"`
		Tables []struct {
			Name string `json:"name"`
		} `json:"tables"`
	}
	read("tables.json", &tables)
	require.Len(t, tables, len(ids))
	for _, op := range tables {
		if slices.Contains(planned, op.ID) {
			require.Len(t, op.Tables, 1, op.ID)
			require.Equal(t, "slow_rows", op.Tables[0].Name)
		}
	}
	var state wire.Lockdown
	read("lockdown.json", &state)
	require.True(t, state.Locked)
	require.True(t, state.Done)
	for _, name := range []string{"policies", "connections", "config", "roles", "agents"} {
		var all map[string]json.RawMessage
		read(name+".json", &all)
		require.NotEmpty(t, all, name)
	}
}

// A responder locks the mount while ten operations copy. Nothing runs on: no
// worker, no session, no login, no lease, and every target is as it was. It stays
// so over a restart of Vault. Neither who locked, by whatever login, nor root can
// lift it; another responder can, and then everything works again and what the
// operations had begun is removed. The agent's events are one unbroken chain.
func TestLockdown_InTheMiddleOfTenOperations(t *testing.T) {
	t.Parallel()
	conf := testenv.PostgresOptions{Conf: []string{"max_connections = 400"}}
	s := stack.New(t, stack.Options{
		Vault: testenv.VaultOptions{Raft: true}, Source: conf, Target: conf, MaxOperations: atOnce,
	})
	s.Write("agents/"+stack.AgentName, map[string]any{"max_operations": atOnce})
	rita, ritaToken := s.Person("rita", "dbops-responder")
	_, robToken := s.Person("rob", "dbops-responder")
	mount := string(s.Mount())
	for range 5 {
		_, err := s.Vault.Client.Logical().Read(mount + "/creds/" + stack.SourceName + "-read")
		require.NoError(t, err)
	}
	ids, asked := copying(t, s)
	require.NotEqual(t, "0", leasedSessions(s.Target))
	require.GreaterOrEqual(t, leaseCount(t, s.Vault.Client, mount+"/"), 2*atOnce+5)

	began := time.Now()
	dir := filepath.Join(t.TempDir(), "evidence")
	stdout, stderr, status := s.CLI(ritaToken, "lockdown", "-reason=stolen laptop", "-out="+dir, "-timeout=2m")
	t.Logf("dbops lockdown took %s:\n%s%s", time.Since(began).Round(time.Millisecond), stdout, stderr)
	require.Zero(t, status)
	require.Empty(t, stack.Logins(s.Source))
	require.Empty(t, stack.Logins(s.Target))
	require.Equal(t, "0", leasedSessions(s.Source))
	require.Equal(t, "0", leasedSessions(s.Target))
	require.Zero(t, leaseCount(t, s.Vault.Client, mount+"/"), "leases are left")
	checkEvidence(t, dir, ids, asked)
	for i, id := range ids {
		op, err := s.Operation(id)
		require.NoError(t, err)
		require.Equal(t, wire.StateCancelled, op.State, "%+v", op.Result)
		require.Equal(t, wire.CodeLocked, op.Result.Code)
		require.Contains(t, op.Result.Reason, entityOf(t, rita))
		require.Contains(t, op.Result.Reason, "stolen laptop")
		require.Equal(t, "untouched", s.Target.Value("target"+strconv.Itoa(i), "SELECT content FROM marker"))
	}
	testenv.Await(t, "every worker to be gone", 30*time.Second, func() error {
		found, err := testenv.Docker(t).ContainerList(context.Background(), container.ListOptions{
			All: true, Filters: filters.NewArgs(filters.Arg("label", "io.dbops.operation")),
		})
		if err != nil {
			return err
		}
		for _, c := range found {
			for _, id := range ids {
				if c.Labels["io.dbops.operation"] == id {
					return fmt.Errorf("container %v, %s", c.Names, c.State)
				}
			}
		}
		return nil
	})

	locked := func() {
		t.Helper()
		_, err := s.TryAsk(s.Requester, stack.SourceName, stack.TargetName, nil)
		refusedWith(t, wire.CodeLocked, err)
		_, err = s.Vault.Client.Logical().Read(mount + "/creds/" + stack.SourceName + "-read")
		refusedWith(t, wire.CodeLocked, err)
		_, err = s.Vault.Client.Logical().Write(mount+"/policies/everyone", map[string]any{"allowed_operations": "*"})
		refusedWith(t, wire.CodeLocked, err)
	}
	locked()
	s.Vault.Kill()
	s.Vault.Restart()
	locked()

	// Who locked, the same person by another login, and root.
	unlock := map[string]any{"reason": "let me"}
	_, err := rita.Logical().Write(mount+"/unlock", unlock)
	refusedWith(t, wire.CodeDenied, err)
	_, err = otherLogin(t, s, rita).Logical().Write(mount+"/unlock", unlock)
	refusedWith(t, wire.CodeDenied, err)
	_, err = s.Vault.Client.Logical().Write(mount+"/unlock", unlock)
	refusedWith(t, wire.CodeNoIdentity, err)
	locked()
	var done wire.Lockdown
	testenv.Await(t, "everything to be searched again after the restart", time.Minute, func() error {
		stdout, stderr, status := s.CLI(robToken, "lockdown", "-show", "-format=json")
		if status != 0 {
			return fmt.Errorf("exit %d: %s", status, stderr)
		}
		done = wire.Lockdown{}
		if err := json.Unmarshal([]byte(stdout), &done); err != nil {
			return err
		}
		if !done.Done {
			return fmt.Errorf("left: %+v", done.Left)
		}
		return nil
	})
	_, stderr, status = s.CLI(robToken, "unlock", "-reason=laptop found")
	require.Zero(t, status, stderr)

	// All is as before, and what was begun is removed.
	s.Source.Exec(stack.Database, "CREATE OR REPLACE FUNCTION slow(int) RETURNS boolean LANGUAGE sql AS 'SELECT true'")
	secret, err := s.Vault.Client.Logical().Read(mount + "/creds/" + stack.SourceName + "-read")
	require.NoError(t, err)
	require.NoError(t, s.Vault.Client.Sys().Revoke(secret.LeaseID))
	last := s.Succeed(nil, 2*time.Minute)
	testenv.Await(t, "the cleanup of what had been begun", 2*time.Minute, func() error {
		want := []string{stack.Database}
		for i := range atOnce {
			want = append(want, "target"+strconv.Itoa(i))
		}
		if got := stack.Databases(s.Target); got != strings.Join(want, ", ") {
			return fmt.Errorf("databases at the target: %s", got)
		}
		return nil
	})
	c := &crashes{Stack: s, t: t}
	testenv.Await(t, "all events in the audit file", time.Minute, func() error {
		for _, id := range append(asked, last.ID) {
			events := s.AuditedEvents(id)
			if len(events) == 0 || events[len(events)-1].EventType != wire.EventOperationFinished {
				return fmt.Errorf("the end of %s is not told", id)
			}
		}
		return nil
	})
	c.events(t, append(asked, last.ID))
}

// entityOf is the entity behind a client's token.
func entityOf(t *testing.T, client *api.Client) string {
	t.Helper()
	self, err := client.Auth().Token().LookupSelf()
	require.NoError(t, err)
	return fmt.Sprint(self.Data["entity_id"])
}

// otherLogin makes a second login of the same person and uses it.
func otherLogin(t *testing.T, s *stack.Stack, client *api.Client) *api.Client {
	t.Helper()
	root := s.Vault.Client
	entity := entityOf(t, client)
	require.NoError(t, root.Sys().EnableAuthWithOptions("other", &api.EnableAuthOptions{Type: "userpass"}))
	auths, err := root.Sys().ListAuth()
	require.NoError(t, err)
	const password = "another-password-in-tests"
	_, err = root.Logical().Write("auth/other/users/rr", map[string]any{"password": password, "token_policies": "dbops-responder"})
	require.NoError(t, err)
	_, err = root.Logical().Write("identity/entity-alias", map[string]any{
		"name": "rr", "canonical_id": entity, "mount_accessor": auths["other/"].Accessor,
	})
	require.NoError(t, err)
	secret, err := s.Vault.NewClient("").Logical().Write("auth/other/login/rr", map[string]any{"password": password})
	require.NoError(t, err)
	require.Equal(t, entity, secret.Auth.EntityID)
	return s.Vault.NewClient(secret.Auth.ClientToken)
}
