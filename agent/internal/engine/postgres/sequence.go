package postgres

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/operation"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// sequenceBatch is how many sequences one statement reads or sets.
const sequenceBatch = 200

// sequenceValue is where a sequence stands.
type sequenceValue struct {
	sequence
	last   int64
	called bool
}

// copySequences gives the target's sequences the values of the source's. A
// sequence knows no snapshot: it is read after the rows were frozen, and so is
// never behind them.
func (c *clone) copySequences(ctx context.Context) error {
	var err error
	if c.values, err = readSequenceValues(ctx, c.keeper, c.held.sequences); err != nil {
		return fault(wire.StepCopy, wire.Source, "read the sequences", err)
	}
	if len(c.values) == 0 {
		return nil
	}
	conn, err := c.open(ctx, c.target, c.names.staging)
	if err != nil {
		return fault(wire.StepCopy, wire.Target, "connect to the staging database", err)
	}
	for rest := c.values; len(rest) > 0; {
		n := min(sequenceBatch, len(rest))
		var calls []string
		for _, v := range rest[:n] {
			calls = append(calls, fmt.Sprintf("pg_catalog.setval(%s, %d, %t)", literal(v.quoted()), v.last, v.called))
		}
		if err := execute(ctx, conn, "SELECT "+strings.Join(calls, ", ")); err != nil {
			return fault(wire.StepCopy, wire.Target, "set the sequences", err)
		}
		rest = rest[n:]
	}
	return nil
}

func (s *sequence) quoted() string { return pgx.Identifier{s.schema, s.name}.Sanitize() }

func readSequenceValues(ctx context.Context, conn *pgx.Conn, list []sequence) ([]sequenceValue, error) {
	values := make([]sequenceValue, 0, len(list))
	for len(list) > 0 {
		n := min(sequenceBatch, len(list))
		var selects []string
		for i := range list[:n] {
			selects = append(selects, fmt.Sprintf("SELECT %d, last_value, is_called FROM %s", i, list[i].quoted()))
		}
		rows, err := conn.Query(ctx, strings.Join(selects, " UNION ALL "))
		if err != nil {
			return nil, err
		}
		var (
			at int
			v  sequenceValue
		)
		_, err = pgx.ForEachRow(rows, []any{&at, &v.last, &v.called}, func() error {
			v.sequence = list[at]
			values = append(values, v)
			return nil
		})
		if err != nil {
			return nil, err
		}
		list = list[n:]
	}
	return values, nil
}

// verifySequences reads the target's sequences again.
func (c *clone) verifySequences(ctx context.Context, conn *pgx.Conn) error {
	found, err := readSequenceValues(ctx, conn, c.held.sequences)
	if err != nil {
		return fault(wire.StepVerify, wire.Target, "read the sequences again", err)
	}
	want := make(map[uint32]sequenceValue, len(c.values))
	for _, v := range c.values {
		want[v.oid] = v
	}
	for _, v := range found {
		if want[v.oid] != v {
			return &operation.Error{
				Step: wire.StepVerify, Code: wire.CodeCheckFailed, Reason: "sequence " + qualified(v.schema, v.name) + " stands elsewhere than at the source",
			}
		}
	}
	return nil
}
