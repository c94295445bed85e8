package audit

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

var testTime = time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)

func someRecords(t *testing.T, n int) []record {
	t.Helper()
	at := position{Epoch: 1}
	var all []record
	for range n {
		r, err := chained(wire.Event{OpID: "op", Detail: "<&> \" \n"}, at, "a1", testTime)
		require.NoError(t, err)
		at = r.position
		all = append(all, r)
	}
	return all
}

// Cutting a segment anywhere keeps exactly the whole lines before the cut.
func TestSpool_TornAnywhere(t *testing.T) {
	t.Parallel()
	records := someRecords(t, 3)
	var content []byte
	var ends []int
	for _, r := range records {
		content = append(content, encodeLine(r.text)...)
		ends = append(ends, len(content))
	}
	for size := 0; size <= len(content); size += 7 {
		dir := t.TempDir()
		require.NoError(t, os.WriteFile(filepath.Join(dir, "0000000001-0000000000000001.events"), content[:size], 0o600))
		s, found, err := openSpool(dir)
		require.NoError(t, err)
		whole := 0
		for whole < len(ends) && ends[whole] <= size {
			whole++
		}
		require.Len(t, found.records, whole)
		require.False(t, found.damaged)
		require.NoError(t, s.append(records[whole:max(whole, len(records))][:min(1, len(records)-whole)]), "it can go on")
		require.NoError(t, s.closeFile())
	}
}

// A hole before the last segment is damage, never passed over in silence.
func TestSpool_HoleIsDamage(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	records := someRecords(t, 3)
	for i, r := range records {
		line := encodeLine(r.text)
		if i == 1 {
			line[20] ^= 1
		}
		name := []string{"0000000001-0000000000000001", "0000000001-0000000000000002", "0000000001-0000000000000003"}[i]
		require.NoError(t, os.WriteFile(filepath.Join(dir, name+segmentSuffix), line, 0o600))
	}
	_, found, err := openSpool(dir)
	require.NoError(t, err)
	require.True(t, found.damaged)
	require.Len(t, found.records, 2)
}

// Segments are removed once everything in them was answered.
func TestSpool_RemovesWhatIsThrough(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s, _, err := openSpool(dir)
	require.NoError(t, err)
	records := someRecords(t, 6)
	for _, r := range records {
		s.size = segmentBytes + 1 // every record fills a segment
		require.NoError(t, s.append([]record{r}))
	}
	require.NoError(t, s.acknowledge(records[3].position))
	names, err := filepath.Glob(filepath.Join(dir, "*"+segmentSuffix))
	require.NoError(t, err)
	require.Len(t, names, 2)
	require.NoError(t, s.closeFile())
	_, found, err := openSpool(dir)
	require.NoError(t, err)
	require.Len(t, found.records, 2)
	require.Equal(t, records[3].position, *found.acked)
}

// A crash between writing a new epoch and removing the old one doubles nothing.
func TestSpool_NewEpochStandsForTheOld(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s, _, err := openSpool(dir)
	require.NoError(t, err)
	records := someRecords(t, 2)
	require.NoError(t, s.append(records))
	require.NoError(t, s.closeFile())
	moved, err := records[1].moved(position{Epoch: 2, Head: "x"}, "a1")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(s.segmentPath(moved.position), encodeLine(moved.text), 0o600))
	_, found, err := openSpool(dir)
	require.NoError(t, err)
	require.Len(t, found.records, 1)
	require.Equal(t, moved.position, found.records[0].position)
	require.False(t, found.damaged)
}

// Whatever stands in a segment, opening does not fail or panic, keeps only lines
// whose sum is right, and leaves a file that opens the same way again.
func FuzzSpoolOpen(f *testing.F) {
	f.Add([]byte(""), false)
	f.Add(encodeLine(`{"epoch":"1","seq":"1","op_id":"op"}`), true)
	f.Add(append(encodeLine(`{"epoch":"1","seq":"1","op_id":"op"}`), "deadbeef {"...), false)
	f.Add(bytes.Repeat([]byte("x"), 5000), false)
	f.Fuzz(func(t *testing.T, content []byte, second bool) {
		dir := t.TempDir()
		name := "0000000001-0000000000000001"
		if second {
			name = "0000000001-0000000000000002"
		}
		require.NoError(t, os.WriteFile(filepath.Join(dir, name+segmentSuffix), content, 0o600))
		_, first, err := openSpool(dir)
		require.NoError(t, err)
		_, again, err := openSpool(dir)
		require.NoError(t, err)
		require.Len(t, again.records, len(first.records))
		require.Zero(t, again.torn)
		for _, r := range first.records {
			require.True(t, bytes.Contains(content, encodeLine(r.text)))
		}
	})
}
