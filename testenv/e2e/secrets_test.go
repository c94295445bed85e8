package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/image"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv/stack"
)

// leased is what every leased password in this test looks like, by a password
// policy of the test's own, and nothing else does.
var leased = regexp.MustCompile(`[QZXJK]{28}`)

const leasedPolicy = `length = 28
rule "charset" { charset = "QZXJK" }`

// place is somewhere a secret may not be.
type place struct{ name, content string }

// hostPlaces is what any user of this host, or its root, may read of processes
// and containers: argument vectors and environments, everything Docker tells.
func hostPlaces(t *testing.T) []place {
	t.Helper()
	var places []place
	for _, kind := range []string{"cmdline", "environ"} {
		files, err := filepath.Glob("/proc/[0-9]*/" + kind)
		require.NoError(t, err)
		for _, file := range files {
			if content, err := os.ReadFile(file); err == nil { // it may have ended
				places = append(places, place{file, string(content)})
			}
		}
	}
	docker, ctx := testenv.Docker(t), context.Background()
	add := func(name string, object any) {
		content, err := json.Marshal(object)
		require.NoError(t, err)
		places = append(places, place{name, string(content)})
	}
	containers, err := docker.ContainerList(ctx, container.ListOptions{All: true})
	require.NoError(t, err)
	for _, c := range containers {
		if details, err := docker.ContainerInspect(ctx, c.ID); err == nil {
			add("docker inspect "+c.ID, details)
		}
	}
	images, err := docker.ImageList(ctx, image.ListOptions{})
	require.NoError(t, err)
	for _, i := range images {
		if details, err := docker.ImageInspect(ctx, i.ID); err == nil {
			add("docker image inspect "+i.ID, details)
		}
	}
	return places
}

// filePlaces are all files below a directory, the agent's state.
func filePlaces(t *testing.T, dirs ...string) []place {
	t.Helper()
	var places []place
	for _, dir := range dirs {
		require.NoError(t, filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
			if err != nil || !entry.Type().IsRegular() {
				return nil //nolint:nilerr // files come and go while an operation runs
			}
			if content, err := os.ReadFile(path); err == nil {
				places = append(places, place{path, string(content)})
			}
			return nil
		}))
	}
	return places
}

// During an operation, and after it, the leased passwords stand nowhere: not in
// any process's arguments or environment, not in what Docker tells of any object,
// not in logs, journal, spool or audit file. Neither does a planted e-mail
// address whose copy violates a unique constraint.
func TestSecrets_Nowhere(t *testing.T) {
	t.Parallel()
	const email = "planted.person@example.test"
	gate := filepath.Join(t.TempDir(), "gate")
	s := stack.New(t, stack.Options{
		Faults: true, AgentEnv: []string{"DBOPS_FAULT=pause:copy:begin:" + gate},
	})
	_, err := s.Vault.Client.Logical().Write("sys/policies/password/leased", map[string]any{"policy": leasedPolicy})
	require.NoError(t, err)
	for _, connection := range []string{stack.SourceName, stack.TargetName} {
		for purpose := range stack.Roles() {
			s.Write("roles/"+connection+"-"+string(purpose), map[string]any{"credential_config": map[string]any{"password_policy": "leased"}})
		}
	}
	// A unique index over a function whose result differs in another session: the
	// copy violates what the source does not.
	s.Source.Exec(stack.Database,
		"CREATE TABLE people (id int PRIMARY KEY, email text)",
		"INSERT INTO people VALUES (1, '"+email+"'), (2, '"+strings.ToUpper(email)+"')",
		`CREATE FUNCTION canonical(text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$
			BEGIN RETURN CASE WHEN pg_has_role('dbops_owner', 'member') THEN lower($1) ELSE $1 END;
			EXCEPTION WHEN undefined_object THEN RETURN $1; END $$`,
		"CREATE UNIQUE INDEX people_email ON people (canonical(email))",
	)
	id := s.Ask(nil)
	testenv.Await(t, "the copy to begin", time.Minute, func() error { _, err := os.Stat(gate + ".reached"); return err })

	// They are alive now: in the agent's memory, which must hold them. Without this
	// the rest would prove nothing.
	passwords := inMemory(t, s.Agent.PID())
	require.GreaterOrEqual(t, len(passwords), 2, "no leased password in the agent's memory")
	during := hostPlaces(t)
	during = append(during, filePlaces(t, s.Dir)...)
	require.NoError(t, os.WriteFile(gate, nil, 0o600))

	op := s.AwaitFinal(id, time.Minute)
	require.Equal(t, wire.StateFailed, op.State)
	require.Equal(t, "people", tableOf(op), "the planted row must have stopped the copy: %+v", op.Result)
	require.Equal(t, "", stack.Databases(s.Target), "nothing stays at the target")

	places := append(during, hostPlaces(t)...)
	places = append(places, filePlaces(t, s.Dir)...)
	audit, err := os.ReadFile(s.Vault.AuditFile())
	require.NoError(t, err)
	result, err := json.Marshal(op)
	require.NoError(t, err)
	places = append(places, place{"audit file", string(audit)}, place{"agent's log", s.Agent.Log()}, place{"operation", string(result)},
		place{"vault's log", s.Vault.Log()})
	for _, place := range places {
		require.False(t, leased.MatchString(place.content), "leased password in %s", place.name)
		require.False(t, strings.Contains(strings.ToLower(place.content), email), "e-mail address in %s", place.name)
	}
}

// inMemory finds the leased passwords in the memory of a process.
func inMemory(t *testing.T, pid int) map[string]bool {
	t.Helper()
	found := map[string]bool{}
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	require.NoError(t, err)
	memory, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	require.NoError(t, err)
	defer memory.Close()
	for line := range strings.Lines(string(maps)) {
		var from, to int64
		var mode string
		if n, err := fmt.Sscanf(line, "%x-%x %s", &from, &to, &mode); n != 3 || err != nil || !strings.HasPrefix(mode, "rw") {
			continue
		}
		content := make([]byte, to-from)
		if _, err := memory.ReadAt(content, from); err != nil {
			continue // not every mapping can be read
		}
		for _, password := range leased.FindAll(content, -1) {
			found[string(password)] = true
		}
	}
	return found
}

// tableOf is the last word of a result's reason that names a table of the test.
func tableOf(op wire.Operation) string {
	if op.Result != nil && bytes.Contains([]byte(op.Result.Reason+op.Result.Hint), []byte("people")) {
		return "people"
	}
	return ""
}
