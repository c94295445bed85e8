package plugin

import (
	"context"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// served lists the operations a path serves.
func served(p *framework.Path) []logical.Operation {
	found := map[logical.Operation]bool{}
	for operation := range p.Callbacks { //nolint:staticcheck // the hot paths use it, see backend.go
		found[operation] = true
	}
	for operation := range p.Operations {
		found[operation] = true
	}
	return slices.Sorted(maps.Keys(found))
}

// Every operation of every path of the engine stands in exactly one column of the
// table, and nothing else does: whoever adds a path must say what a lockdown does
// with it.
func TestLockdownTable_IsTotal(t *testing.T) {
	t.Parallel()
	m := newMount(t, &logical.InmemStorage{})
	paths := map[string]*framework.Path{}
	for _, p := range m.paths() {
		name := readablePath(p.Pattern)
		require.NotContains(t, paths, name, "two paths read alike")
		require.NotRegexp(t, `[()?^$\\]`, name)
		paths[name] = p
	}
	for name, p := range paths {
		rule, known := lockdownTable[name]
		require.True(t, known, "%s is missing in lockdownTable: say there what a locked mount does with it", name)
		both := slices.Concat(rule.allowed, rule.refused)
		slices.Sort(both)
		require.Equal(t, served(p), both, "%s: each operation must stand in one column of lockdownTable", name)
	}
	for name := range lockdownTable {
		require.Contains(t, paths, name, "lockdownTable has a path that does not exist")
	}
}

// Requests of every kind to every path of a locked mount: those of the refused
// column are refused with the code, the others reach their handlers. What the
// engine does not know is refused.
func TestLockdown_EveryPathThroughTheEntrance(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	m.must(m.write(alice, "lockdown", "reason", "drill"))
	samples := strings.NewReplacer(":id", "op-01kaysfqcv4d5nvsxgtv1fbkgs", ":side", "source", ":name", "a1", ":plugin_name", "x",
		":source", "prod", ":target", "staging", ":backup", "b")
	tried := 0
	for name, rule := range lockdownTable {
		path := samples.Replace(name)
		for _, operation := range rule.refused {
			_, err := m.handle(alice, operation, path)
			require.ErrorContains(t, err, "locked: locked down since 2026-11-24T12:00:00Z by alice (entity entity-alice): drill", "%s %s", operation, path)
			tried++
		}
		for _, operation := range rule.allowed {
			_, err := m.handle(alice, operation, path)
			if err != nil {
				require.NotContains(t, err.Error(), string(wire.CodeLocked)+": ", "%s %s", operation, path)
			}
			tried++
		}
	}
	require.Greater(t, tried, 60)
	for _, unknown := range []string{"new/path", "lockdown/other", "", "agents/a1/other"} {
		for _, operation := range []logical.Operation{logical.ReadOperation, logical.UpdateOperation, logical.ListOperation} {
			_, err := m.handle(alice, operation, unknown)
			require.ErrorContains(t, err, "locked: ", "%s %q", operation, unknown)
		}
	}
	for _, operation := range []logical.Operation{logical.PatchOperation, logical.RecoverOperation, logical.RenewOperation} {
		_, err := m.handle(alice, operation, "info")
		require.ErrorContains(t, err, "locked: ", "%s", operation)
	}
	_, err := m.handle("", logical.HelpOperation, "info")
	require.NoError(t, err)
}

func TestReadablePath(t *testing.T) {
	t.Parallel()
	for pattern, want := range map[string]string{
		"^config/?$": "config",
		"roles/" + framework.GenericNameRegex("name"):                                             "roles/:name",
		"^clone/" + framework.GenericNameRegex("a") + "/" + framework.GenericNameRegex("b") + "$": "clone/:a/:b",
		"x/" + operationIDRegex + "/accounts/(?P<side>source|target)$":                            "x/:id/accounts/:side",
		"x/(?P<open>unclosed": "x/:open",
	} {
		require.Equal(t, want, readablePath(pattern))
	}
}

// A storage that cannot be read does not open a mount: nobody knows whether it is
// locked.
func TestLockdown_UnreadableStateRefuses(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	m.must(m.write(alice, "lockdown", "reason", "drill"))
	require.NoError(t, m.storage.Put(context.Background(), &logical.StorageEntry{Key: keyLockdown, Value: []byte("{")}))
	m.restart()
	_, err := m.read(alice, "operations")
	require.ErrorContains(t, err, "internal: ")
	_, err = m.write(alice, "clone/prod/staging")
	require.ErrorContains(t, err, "internal: ")
}
