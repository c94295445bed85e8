package postgres

import (
	"context"
	"fmt"
	"hash/fnv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/account"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

var _ account.Preparer = (*Driver)(nil)

// Prepare runs the statements in one transaction; two that run the same ones wait
// for each other.
func (d *Driver) Prepare(ctx context.Context, preparation account.Preparation) error {
	const op = "prepare"
	text := &script{}
	text.limit()
	lock := fnv.New32a()
	_, _ = lock.Write([]byte(strings.Join(preparation.Statements, "\n"))) // a hash takes everything
	text.add(fmt.Sprintf("SELECT pg_catalog.pg_advisory_xact_lock(%d)", lock.Sum32()))
	for _, statement := range preparation.Statements {
		text.add(statement)
	}
	return d.with(ctx, op, account.StatementTimeout, func(ctx context.Context, conn *pgx.Conn) error {
		err := exec(ctx, conn, text.b.String())
		if sqlState(err) != stateInsufficientPrivilege {
			return err
		}
		var missing string
		if err := conn.QueryRow(ctx, preparation.Missing).Scan(&missing); err != nil {
			return err
		}
		if missing == "" {
			return nil
		}
		return &account.Error{
			Op: op, Code: wire.CodePrivilege, State: stateInsufficientPrivilege,
			Reason: "the connection's user may not do it, and it is not done: " + missing,
		}
	})
}
