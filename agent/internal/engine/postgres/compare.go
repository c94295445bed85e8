package postgres

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/operation"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// verify compares the sequences and the catalogs of both sides. The tables were
// read again while indexes were being built.
func (c *clone) verify(ctx context.Context, conn *pgx.Conn) error {
	if err := c.verifySequences(ctx, conn); err != nil {
		return err
	}
	found, err := readCatalog(ctx, conn)
	if err != nil {
		return fault(wire.StepVerify, wire.Target, "read the copy's catalogs", err)
	}
	compared, err := compareCatalogs(c.held, found, c.options)
	if err != nil {
		return err
	}
	c.mutex.Lock()
	c.report.Objects = compared + len(c.values)
	rows, size := c.report.Rows, c.report.Bytes
	c.mutex.Unlock()
	return c.end(ctx, wire.StepVerify, rows, size)
}

// differencesShown is how many differing objects an error names.
const differencesShown = 5

// compareCatalogs returns the number of objects compared. Owners and grants
// count when they were to be kept.
//
// A definition is written by the server from its parsed form, and what it writes
// need not be what it would write after reading that again: casts move to the
// elements of an array, for one. So definitions that differ in casts and brackets
// alone are equal. Between major versions the server's wording changes; there
// only the presence of an object counts.
func compareCatalogs(source, target *catalog, o options) (int, error) {
	at := make(map[string]*Object, len(target.Objects))
	for i := range target.Objects {
		if object := &target.Objects[i]; counts(object, source, target, o) {
			at[object.key()] = object
		}
	}
	var differences []string
	compared := 0
	note := func(what string, object *Object) {
		differences = append(differences, what+" "+object.Kind+" "+object.Identity)
	}
	for i := range source.Objects {
		want := &source.Objects[i]
		if !counts(want, source, target, o) {
			continue
		}
		compared++
		got, ok := at[want.key()]
		if !ok {
			note("missing", want)
			continue
		}
		delete(at, want.key())
		switch {
		case o.keepOwner && want.Owner != got.Owner:
			note("other owner of", want)
		case source.major != target.major, want.definition == got.definition:
		case want.Kind == kindComment || want.Kind == kindGrant || normalForm(want.definition) != normalForm(got.definition):
			note("different", want)
		}
	}
	for i := range target.Objects {
		if object := &target.Objects[i]; at[object.key()] != nil {
			note("additional", object)
		}
	}
	if len(differences) == 0 {
		return compared, nil
	}
	more := ""
	if n := len(differences) - differencesShown; n > 0 {
		differences, more = differences[:differencesShown], fmt.Sprintf(" and %d more", n)
	}
	return 0, &operation.Error{
		Step: wire.StepVerify, Code: wire.CodeCheckFailed,
		Reason: "the copy's catalog differs: " + strings.Join(differences, "; ") + more,
		Hint:   "something else changes the staging database, or this is a defect of ours: please report it with the definition",
		Err:    errors.New("catalogs differ"),
	}
}

// counts reports whether an object takes part in the comparison.
func counts(object *Object, source, target *catalog, o options) bool {
	switch object.Kind {
	case kindGrant:
		// The default grants of schema public changed with version 15.
		return o.keepACL && (source.major == target.major || object.Identity != "schema public")
	case "schema":
		return object.Identity != "public" || target.major >= 15
	}
	return true
}
