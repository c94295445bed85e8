package operation

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"sort"
	"testing"

	"github.com/stretchr/testify/require"
)

// rootOf is RFC 6962, section 2.1, written down again.
func rootOf(leaves [][]byte) [32]byte {
	if len(leaves) == 1 {
		return sha256.Sum256(append([]byte{0}, leaves[0]...))
	}
	k := 1
	for k*2 < len(leaves) {
		k *= 2
	}
	left, right := rootOf(leaves[:k]), rootOf(leaves[k:])
	return sha256.Sum256(slices.Concat([]byte{1}, left[:], right[:]))
}

// The root is that of RFC 6962 over the sorted tables, whatever order they came in,
// and each fact of each table counts.
func TestTablesRoot(t *testing.T) {
	t.Parallel()
	none, err := TablesRoot(nil)
	require.NoError(t, err)
	require.Empty(t, none)
	for _, n := range []int{1, 2, 3, 7, 8, 100} {
		var tables []TableReport
		var leaves []string
		for i := range n {
			table := TableReport{Schema: fmt.Sprintf("s%d", i%3), Name: fmt.Sprintf("t%d", i), Rows: int64(i), Digest: fmt.Sprintf("%032x", i)}
			tables = append(tables, table)
			leaves = append(leaves, fmt.Sprintf("%s\x00%s\x00%d\x00%s", table.Schema, table.Name, table.Rows, table.Digest))
		}
		sort.Strings(leaves)
		var bytes [][]byte
		for _, leaf := range leaves {
			bytes = append(bytes, []byte(leaf))
		}
		want := rootOf(bytes)
		slices.Reverse(tables)
		got, err := TablesRoot(tables)
		require.NoError(t, err)
		require.Equal(t, "sha256:"+hex.EncodeToString(want[:]), got)
		for _, change := range []func(*TableReport){
			func(r *TableReport) { r.Schema += "x" }, func(r *TableReport) { r.Name += "x" }, func(r *TableReport) { r.Rows++ },
			func(r *TableReport) { r.Digest += "0" },
		} {
			changed := slices.Clone(tables)
			change(&changed[n/2])
			other, err := TablesRoot(changed)
			require.NoError(t, err)
			require.NotEqual(t, got, other)
		}
	}
}
