package operation

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/rfc6962"
)

// TablesRoot is one digest for all tables of a report: the Merkle root of RFC 6962
// with SHA-256, "sha256:" and 64 hex digits. The leaves are the tables in order of
// schema and name, each as schema, name, rows (decimal) and digest with a zero byte
// between them. Whoever has the list can recompute it, and one table can be shown
// to be in it without the others. There is none without tables.
func TablesRoot(tables []TableReport) (string, error) {
	if len(tables) == 0 {
		return "", nil
	}
	sorted := slices.Clone(tables)
	slices.SortFunc(sorted, func(a, b TableReport) int {
		return cmp.Or(cmp.Compare(a.Schema, b.Schema), cmp.Compare(a.Name, b.Name))
	})
	factory := compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}
	tree := factory.NewEmptyRange(0)
	for _, table := range sorted {
		leaf := strings.Join([]string{table.Schema, table.Name, strconv.FormatInt(table.Rows, 10), table.Digest}, "\x00")
		if err := tree.Append(rfc6962.DefaultHasher.HashLeaf([]byte(leaf)), nil); err != nil {
			return "", fmt.Errorf("digest of tables: %w", err)
		}
	}
	root, err := tree.GetRootHash(nil)
	if err != nil {
		return "", fmt.Errorf("digest of tables: %w", err)
	}
	return "sha256:" + hex.EncodeToString(root), nil
}
