package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv/stack"
)

// retentionSite is a site on a Raft Vault whose plugin's clock and death the test
// decides about.
type retentionSite struct {
	*stack.Stack
	t   *testing.T
	dir string
	raw string // where the mount's storage is seen
}

// killPlugin ends the plugin's process; the next one has the clock that is set.
func (s *retentionSite) killPlugin() {
	s.t.Helper()
	require.NoError(s.t, syscall.Kill(s.Vault.PluginPID(), syscall.SIGKILL))
	s.awaitPlugin()
}

func (s *retentionSite) awaitPlugin() {
	s.t.Helper()
	testenv.Await(s.t, "the plugin", time.Minute, func() error {
		_, err := s.Vault.Client.Logical().Read(string(s.Mount()) + "/info")
		return err
	})
}

func (s *retentionSite) setClock(offset time.Duration) {
	s.t.Helper()
	require.NoError(s.t, os.WriteFile(s.Vault.PluginFile(".clock-offset"), []byte(offset.String()), 0o600))
	s.killPlugin()
}

// beginRound has a pruning begun now and not with Vault's next minute. It may be
// answered with the plugin's death.
func (s *retentionSite) beginRound() {
	s.t.Helper()
	_, _ = s.Vault.Client.Logical().Write(string(s.Mount())+"/settings", map[string]any{"retention": "24h"})
}

// diesAt lets the plugin end where a pruning has come to that point, and waits for it.
func (s *retentionSite) diesAt(point string) {
	s.t.Helper()
	file := s.Vault.PluginFile(".fault")
	require.NoError(s.t, os.WriteFile(file, []byte("retention:"+point), 0o600))
	s.beginRound()
	testenv.Await(s.t, "a pruning to be "+point, 2*time.Minute, func() error {
		if _, err := os.Stat(file); !errors.Is(err, fs.ErrNotExist) {
			return errNothing
		}
		return nil
	})
	s.awaitPlugin()
}

// listed are the ids that an auditor sees.
func (s *retentionSite) listed() []string {
	s.t.Helper()
	secret, err := s.Vault.Client.Logical().List(s.Mount().AllOperations())
	require.NoError(s.t, err)
	var ids []string
	if secret != nil && secret.Data["keys"] != nil {
		for _, id := range secret.Data["keys"].([]any) {
			ids = append(ids, id.(string))
		}
	}
	return ids
}

// stored are the entries of the mount's storage whose path has the word.
func (s *retentionSite) stored(word string) []string {
	s.t.Helper()
	var found []string
	var walk func(path string)
	walk = func(path string) {
		secret, err := s.Vault.Client.Logical().List(s.raw + path)
		require.NoError(s.t, err)
		if secret == nil {
			return
		}
		for _, key := range secret.Data["keys"].([]any) {
			if name := path + key.(string); strings.HasSuffix(name, "/") {
				walk(name)
			} else if strings.Contains(name, word) {
				found = append(found, name)
			}
		}
	}
	walk("")
	return found
}

// receipt reads the receipt of an operation into a file.
func (s *retentionSite) receipt(id string) string {
	s.t.Helper()
	path := filepath.Join(s.dir, id+".json")
	testenv.Await(s.t, "the receipt of "+id, time.Minute, func() error {
		if _, errs, status := s.CLI(s.RequesterToken, "receipt", id, "-out="+path); status != 0 {
			return errors.New(errs)
		}
		return nil
	})
	return path
}

// verifies checks a receipt with the keys as they are now.
func (s *retentionSite) verifies(receipt string) {
	s.t.Helper()
	secret, err := s.Requester.Logical().Read(string(s.Mount()) + "/keys")
	require.NoError(s.t, err)
	keys := filepath.Join(s.dir, "keys.pem")
	require.NoError(s.t, os.WriteFile(keys, []byte(secret.Data["pem"].(string)), 0o600))
	out, errs, status := s.CLI("no token", "receipt", "verify", "-keys="+keys, receipt)
	require.Zero(s.t, status, "%s\n%s", out, errs)
}

// cancelled asks for a clone that nobody takes, and cancels it.
func (s *retentionSite) cancelled() string {
	s.t.Helper()
	id := s.Ask(nil)
	_, err := s.Requester.Logical().Write(s.Mount().Cancel(id), nil)
	require.NoError(s.t, err)
	return id
}

// On a real Vault on Raft, whose plugin's clock is set forward over the shortest
// retention there is: operations that are over go, with all that belongs to them, and
// young and unfinished ones stay, although the plugin is killed between any two moves of
// a removal, and Vault itself in the middle of a round. What stays can be read, run and
// verified, and the audit device still is.
func TestRetention_OnRaftOverKills(t *testing.T) {
	t.Parallel()
	// A few more than one round removes (prunedAtOnce): some are left for a minute,
	// however late a busy machine lets Vault be killed.
	const many = 104
	s := &retentionSite{t: t, dir: t.TempDir(), Stack: stack.New(t, stack.Options{
		Vault: testenv.VaultOptions{Raft: true, PluginBinary: testenv.FaultPlugin(t), Config: "raw_storage_endpoint = true"},
	})}
	mount, err := s.Vault.Client.Logical().Read("sys/mounts/" + string(s.Mount()))
	require.NoError(t, err)
	s.raw = fmt.Sprintf("sys/raw/logical/%s/", mount.Data["uuid"])
	s.Source.Exec(stack.Database, "CREATE TABLE a (n int PRIMARY KEY)", "INSERT INTO a SELECT generate_series(1, 100)")
	s.Write("settings", map[string]any{"retention": "24h"})

	old := []string{s.Succeed(nil, time.Minute).ID}
	oldReceipt := s.receipt(old[0])
	require.NotEmpty(t, s.stored("operation-plan/"+old[0]))
	s.Agent.Stop(30 * time.Second)
	for range many {
		old = append(old, s.cancelled())
	}
	unfinished := s.Ask(nil)
	s.receipt(old[many])

	s.setClock(20 * time.Hour)
	young := s.cancelled()
	youngReceipt := s.receipt(young)
	require.Len(t, s.listed(), many+3, "nothing is over yet")

	// Killed with one that is marked: it is gone for everybody, and its parts are there.
	s.setClock(25 * time.Hour)
	s.diesAt("marked")
	gone := func(id string) {
		t.Helper()
		for path, client := range map[string]*api.Client{s.Mount().Operation(id): s.Requester, s.Mount().AllOperations() + "/" + id: s.Vault.Client} {
			for _, what := range []string{"", "/plan", "/report", "/receipt"} {
				secret, err := client.Logical().Read(path + what)
				require.NoError(t, err, path+what)
				require.Nil(t, secret, path+what)
			}
		}
		require.NotContains(t, s.listed(), id)
	}
	gone(old[0])
	require.NotEmpty(t, s.stored(old[0]))
	// Killed with its texts gone: its record is what finds it again.
	s.diesAt("emptied")
	gone(old[0])
	require.Equal(t, []string{"operation/" + old[0]}, s.stored(old[0]))

	// Vault itself is killed in the middle of a round.
	before := len(s.listed())
	s.beginRound()
	testenv.Await(t, "a round to begin", 2*time.Minute, func() error {
		if len(s.listed()) > before-10 {
			return errNothing
		}
		return nil
	})
	s.Vault.Kill()
	s.Vault.Restart()
	s.awaitPlugin()
	middle := len(s.listed())
	t.Logf("Vault was killed with %d of %d operations left to be removed", middle-2, len(old))
	require.Greater(t, middle, 2, "the round was over before Vault was killed")

	testenv.Await(t, "the rest to go", 3*time.Minute, func() error {
		if left := len(s.listed()); left > 2 {
			return fmt.Errorf("%d are left", left)
		}
		return nil
	})
	stays := []string{unfinished, young}
	slices.Sort(stays)
	listed := s.listed()
	slices.Sort(listed)
	require.Equal(t, stays, listed)
	for _, id := range old {
		require.Empty(t, s.stored(id), id)
	}
	gone(old[0])
	gone(old[many])

	// What stays is whole: the young one reads and verifies, the unfinished one runs, and
	// so does the chain of its agent's events.
	op, err := s.Operation(young)
	require.NoError(t, err)
	require.Equal(t, wire.StateCancelled, op.State)
	s.verifies(s.receipt(young))
	s.verifies(youngReceipt)
	s.verifies(oldReceipt) // read before it went
	s.Agent.Start()
	require.Equal(t, wire.StateSucceeded, s.AwaitFinal(unfinished, 2*time.Minute).State)
	s.verifies(s.receipt(unfinished))
	s.Agent.Stop(30 * time.Second)
	out, errs, status := s.CLI(s.Vault.RootToken, "audit", "verify", s.Vault.AuditFile())
	require.Zero(t, status, "%s\n%s", out, errs)
	require.NotEmpty(t, s.AuditedEvents(old[0]), "events stand where Vault's audit devices are")
}
