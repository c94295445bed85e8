package journal

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/operation"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// What was put is read by the next start, until it is deleted.
func TestJournal_PutListDelete(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "journal")
	j, err := Open(dir)
	require.NoError(t, err)
	first := Entry{Version: 1, Claim: wire.Claim{OperationID: "clone-1", Fence: "3"}, Step: wire.StepCopy, Touched: true}
	second := Entry{Version: 1, Claim: wire.Claim{OperationID: "clone-2"}, Switching: true, Report: &operation.Report{Rows: 7}}
	require.NoError(t, j.Put(second))
	require.NoError(t, j.Put(Entry{Claim: wire.Claim{OperationID: "clone-1"}}))
	require.NoError(t, j.Put(first))
	again, err := Open(dir)
	require.NoError(t, err)
	entries, err := again.List()
	require.NoError(t, err)
	require.Equal(t, []Entry{first, second}, entries)
	require.NoError(t, again.Delete("clone-1"))
	require.NoError(t, again.Delete("clone-1"))
	entries, err = again.List()
	require.NoError(t, err)
	require.Equal(t, []Entry{second}, entries)
}

// A broken entry is told and hides no other; a half-written file is no entry.
func TestJournal_BrokenEntryIsTold(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	j, err := Open(dir)
	require.NoError(t, err)
	require.NoError(t, j.Put(Entry{Claim: wire.Claim{OperationID: "clone-1"}}))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "clone-2.json"), []byte(`{"version":`), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "clone-4.json"), []byte(`{"version":99,"claim":{"operation_id":"clone-4"}}`), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, ".clone-3.json123"), []byte(`{`), 0o600))
	entries, err := j.List()
	require.ErrorContains(t, err, "clone-2.json")
	require.ErrorContains(t, err, "clone-4.json")
	require.NotContains(t, err.Error(), "clone-3")
	require.Len(t, entries, 1)
}

// An id that would leave the directory is refused.
func TestJournal_IDsStayInside(t *testing.T) {
	t.Parallel()
	j, err := Open(t.TempDir())
	require.NoError(t, err)
	for _, id := range []string{"", "..", "../x", "a/b", ".hidden"} {
		require.Error(t, j.Put(Entry{Claim: wire.Claim{OperationID: id}}), id)
		require.Error(t, j.Delete(id), id)
	}
}
