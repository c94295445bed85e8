package postgres

import (
	"hash/fnv"
	"regexp"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/operation"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// names are what an operation's things at the target are called. They follow
// from its id alone, so that a clean-up needs no memory.
type names struct {
	staging, old string
	// marker stands in the comment of a database that an operation put in place,
	// as its first line.
	marker string
	// lock is the advisory lock held by whoever makes or removes databases for
	// this operation.
	lock int64
}

var operationID = regexp.MustCompile(`^(?:[a-z]+-)?([0-9A-Za-z]{1,40})$`)

func namesOf(id string) (names, error) {
	match := operationID.FindStringSubmatch(id)
	if match == nil {
		return names{}, &operation.Error{Code: wire.CodeInternal, Reason: "the operation's id is not one of ours"}
	}
	short := strings.ToLower(match[1])
	sum := fnv.New64a()
	_, _ = sum.Write([]byte(id)) // never fails
	return names{
		staging: "dbops_staging_" + short, old: "dbops_old_" + short, marker: "dbops:" + id,
		lock: int64(sum.Sum64()),
	}, nil
}

// quote writes an identifier.
func quote(name string) string { return pgx.Identifier{name}.Sanitize() }

// literal writes a string constant; standard_conforming_strings is pinned on.
func literal(text string) string {
	return "'" + strings.ReplaceAll(strings.ReplaceAll(text, "\x00", ""), "'", "''") + "'"
}
